// joint_bce: host side, gradient (sum.h holds the equations).
#include "ops/joint_bce/sum.h"

#include <cmath>

namespace hhmpn {

using at::Tensor;
using Optional = std::optional<Tensor>;

void joint_bce_check(const char* op, at::IntArrayRef logits, const Tensor& targets, const Optional& label_weights) {
  TORCH_CHECK_VALUE(logits.size() == 3 && logits[0] >= 1 && targets.sizes() == logits.slice(1), op,
                    ": logits have shape ", logits, " and targets ", targets.sizes(),
                    "; expected (T, B, L) with T >= 1, and (B, L).");
  TORCH_CHECK_VALUE(!label_weights || label_weights->sizes() == logits.slice(2), op, ": label_weights have shape ",
                    label_weights->sizes(), "; expected (", logits[2], ",).");
}

double joint_bce_sum(const Tensor& logits, const Tensor& targets, double lambda, const Optional& label_weights,
                     int64_t terms, const Tensor& grad) {
  const Tensor x = logits.to(at::kDouble).contiguous(), y = targets.to(at::kDouble).contiguous();
  const Tensor p = label_weights ? label_weights->to(at::kDouble).contiguous() : Tensor();
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

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The loss and its gradient, in double whatever the dtype: a few numbers a sample.
std::tuple<Tensor, Tensor> joint_bce_forward(const Tensor& logits, const Tensor& targets, double lambda,
                                             const Optional& label_weights) {
  joint_bce_check("joint_bce", logits.sizes(), targets, label_weights);
  Tensor grad = at::empty(logits.sizes(), logits.options());
  const double total = joint_bce_sum(logits, targets, lambda, label_weights, targets.numel(), grad);
  return {at::scalar_tensor(total, logits.options().dtype(accumulate_dtype(logits.scalar_type()))), grad};
}

Tensor joint_bce_value(const Tensor& logits, const Tensor& targets, double lambda, const Optional& label_weights) {
  return std::get<0>(joint_bce_forward(logits, targets, lambda, label_weights));
}

// `logits` only ties the result to them, so that a second derivative raises.
Tensor joint_bce_backward(const Tensor& upstream, const Tensor& grad, const Tensor&) {
  return (grad * upstream).to(grad.scalar_type());
}

struct BceFunction : torch::autograd::Function<BceFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& logits, const Tensor& targets, double lambda,
                        const Optional& label_weights) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto op = find_op<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, double, const Optional&)>(
        "hhmpn_fast::joint_bce_save");
    const auto [loss, grad] = op.call(logits, targets, lambda, label_weights);
    ctx->save_for_backward({grad, logits});
    return loss;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op =
        find_op<Tensor(const Tensor&, const Tensor&, const Tensor&)>("hhmpn_fast::joint_bce_backward");
    const variable_list saved = ctx->get_saved_variables();
    return {op.call(grads[0], saved[0], saved[1]), Tensor(), Tensor(), Tensor()};
  }
};

Tensor joint_bce_autograd(const Tensor& logits, const Tensor& targets, double lambda, const Optional& label_weights) {
  if (any_requires_grad({logits})) return BceFunction::apply(logits, targets, lambda, label_weights);
  at::AutoDispatchBelowADInplaceOrView guard;
  static const auto op =
      find_op<Tensor(const Tensor&, const Tensor&, double, const Optional&)>("hhmpn_fast::joint_bce");
  return op.call(logits, targets, lambda, label_weights);
}

}  // namespace

TORCH_LIBRARY_IMPL(hhmpn_fast, CPU, m) {
  m.impl("joint_bce", joint_bce_value);
  m.impl("joint_bce_save", joint_bce_forward);
  m.impl("joint_bce_backward", joint_bce_backward);
}
TORCH_LIBRARY_IMPL(hhmpn_fast, Autograd, m) {
  m.impl("joint_bce", joint_bce_autograd);
  m.impl("joint_bce_save", torch::autograd::autogradNotImplementedFallback());
  m.impl("joint_bce_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace hhmpn
