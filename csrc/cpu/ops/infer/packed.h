// The phases of host.cpp, each on weights that `pack` packed once: x W^T with W (out, in), or x W for the queries A.
#pragma once
#include "host/tensors.h"

namespace hhmpn {

// xs[m] (N_m, e_m), packed (d, e_m) matrices, biases (d) in accumulators -> v (N, d)
at::Tensor embed_packed(at::TensorList xs, at::TensorList packed, at::TensorList biases);

// weights: packed A, Wv, C (M matrices), then b1, packed Wb, b2; biases in accumulators -> z (N, d)
at::Tensor f2f_packed(const at::Tensor& v, const at::Tensor& offsets, int64_t modalities, at::TensorList weights);

// f2l, l2l: [A,] Wv, Wr, b1, Wb, b2, matrices packed, S or T sets of each; readout: u0, wo[, wl] -> logits (T, B, L)
at::Tensor tower_packed(const at::Tensor& z, const at::Tensor& offsets, const at::Tensor& present, at::TensorList f2l,
                        at::TensorList l2l, at::TensorList readout, const std::optional<at::Tensor>& mask,
                        int64_t steps);

// Bytes of one packed matrix (rows, columns) for rows of `dtype`.
int64_t pack_bytes(int64_t rows, int64_t columns, bool transposed, at::ScalarType dtype);

// The first of `count` packed matrices of `bytes` each.
inline const char* packed_matrices(const char* name, const at::Tensor& t, int64_t count, int64_t bytes) {
  TORCH_CHECK_VALUE(t.scalar_type() == at::kByte && t.is_contiguous() && t.numel() == count * bytes, "infer: packed ",
                    name, " is ", t.scalar_type(), " ", t.sizes(), "; expected ", count, " x ", bytes,
                    " bytes of `pack` for these rows.");
  return reinterpret_cast<const char*>(t.const_data_ptr());
}

}  // namespace hhmpn
