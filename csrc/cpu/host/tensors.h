// What every host file needs of torch: dtype dispatch, row-major views, typed pointers, checks. ATen/ATen.h costs every file
// ten seconds of compiler time: single functions come from their own headers.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "base/types.h"

namespace hhmpn {

// f(T{}) with the storage type of `dtype`.
template <class F>
void with_dtype(at::ScalarType dtype, const char* op, const F& f) {
  switch (dtype) {
    case at::kFloat:
      return f(float{});
    case at::kDouble:
      return f(double{});
    case at::kBFloat16:
      return f(bf16{});
    default:
      TORCH_CHECK_VALUE(false, op, ": found dtype ", dtype, "; expected float32, float64 or bfloat16.");
  }
}

inline at::ScalarType accumulate_dtype(at::ScalarType dtype) { return dtype == at::kBFloat16 ? at::kFloat : dtype; }

// A 2-d tensor whose rows are contiguous: itself where it is, else a copy.
inline at::Tensor as_matrix(const at::Tensor& t) {
  return t.stride(-1) == 1 || t.size(-1) <= 1 ? (t.dim() == 2 && t.stride(0) >= t.size(1) ? t : t.contiguous())
                                              : t.contiguous();
}

template <class T>
T* data(const at::Tensor& t) {
  return t.defined() ? reinterpret_cast<T*>(t.data_ptr()) : nullptr;
}

inline void check_matrix(const char* op, const char* name, const at::Tensor& t, int64_t rows, int64_t columns,
                         at::ScalarType dtype) {
  TORCH_CHECK_VALUE(t.dim() == 2 && (rows < 0 || t.size(0) == rows) && t.size(1) == columns && t.scalar_type() == dtype,
                    op, ": ", name, " is ", t.scalar_type(), " of shape ", t.sizes(), "; expected ", dtype,
                    " of shape (", rows < 0 ? std::string("*") : std::to_string(rows), ", ", columns, ").");
}
inline void check_vector(const char* op, const char* name, const at::Tensor& t, int64_t count, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(t.dim() == 1 && t.size(0) == count && t.scalar_type() == dtype, op, ": ", name, " is ",
                    t.scalar_type(), " of shape ", t.sizes(), "; expected ", dtype, " of shape (", count, ",).");
}

// What a forward pass kept, before anything reads it.
inline void check_kept(const char* op, const char* name, const at::Tensor& t, int64_t count, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(t.numel() == count && t.scalar_type() == dtype, op, ": ", name, " is ", t.scalar_type(), " ",
                    t.sizes(), "; expected ", count, " of ", dtype, ", as a forward pass with keep=True leaves it.");
}

// offsets must rise from 0 to `rows`; returns the host pointer.
inline const int32_t* check_offsets(const char* op, const char* name, const at::Tensor& offsets, int64_t rows) {
  TORCH_CHECK_VALUE(
      offsets.dim() == 1 && offsets.numel() >= 1 && offsets.scalar_type() == at::kInt && offsets.is_contiguous(), op,
      ": ", name, " is ", offsets.scalar_type(), " of shape ", offsets.sizes(),
      "; expected contiguous int32 of shape (segments + 1,).");
  const int32_t* o = offsets.const_data_ptr<int32_t>();
  const int64_t segments = offsets.numel() - 1;
  bool rises = o[0] == 0 && o[segments] == rows;
  for (int64_t i = 0; i < segments && rises; i++) rises = o[i] <= o[i + 1];
  TORCH_CHECK_VALUE(rises, op, ": ", name, " runs from ", o[0], " to ", o[segments],
                    "; expected it never to fall and to run from 0 to ", rows, ".");
  return o;
}

// The dtype of an op's weights: the rows' own or, for bfloat16 rows, float32.
inline at::ScalarType weight_dtype(const at::Tensor& weight, at::ScalarType rows) {
  return weight.scalar_type() == accumulate_dtype(rows) ? weight.scalar_type() : rows;
}

}  // namespace hhmpn
