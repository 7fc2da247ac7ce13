// infer: the whole forward pass, inference only, on weights packed beforehand: what a frozen model calls.
//
//   pack (..., r, c) -> bytes: every matrix as the operand of x W^T, or of x W
//   infer -> logits (T, B, L), bit for bit what embed, f2f and tower give
#include "ops/infer/packed.h"

#include "base/dense.h"
#include "host/threads.h"

namespace hhmpn {
namespace {

using at::Tensor;
using at::TensorList;

Tensor pack(const Tensor& weights, bool transposed) {
  TORCH_CHECK_VALUE(weights.dim() >= 2, "pack: weights have shape ", weights.sizes(),
                    "; expected (..., rows, columns).");
  const Tensor w = weights.contiguous();
  const int64_t r = w.size(-2), c = w.size(-1), count = r * c == 0 ? 0 : w.numel() / (r * c);
  Tensor out;
  with_dtype(w.scalar_type(), "pack", [&](auto type) {
    using T = decltype(type);
    const DenseKernels<T>& k = dense<T>();
    const int64_t bytes = pack_bytes(r, c, transposed, w.scalar_type());
    out = at::zeros({count, bytes}, at::kByte);
    parallel_tasks(count, 0, [&](int64_t i, char*) {
      k.pack(transposed ? c : r, transposed ? r : c, data<T>(w) + i * r * c, c, transposed,
             data<char>(out) + i * bytes);
    });
  });
  return out;
}

Tensor infer(TensorList xs, const Tensor& offsets, const Tensor& present, TensorList embed, TensorList f2f,
             TensorList f2l, TensorList l2l, TensorList readout, const std::optional<Tensor>& mask, int64_t steps) {
  TORCH_CHECK_VALUE(!xs.empty() && embed.size() == 2 * xs.size() && f2f.size() % 6 == 0, "infer: found ", xs.size(),
                    " inputs, ", embed.size(), " embedding and ", f2f.size(),
                    " F2F tensors; expected M, 2 M and 6 a layer.");
  std::vector<Tensor> rows;
  for (const Tensor& x : xs) rows.push_back(x.to(readout[0].scalar_type()));
  Tensor v = embed_packed(rows, embed.slice(0, xs.size()), embed.slice(xs.size()));
  for (size_t i = 0; i < f2f.size(); i += 6) v = f2f_packed(v, offsets, int64_t(xs.size()), f2f.slice(i, 6));
  return tower_packed(v, offsets, present, f2l, l2l, readout, mask, steps);
}

}  // namespace

int64_t pack_bytes(int64_t rows, int64_t columns, bool transposed, at::ScalarType dtype) {
  int64_t bytes = 0;
  with_dtype(dtype, "pack", [&](auto type) {
    bytes = transposed ? dense<decltype(type)>().packed_bytes(columns, rows)
                       : dense<decltype(type)>().packed_bytes(rows, columns);
  });
  return bytes;
}

TORCH_LIBRARY_IMPL(hhmpn_fast, CPU, m) {
  m.impl("pack", pack);
  m.impl("infer", infer);
}
TORCH_LIBRARY_IMPL(hhmpn_fast, Autograd, m) {
  m.impl("pack", torch::autograd::autogradNotImplementedFallback());
  m.impl("infer", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace hhmpn
