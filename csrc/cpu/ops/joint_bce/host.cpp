// Host side of joint_bce (sum.h holds the equations).
#include "ops/joint_bce/sum.h"

#include <ATen/ops/scalar_tensor.h>

#include <cmath>

#include "adapter/op.h"

namespace hhmpn {

using at::Tensor;

void joint_bce_check(const char* op, at::IntArrayRef sizes, const Tensor& targets, const Tensor& label_weights) {
  TORCH_CHECK_VALUE(sizes.size() == 3 && sizes[0] >= 1 && targets.sizes() == sizes.slice(1), op, ": logits have shape ",
                    sizes, " and targets ", targets.sizes(), "; expected (T, B, L) with T >= 1, and (B, L).");
  TORCH_CHECK_VALUE(!label_weights.defined() || label_weights.sizes() == sizes.slice(2), op,
                    ": label_weights have shape ", label_weights.sizes(), "; expected (", sizes[2], ",).");
}

double joint_bce_sum(const Tensor& logits, const Tensor& targets, double lambda, const Tensor& label_weights,
                     int64_t terms, const Tensor& grad) {
  const Tensor x = logits.to(at::kDouble).contiguous(), y = targets.to(at::kDouble).contiguous();
  const Tensor p = label_weights.defined() ? label_weights.to(at::kDouble).contiguous() : Tensor();
  const Tensor wide = at::empty(x.sizes(), x.options());
  const int64_t steps = x.size(0), count = y.numel(), labels = x.size(2);
  double total = 0;
  for (int64_t t = 0; t < steps; t++) {
    const double scale = count ? (t + 1 == steps ? 1.0 : lambda) / double(terms) : 0;
    const double* xs = x.const_data_ptr<double>() + t * count;
    const double* ys = y.const_data_ptr<double>();
    double* g = wide.data_ptr<double>() + t * count;
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
      const double e = std::exp(-std::fabs(xs[i])),
                   weight = p.defined() ? 1 + (p.const_data_ptr<double>()[i % labels] - 1) * ys[i] : 1;
      const double below = (xs[i] >= 0 ? e : 1.0) / (1 + e);  // sigmoid(-x)
      sum += (1 - ys[i]) * xs[i] + weight * (std::log1p(e) + std::fmax(-xs[i], 0.0));
      g[i] = scale * ((1 - ys[i]) - weight * below);
    }
    total += scale * sum;
  }
  grad.copy_(wide);
  return total;
}

namespace {

struct JointBce {
  Tensor logits, targets, label_weights;
  double intermediate_weight;
  template <class V>
  void each(V& v) {
    v.exact("logits", logits), v.data("targets", targets), v.data("intermediate_weight", intermediate_weight);
    v.data("label_weights", label_weights);
  }
};

struct JointBceResult {
  Tensor loss, d_logits;
  template <class V>
  void each(V& v) {
    v.exact("loss", loss), v.kept("d_logits", d_logits);
  }
};

// The loss and its gradient, in double whatever the dtype: a few numbers a sample.
JointBceResult joint_bce(const JointBce& in, bool) {
  joint_bce_check("joint_bce", in.logits.sizes(), in.targets, in.label_weights);
  const Tensor d_logits = at::empty(in.logits.sizes(), in.logits.options());
  const double total =
      joint_bce_sum(in.logits, in.targets, in.intermediate_weight, in.label_weights, in.targets.numel(), d_logits);
  return {at::scalar_tensor(total, in.logits.options().dtype(accumulate_dtype(in.logits.scalar_type()))), d_logits};
}

HHMPN_SCALED_OP(joint_bce, joint_bce)

}  // namespace
}  // namespace hhmpn
