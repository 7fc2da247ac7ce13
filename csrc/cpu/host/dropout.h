// One op call's dropout: as schemas have it, and as kernels do.
#pragma once
#include <cmath>

#include "base/types.h"
#include "adapter/record.h"

namespace hhmpn {

// No rng: no dropout.
struct DropoutInput {
  double p = 0;
  at::Tensor rng;
  template <class V>
  void each(V& v) {
    v.data("p", p), v.data("rng", rng);
  }
};

inline Dropout make_dropout(const char* op, const DropoutInput& input) {
  const double p = input.p;
  const at::Tensor& rng = input.rng;
  TORCH_CHECK_VALUE(p >= 0 && p <= 1, op, ": dropout is ", p, "; expected 0 <= dropout <= 1.");
  Dropout d{};
  if (p == 0) return d;
  TORCH_CHECK_VALUE(rng.defined(), op, ": dropout is ", p, " without rng; expected int64 (2,): seed and step.");
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

}  // namespace hhmpn
