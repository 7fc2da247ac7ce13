// What the ISA units and the baseline host code agree on: storage types and the dropout key. No torch, no std templates.
#pragma once
#include <cstdint>

namespace hhmpn {

// bfloat16 as stored; arithmetic on it happens in float.
struct bf16 {
  uint16_t bits;
};

// Accumulator (and scratch) type of a storage type.
template <class T>
struct AccOf {
  using type = T;
};
template <>
struct AccOf<bf16> {
  using type = float;
};
template <class T>
using Acc = typename AccOf<T>::type;

// One call's dropout: an element is kept iff its Philox word >= threshold, and then scaled. p == 0 draws nothing.
struct Dropout {
  uint32_t seed_lo, seed_hi, step, threshold;
  double scale;  // 1 / (1 - p)
  bool on;
};

}  // namespace hhmpn
