// What every host file needs of torch: dtype dispatch, row-major views, typed pointers, calls through the dispatcher.
#pragma once
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "base/isa.h"
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

inline Dropout make_dropout(const char* op, double p, const at::Tensor& rng) {
  TORCH_CHECK_VALUE(p >= 0 && p <= 1, op, ": dropout is ", p, "; expected 0 <= dropout <= 1.");
  Dropout d{};
  if (p == 0) return d;
  TORCH_CHECK_VALUE(rng.scalar_type() == at::kLong && rng.numel() == 2 && rng.is_contiguous(), op, ": rng is ",
                    rng.scalar_type(), " of shape ", rng.sizes(),
                    "; expected contiguous int64 of shape (2,): seed and step.");
  const int64_t* r = rng.const_data_ptr<int64_t>();
  const double words = std::nearbyint(p * 4294967296.0);
  d.seed_lo = uint32_t(uint64_t(r[0]));
  d.seed_hi = uint32_t(uint64_t(r[0]) >> 32);
  d.step = uint32_t(uint64_t(r[1]));
  d.threshold = uint32_t(words < 4294967295.0 ? words : 4294967295.0);
  d.scale = p < 1 ? 1.0 / (1.0 - p) : 0.0;
  d.on = true;
  return d;
}

template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").template typed<Signature>();
}

// Under autocast every floating input is cast to the autocast dtype, float64 included in nothing: it stays.
inline at::Tensor autocast_one(const at::Tensor& t) {
  return t.defined() ? at::autocast::cached_cast(at::autocast::get_autocast_dtype(at::kCPU), t, at::kCPU) : t;
}
inline std::vector<at::Tensor> autocast_all(at::TensorList list) {
  std::vector<at::Tensor> cast;
  for (const at::Tensor& t : list) cast.push_back(autocast_one(t));
  return cast;
}
// Weights that are all float32 stay so beside bfloat16 rows: they are rounded where they are packed, and so is no gradient.
// Units without the bf16 product pack floats as they are: there every input is rounded first, for the same forward bits.
inline bool autocast_keeps(at::TensorList weights) {
  bool keeps = at::autocast::get_autocast_dtype(at::kCPU) == at::kBFloat16 && isa() == Isa::avx512_bf16;
  for (const at::Tensor& t : weights) keeps = keeps && (!t.defined() || t.scalar_type() == at::kFloat);
  return keeps;
}

// The dtype of an op's weights: the rows' own or, for bfloat16 rows, float32.
inline at::ScalarType weight_dtype(const at::Tensor& weight, at::ScalarType rows) {
  return weight.scalar_type() == accumulate_dtype(rows) ? weight.scalar_type() : rows;
}

inline bool any_requires_grad(at::TensorList list) {
  if (!at::GradMode::is_enabled()) return false;
  for (const at::Tensor& t : list)
    if (t.defined() && t.requires_grad()) return true;
  return false;
}

}  // namespace hhmpn
