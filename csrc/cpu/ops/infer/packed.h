// The phases of infer, each on weights that `pack` packed once: x W^T with W (out, in), or x W for the queries; biases in
// accumulators.
#pragma once
#include "ops/tower/inputs.h"

namespace hhmpn {

// xs[m] (N_m, e_m), packed (d, e_m) matrices, biases (d) -> v (N, d)
at::Tensor embed_packed(at::TensorList xs, at::TensorList packed, at::TensorList biases);

// packed: one layer, `hidden` of M matrices -> z (N, d)
at::Tensor f2f_packed(const at::Tensor& v, const at::Tensor& offsets, int64_t modalities, const BlockWeights& packed);

// packed: matrices packed, S or T sets of each; the readout's as they are -> logits (T, B, L)
at::Tensor tower_packed(const at::Tensor& z, const TowerBatch& batch, const LabelWeights& packed);

// The first of `count` packed matrices of `bytes` each.
inline const char* packed_matrices(const char* name, const at::Tensor& t, int64_t count, int64_t bytes) {
  TORCH_CHECK_VALUE(t.scalar_type() == at::kByte && t.is_contiguous() && t.numel() == count * bytes, "infer: packed ",
                    name, " is ", t.scalar_type(), " ", t.sizes(), "; expected ", count, " x ", bytes,
                    " bytes of `pack` for these rows.");
  return reinterpret_cast<const char*>(t.const_data_ptr());
}

template <class T>
const Acc<T>* packed_bias(const char* name, const at::Tensor& t, int64_t count) {
  TORCH_CHECK_VALUE(t.is_contiguous() && t.numel() == count && size_t(t.element_size()) == sizeof(Acc<T>),
                    "infer: ", name, " is ", t.scalar_type(), " ", t.sizes(), "; expected ", count,
                    " accumulators of these rows.");
  return data<Acc<T>>(t);
}

}  // namespace hhmpn
