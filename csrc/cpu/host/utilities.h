// What the library offers beside its ops.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>

namespace hhmpn {

// 64 bits of what tensors hold (host/digest.cpp).
int64_t digest(std::vector<at::Tensor> tensors);

// Every matrix (..., rows, columns) as the operand of x W^T (transposed) or of x W, and the bytes of one (ops/infer/pack.cpp).
at::Tensor pack(const at::Tensor& weights, bool transposed);
int64_t pack_bytes(int64_t rows, int64_t columns, bool transposed, at::ScalarType dtype);

}  // namespace hhmpn
