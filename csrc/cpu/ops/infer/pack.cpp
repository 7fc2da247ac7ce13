// pack: weights as the operands of the kernels' products, for this process only; the layout depends on the instruction set.
#include "base/dense.h"
#include "host/tensors.h"
#include "host/threads.h"
#include "host/utilities.h"

namespace hhmpn {

using at::Tensor;

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

int64_t pack_bytes(int64_t rows, int64_t columns, bool transposed, at::ScalarType dtype) {
  int64_t bytes = 0;
  with_dtype(dtype, "pack", [&](auto type) {
    bytes = transposed ? dense<decltype(type)>().packed_bytes(columns, rows)
                       : dense<decltype(type)>().packed_bytes(rows, columns);
  });
  return bytes;
}

}  // namespace hhmpn
