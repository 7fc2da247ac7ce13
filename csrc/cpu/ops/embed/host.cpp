// embed: v = concatenation over m of  x_m W_m^T + b_m   (paper Eq 3: the linear embedding of every modality)
//
//   xs[m] (N_m, e_m)   weights[m] (d, e_m)   biases[m] (d)   v (N, d), N = sum N_m, modality-major
#include "ops/embed/rows.h"

#include <algorithm>

#include "ops/infer/packed.h"
#include "host/packed_weights.h"
#include "host/memory.h"
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

struct Block {
  int64_t modality, row, rows, to;
};

std::vector<Block> blocks_of(TensorList xs) {
  std::vector<Block> blocks;
  int64_t to = 0;
  for (size_t m = 0; m < xs.size(); m++) {
    const int64_t rows = xs[m].size(0);
    for (int64_t r = 0; r < rows; r += kLinearRows)
      blocks.push_back({int64_t(m), r, std::min(kLinearRows, rows - r), to + r});
    to += rows;
  }
  std::stable_sort(blocks.begin(), blocks.end(), [&](const Block& a, const Block& b) {
    const auto cost = [&](const Block& c) {
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
  const std::vector<Block> blocks = blocks_of(x);
  int64_t scratch = 0;
  for (const Tensor& t : x) scratch = std::max(scratch, k.linear_scratch(t.size(1), d));
  const int64_t parts =
      blocks.size() < 8 ? std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), d / k.panel)) : 1;
  const int64_t step = ((d + k.panel - 1) / k.panel + parts - 1) / parts * k.panel;
  parallel_tasks(int64_t(blocks.size()) * parts, scratch, [&](int64_t i, char* own) {
    const Block& at = blocks[i / parts];
    const int64_t begin = std::min(i % parts * step, d), n = std::min(d, begin + step) - begin;
    const Tensor& from = x[at.modality];
    k.linear({at.rows, n, from.size(1)}, {data<T>(from) + at.row * from.stride(0), from.stride(0)},
             static_cast<const char*>(packed(at.modality)) + k.packed_at(from.size(1), begin),
             biases.empty() ? nullptr : data<Acc<T>>(biases[at.modality]) + begin, {v + at.to * d + begin, d}, own);
  });
}

template <class T>
void embed_weight_jobs(const std::vector<Tensor>& x, const T* grad, int64_t ld, int64_t d, TensorList weights,
                       TensorList biases, bool add, std::vector<OuterJob<T>>& jobs) {
  for (size_t m = 0; m < x.size(); m++) {
    const int64_t rows = x[m].size(0);
    jobs.push_back({d, x[m].size(1), grad, ld, data<T>(x[m]), x[m].stride(0), 0, rows, data<Acc<T>>(weights[m]),
                    data<Acc<T>>(biases[m]), add});
    grad += rows * ld;
  }
}

#define HHMPN_INSTANTIATE(T)                                                                                      \
  template void embed_rows(const std::vector<Tensor>&, const std::function<const void*(int64_t)>&, TensorList,    \
                           int64_t, T*);                                                                          \
  template void embed_weight_jobs(const std::vector<Tensor>&, const T*, int64_t, int64_t, TensorList, TensorList, \
                                  bool, std::vector<OuterJob<T>>&);
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

Tensor embed(TensorList xs, TensorList weights, TensorList biases) {
  embed_check("embed", xs, weights, biases);
  Tensor v = pooled_empty({rows_of(xs), weights[0].size(0)}, xs[0].options());
  const std::vector<Tensor> x = matrices(xs), w = matrices(weights);
  std::vector<Tensor> b;
  for (const Tensor& t : biases) b.push_back(t.to(v.scalar_type()).to(accumulate_dtype(v.scalar_type())).contiguous());
  with_dtype(v.scalar_type(), "embed", [&](auto type) {
    PackedWeights<decltype(type)> packed;
    for (const Tensor& t : w) packed.add(t, 0, t.size(0), t.size(1), true);
    packed.pack();
    embed_rows(x, [&](int64_t m) { return packed[m]; }, b, v.size(1), data<decltype(type)>(v));
  });
  return v;
}

// Returns dW of every modality, then db of every modality, then dx of those that `need_dx` lists.
std::vector<Tensor> embed_backward(const Tensor& grad, TensorList xs, TensorList weights, at::IntArrayRef need_dx) {
  embed_check("embed_backward", xs, weights, {});
  const int64_t d = weights[0].size(0);
  const Tensor g = as_matrix(grad);
  const std::vector<Tensor> x = matrices(xs), w = matrices(weights);
  const auto wide = grad.options().dtype(accumulate_dtype(grad.scalar_type()));
  std::vector<Tensor> out;
  for (const Tensor& t : w) out.push_back(pooled_empty(t.sizes(), wide));
  for (size_t m = 0; m < w.size(); m++) out.push_back(pooled_empty({d}, wide));
  with_dtype(grad.scalar_type(), "embed_backward", [&](auto type) {
    using T = decltype(type);
    const DenseKernels<T>& k = dense<T>();
    std::vector<OuterJob<T>> jobs;
    const TensorList sums(out);
    embed_weight_jobs(x, data<T>(g), g.stride(0), d, sums.slice(0, x.size()), sums.slice(x.size()), false, jobs);
    run_outer_jobs<T>(jobs);
    if (need_dx.empty()) return;
    int64_t scratch = 0;
    for (const Tensor& t : x) scratch = std::max(scratch, k.linear_scratch(d, t.size(1)));
    std::vector<Tensor> dx(x.size());
    for (int64_t m : need_dx) dx[m] = pooled_empty(x[m].sizes(), grad.options());
    std::vector<Block> blocks;
    for (const Block& b : blocks_of(x))
      if (dx[b.modality].defined()) blocks.push_back(b);
    PackedWeights<T> packed;
    for (const Tensor& t : w) packed.add(t, 0, t.size(0), t.size(1), false);
    packed.pack();
    parallel_tasks(int64_t(blocks.size()), scratch, [&](int64_t i, char* own) {
      const Block& at = blocks[i];
      const int64_t e = x[at.modality].size(1);
      k.linear({at.rows, e, d}, {data<T>(g) + at.to * g.stride(0), g.stride(0)}, packed[at.modality], nullptr,
               {data<T>(dx[at.modality]) + at.row * e, e}, own);
    });
    for (int64_t m : need_dx) out.push_back(dx[m]);
  });
  for (size_t m = 0; m < 2 * w.size(); m++) out[m] = out[m].to(weights[0].scalar_type());
  return out;
}

struct EmbedFunction : torch::autograd::Function<EmbedFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, TensorList xs, TensorList weights, TensorList biases) {
    at::AutoDispatchBelowADInplaceOrView guard;
    std::vector<Tensor> saved(xs.begin(), xs.end());
    saved.insert(saved.end(), weights.begin(), weights.end());
    ctx->saved_data["bias"] = !biases.empty();
    std::vector<int64_t> need;
    for (size_t m = 0; m < xs.size(); m++)
      if (xs[m].requires_grad()) need.push_back(int64_t(m));
    ctx->saved_data["need"] = need;
    ctx->save_for_backward(saved);
    static const auto op = find_op<Tensor(TensorList, TensorList, TensorList)>("hhmpn_fast::embed");
    return op.call(xs, weights, biases);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const size_t count = saved.size() / 2;
    const bool bias = ctx->saved_data["bias"].toBool();
    const std::vector<int64_t> need = ctx->saved_data["need"].toIntVector();
    static const auto op = find_op<std::vector<Tensor>(const Tensor&, TensorList, TensorList, at::IntArrayRef)>(
        "hhmpn_fast::embed_backward");
    const TensorList all(saved);
    const std::vector<Tensor> g = op.call(grads[0], all.slice(0, count), all.slice(count), need);
    torch::autograd::variable_list out(count * (bias ? 3 : 2));
    for (size_t m = 0; m < count * (bias ? 2 : 1); m++) out[count + m] = g[m];
    for (size_t i = 0; i < need.size(); i++) out[need[i]] = g[2 * count + i];
    return out;
  }
};

Tensor embed_autograd(TensorList xs, TensorList weights, TensorList biases) {
  if (any_requires_grad(xs) || any_requires_grad(weights) || any_requires_grad(biases))
    return EmbedFunction::apply(xs, weights, biases);
  at::AutoDispatchBelowADInplaceOrView guard;
  static const auto op = find_op<Tensor(TensorList, TensorList, TensorList)>("hhmpn_fast::embed");
  return op.call(xs, weights, biases);
}

Tensor embed_autocast(TensorList xs, TensorList weights, TensorList biases) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastCPU);
  static const auto op = find_op<Tensor(TensorList, TensorList, TensorList)>("hhmpn_fast::embed");
  if (autocast_keeps(weights) && autocast_keeps(biases)) return op.call(autocast_all(xs), weights, biases);
  return op.call(autocast_all(xs), autocast_all(weights), autocast_all(biases));
}

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

TORCH_LIBRARY_IMPL(hhmpn_fast, CPU, m) {
  m.impl("embed", embed);
  m.impl("embed_backward", embed_backward);
}
TORCH_LIBRARY_IMPL(hhmpn_fast, Autograd, m) {
  m.impl("embed", embed_autograd);
  m.impl("embed_backward", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(hhmpn_fast, AutocastCPU, m) { m.impl("embed", embed_autocast); }

}  // namespace hhmpn
