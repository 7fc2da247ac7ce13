// embed: v = concatenation over m of  x_m W_m^T + b_m   (paper Eq 3: the linear embedding of every modality)
//
//   xs[m] (N_m, e_m)   weights[m] (d, e_m)   biases[m] (d)   v (N, d), N = sum N_m, modality-major
#include "ops/embed/rows.h"

#include <algorithm>

#include "host/packed_weights.h"
#include "host/memory.h"
#include "adapter/op.h"
#include "host/tensors.h"

namespace hhmpn {

using at::Tensor;
using at::TensorList;

void embed_check(const char* op, TensorList xs, TensorList weights, TensorList biases) {
  TORCH_CHECK_VALUE(!xs.empty() && xs.size() == weights.size() && (biases.empty() || biases.size() == xs.size()), op,
                    ": found ", xs.size(), " inputs, ", weights.size(), " weights and ", biases.size(),
                    " biases; expected one each a modality.");
  const int64_t d = weights[0].dim() == 2 ? weights[0].size(0) : -1;
  const auto dtype = weight_dtype(weights[0], xs[0].scalar_type());
  for (size_t m = 0; m < xs.size(); m++) {
    TORCH_CHECK_VALUE(xs[m].dim() == 2, op, ": xs[", m, "] has shape ", xs[m].sizes(), "; expected (nodes, size).");
    check_matrix(op, "an input", xs[m], -1, xs[m].size(1), xs[0].scalar_type());
    check_matrix(op, "a weight", weights[m], d, xs[m].size(1), dtype);
    if (!biases.empty()) check_vector(op, "a bias", biases[m], d, dtype);
  }
}

namespace {

struct RowBlock {
  int64_t modality, row, rows, to;
};

std::vector<RowBlock> blocks_of(TensorList xs) {
  std::vector<RowBlock> blocks;
  int64_t to = 0;
  for (size_t m = 0; m < xs.size(); m++) {
    const int64_t rows = xs[m].size(0);
    for (int64_t r = 0; r < rows; r += kLinearRows)
      blocks.push_back({int64_t(m), r, std::min(kLinearRows, rows - r), to + r});
    to += rows;
  }
  std::stable_sort(blocks.begin(), blocks.end(), [&](const RowBlock& a, const RowBlock& b) {
    const auto cost = [&](const RowBlock& c) {
      return (c.rows + 16) * xs[c.modality].size(1);
    };  // few rows wait for the weights
    return cost(a) > cost(b);
  });
  return blocks;
}

std::vector<Tensor> matrices(TensorList list) {
  std::vector<Tensor> out;
  for (const Tensor& t : list) out.push_back(as_matrix(t));
  return out;
}

}  // namespace

// Few blocks are cut by columns too, so that both their rows and their weights are shared out.
template <class T>
void embed_rows(const std::vector<Tensor>& x, const std::function<const void*(int64_t)>& packed, TensorList biases,
                int64_t d, T* v) {
  const DenseKernels<T>& k = dense<T>();
  const std::vector<RowBlock> blocks = blocks_of(x);
  int64_t scratch = 0;
  for (const Tensor& t : x) scratch = std::max(scratch, k.linear_scratch(t.size(1), d));
  const int64_t parts =
      blocks.size() < 8 ? std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), d / k.panel)) : 1;
  const int64_t step = ((d + k.panel - 1) / k.panel + parts - 1) / parts * k.panel;
  parallel_tasks(int64_t(blocks.size()) * parts, scratch, [&](int64_t i, char* own) {
    const RowBlock& at = blocks[i / parts];
    const int64_t begin = std::min(i % parts * step, d), n = std::min(d, begin + step) - begin;
    const Tensor& from = x[at.modality];
    k.linear({at.rows, n, from.size(1)}, {data<T>(from) + at.row * from.stride(0), from.stride(0)},
             static_cast<const char*>(packed(at.modality)) + k.packed_at(from.size(1), begin),
             biases.empty() ? nullptr : data<Acc<T>>(biases[at.modality]) + begin, {v + at.to * d + begin, d}, own);
  });
}

template <class T>
void embed_weight_jobs(const std::vector<Tensor>& x, const T* d_v, int64_t d, TensorList weights, TensorList biases,
                       bool add, std::vector<OuterJob<T>>& jobs) {
  for (size_t m = 0; m < x.size(); m++) {
    const int64_t rows = x[m].size(0);
    jobs.push_back({d, x[m].size(1), d_v, d, data<T>(x[m]), x[m].stride(0), 0, rows, data<Acc<T>>(weights[m]),
                    data<Acc<T>>(biases[m]), add});
    d_v += rows * d;
  }
}

#define HHMPN_INSTANTIATE(T)                                                                                   \
  template void embed_rows(const std::vector<Tensor>&, const std::function<const void*(int64_t)>&, TensorList, \
                           int64_t, T*);                                                                       \
  template void embed_weight_jobs(const std::vector<Tensor>&, const T*, int64_t, TensorList, TensorList, bool, \
                                  std::vector<OuterJob<T>>&);
HHMPN_INSTANTIATE(float)
HHMPN_INSTANTIATE(double)
HHMPN_INSTANTIATE(bf16)
#undef HHMPN_INSTANTIATE

namespace {

int64_t rows_of(TensorList xs) {
  int64_t rows = 0;
  for (const Tensor& x : xs) rows += x.size(0);
  return rows;
}

struct Embed {
  std::vector<Tensor> xs, weights, biases;
  template <class V>
  void each(V& v) {
    v.rows("xs", xs), v.weight("weights", weights), v.weight("biases", biases);
  }
};

struct Nodes {
  Tensor v;
  template <class V>
  void each(V& visitor) {
    visitor.exact("v", v);
  }
};

struct EmbedBack {
  Tensor d_v;
  Embed in;
  Needs needs;
  template <class V>
  void each(V& v) {
    v.data("d_v", d_v), in.each(v);
  }
};

Nodes embed(const Embed& in, bool) {
  embed_check("embed", in.xs, in.weights, in.biases);
  const Tensor v = pooled_empty({rows_of(in.xs), in.weights[0].size(0)}, in.xs[0].options());
  const std::vector<Tensor> x = matrices(in.xs), w = matrices(in.weights);
  std::vector<Tensor> b;
  for (const Tensor& t : in.biases)
    b.push_back(t.to(v.scalar_type()).to(accumulate_dtype(v.scalar_type())).contiguous());
  with_dtype(v.scalar_type(), "embed", [&](auto type) {
    PackedWeights<decltype(type)> packed;
    for (const Tensor& t : w) packed.add(t, 0, t.size(0), t.size(1), true);
    packed.pack();
    embed_rows(x, [&](int64_t m) { return packed[m]; }, b, v.size(1), data<decltype(type)>(v));
  });
  return {v};
}

// The gradients of those inputs that ask for one.
template <class T>
void embed_backward_rows(const Embed& in, const Tensor& g, const std::vector<bool>& need, Embed& to) {
  const std::vector<Tensor> x = matrices(in.xs), w = matrices(in.weights);
  const int64_t d = w.front().size(0);
  const DenseKernels<T>& k = dense<T>();
  int64_t scratch = 0;
  for (const Tensor& t : x) scratch = std::max(scratch, k.linear_scratch(d, t.size(1)));
  to.xs.resize(x.size());
  for (size_t m = 0; m < x.size(); m++)
    if (need[m]) to.xs[m] = pooled_empty(x[m].sizes(), g.options());
  std::vector<RowBlock> blocks;
  for (const RowBlock& b : blocks_of(x))
    if (need[size_t(b.modality)]) blocks.push_back(b);
  PackedWeights<T> packed;
  for (const Tensor& t : w) packed.add(t, 0, t.size(0), t.size(1), false);
  packed.pack();
  parallel_tasks(int64_t(blocks.size()), scratch, [&](int64_t i, char* own) {
    const RowBlock& at = blocks[i];
    const int64_t e = x[at.modality].size(1);
    k.linear({at.rows, e, d}, {data<T>(g) + at.to * d, d}, packed[at.modality], nullptr,
             {data<T>(to.xs[at.modality]) + at.row * e, e}, own);
  });
}

Embed embed_backward(const EmbedBack& back) {
  const Embed& in = back.in;
  embed_check("embed_backward", in.xs, in.weights, in.biases);
  const int64_t d = in.weights[0].size(0);
  const Tensor g = back.d_v.contiguous();
  const std::vector<Tensor> x = matrices(in.xs);
  const auto wide = g.options().dtype(accumulate_dtype(g.scalar_type()));
  Embed to;
  for (const Tensor& t : in.weights)
    to.weights.push_back(pooled_empty(t.sizes(), wide)), to.biases.push_back(pooled_empty({d}, wide));
  with_dtype(g.scalar_type(), "embed_backward", [&](auto type) {
    using T = decltype(type);
    std::vector<OuterJob<T>> jobs;
    embed_weight_jobs(x, data<T>(g), d, to.weights, to.biases, false, jobs);
    run_outer_jobs<T>(jobs);
    const std::vector<bool> need = back.needs.of("xs");
    if (std::find(need.begin(), need.end(), true) != need.end()) embed_backward_rows<T>(in, g, need, to);
  });
  for (std::vector<Tensor>* list : {&to.weights, &to.biases})
    for (Tensor& t : *list) t = t.to(in.weights[0].scalar_type());
  return to;
}

HHMPN_OP(embed, embed, embed_backward)

}  // namespace

Tensor embed_packed(TensorList xs, TensorList packed, TensorList biases) {
  const int64_t d = biases[0].size(0);
  Tensor v = pooled_empty({rows_of(xs), d}, xs[0].options());
  with_dtype(v.scalar_type(), "infer", [&](auto type) {
    using T = decltype(type);
    for (size_t m = 0; m < xs.size(); m++)
      packed_matrices("embedding", packed[m], 1, dense<T>().packed_bytes(xs[m].size(1), d));
    embed_rows<T>(matrices(xs), [&](int64_t m) { return packed[m].const_data_ptr(); }, biases, d, data<T>(v));
  });
  return v;
}

}  // namespace hhmpn
