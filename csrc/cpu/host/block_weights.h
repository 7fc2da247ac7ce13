// The weights of one MP + UPD pair, in the one order that every language has; weights are (out, in), `query` as in v A.
//
//   query (d, d)   value (d, d)   hidden (h, d), for features (M, h, d): C   b1 (h)   output (d, h)   b2 (d)
//
// No query: the uniform mean. No value either: no such block.
#pragma once
#include "adapter/record.h"

namespace hhmpn {

template <class F>
struct Block {
  F query{}, value{}, hidden{}, b1{}, output{}, b2{};

  template <class V>
  void each(V& v) {
    v.weight("query", query), v.weight("value", value), v.weight("hidden", hidden), v.weight("b1", b1);
    v.weight("output", output), v.weight("b2", b2);
  }
  // f(name, field of a, field of b): matrices, then biases.
  template <class A, class B, class G>
  static void matrices(A& a, B& b, const G& f) {
    f("query", a.query, b.query), f("value", a.value, b.value), f("hidden", a.hidden, b.hidden);
    f("output", a.output, b.output);
  }
  template <class A, class B, class G>
  static void biases(A& a, B& b, const G& f) {
    f("b1", a.b1, b.b1), f("b2", a.b2, b.b2);
  }
  template <class A, class B, class G>
  static void both(A& a, B& b, const G& f) {
    matrices(a, b, f), biases(a, b, f);
  }
};

using BlockWeights = Block<at::Tensor>;
using BlockLayers = Block<std::vector<at::Tensor>>;  // a list over layers in each field

inline int64_t layers_of(const BlockLayers& all) { return int64_t(all.value.size()); }
inline BlockWeights layer_of(const BlockLayers& all, int64_t i) {
  BlockWeights w;
  BlockWeights::both(w, all,
                     [&](const char*, at::Tensor& to, const std::vector<at::Tensor>& list) { to = list[size_t(i)]; });
  return w;
}

}  // namespace hhmpn
