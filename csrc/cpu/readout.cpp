// readout and joint_bce: host side, gradients, autocast (readout.h holds the equations of the first).
//
//   joint_bce   J = BCE(logits[T-1]) + lambda sum_{t<T-1} BCE(logits[t]), mean over labels and samples          (Eqs 18-20)
//               with y targets, p label weights: (1 - y) x + (1 + (p - 1) y) log(1 + e^-x); its gradient comes with it
#include "readout.h"

#include <cmath>

#include "parallel.h"
#include "scratch.h"
#include "torch_util.h"

namespace hhmpn {
namespace {

using at::Tensor;
using at::TensorList;
using Optional = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Three = std::tuple<Tensor, Tensor, Tensor>;

Optional some(const Tensor& t) { return t.defined() ? Optional(t) : Optional(); }

template <class T>
ReadoutArgs<T> readout_args(const Tensor& u, const Tensor& present, const Optional& wl, const Tensor& wo) {
  ReadoutArgs<T> r{};
  r.modalities = u.size(0);
  r.samples = u.size(1);
  r.labels = u.size(2);
  r.dim = u.size(3);
  r.u = data<T>(u);
  r.present = present.const_data_ptr<bool>();
  r.wl = wl ? data<T>(*wl) : nullptr;
  r.wo = data<T>(wo);
  return r;
}

void check(const Tensor& u, const Tensor& present, const Optional& wl, const Tensor& wo) {
  TORCH_CHECK_VALUE(u.dim() == 4, "readout: u is ", u.scalar_type(), " of shape ", u.sizes(), "; expected (M, B, L, d).");
  TORCH_CHECK_VALUE(present.sizes() == u.sizes().slice(0, 2) && present.scalar_type() == at::kBool, "readout: present is ",
                    present.scalar_type(), " of shape ", present.sizes(), "; expected bool of shape ", u.sizes().slice(0, 2), ".");
  if (wl) check_vector("readout", "wl", *wl, u.size(3), u.scalar_type());
  check_matrix("readout", "wo", wo, u.size(2), u.size(3), u.scalar_type());
}

Optional contiguous(const Optional& t) { return t ? Optional(t->contiguous()) : t; }

Three readout_forward(const Tensor& u_any, const Tensor& present_any, const Optional& wl_any, const Tensor& wo_any) {
  check(u_any, present_any, wl_any, wo_any);
  const Tensor u = u_any.contiguous(), present = present_any.contiguous(), wo = wo_any.contiguous();
  const Optional wl = contiguous(wl_any);
  Tensor fused = pooled_empty(u.sizes().slice(1), u.options()), logits = at::empty(u.sizes().slice(1, 2), u.options()),
         alpha = pooled_empty(u.sizes().slice(0, 3), u.options());
  with_dtype(u.scalar_type(), "readout", [&](auto type) {
    using T = decltype(type);
    ReadoutArgs<T> r = readout_args<T>(u, present, wl, wo);
    r.fused = data<T>(fused);
    r.logits = data<T>(logits);
    r.alpha = data<T>(alpha);
    const ReadoutKernels<T>& k = readout<T>();
    parallel_tasks((r.samples + kReadoutSamples - 1) / kReadoutSamples, k.scratch(r), [&](int64_t i, char* scratch) {
      for (int64_t b = i * kReadoutSamples; b < std::min(r.samples, (i + 1) * kReadoutSamples); b++) k.forward(r, b, scratch);
    });
  });
  return {fused, logits, alpha};
}

Three readout_backward(const Optional& d_fused, const Optional& d_logits, const Optional& d_alpha, const Tensor& u_any,
                       const Tensor& present_any, const Optional& wl_any, const Tensor& wo_any, const Tensor& fused,
                       const Tensor& alpha) {
  check(u_any, present_any, wl_any, wo_any);
  const Tensor u = u_any.contiguous(), present = present_any.contiguous(), wo = wo_any.contiguous();
  const Optional wl = contiguous(wl_any), df = contiguous(d_fused), dl = contiguous(d_logits), da = contiguous(d_alpha);
  Tensor du = pooled_empty(u.sizes(), u.options());
  const int64_t tasks = (u.size(1) + kReadoutSamples - 1) / kReadoutSamples;
  Tensor sums = at::zeros({tasks, 1 + u.size(2), u.size(3)}, u.options().dtype(accumulate_dtype(u.scalar_type())));
  with_dtype(u.scalar_type(), "readout_backward", [&](auto type) {
    using T = decltype(type);
    ReadoutArgs<T> r = readout_args<T>(u, present, wl, wo);
    r.fused = data<T>(fused);
    r.alpha = data<T>(alpha);
    r.d_fused = df ? data<T>(*df) : nullptr;
    r.d_logits = dl ? data<T>(*dl) : nullptr;
    r.d_alpha = da ? data<T>(*da) : nullptr;
    r.du = data<T>(du);
    const ReadoutKernels<T>& k = readout<T>();
    parallel_tasks(tasks, k.scratch(r), [&](int64_t i, char* scratch) {
      Acc<T>* own = data<Acc<T>>(sums) + i * (1 + r.labels) * r.dim;
      for (int64_t b = i * kReadoutSamples; b < std::min(r.samples, (i + 1) * kReadoutSamples); b++) k.backward(r, b, own, scratch);
    });
  });
  Tensor total = at::zeros(sums.sizes().slice(1), sums.options());
  for (int64_t i = 0; i < tasks; i++) total.add_(sums[i]);
  // Copies: outputs of an op must not share memory.
  return {du, wl ? total[0].to(u.scalar_type(), false, true) : at::empty({0}, u.options()),
          total.slice(0, 1).to(u.scalar_type(), false, true)};
}

using Readout = Three(const Tensor&, const Tensor&, const Optional&, const Tensor&);
using ReadoutBackward = Three(const Optional&, const Optional&, const Optional&, const Tensor&, const Tensor&, const Optional&,
                              const Tensor&, const Tensor&, const Tensor&);

struct ReadoutFunction : torch::autograd::Function<ReadoutFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& u, const Tensor& present, const Optional& wl, const Tensor& wo) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto op = find_op<Readout>("hhmpn_fast::readout");
    const auto [fused, logits, alpha] = op.call(u, present, wl, wo);
    ctx->save_for_backward({u, present, wl.value_or(Tensor()), wo, fused, alpha});
    ctx->set_materialize_grads(false);
    return {fused, logits, alpha};
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list s = ctx->get_saved_variables();
    static const auto op = find_op<ReadoutBackward>("hhmpn_fast::readout_backward");
    const auto [du, dwl, dwo] = op.call(some(grads[0]), some(grads[1]), some(grads[2]), s[0], s[1], some(s[2]), s[3], s[4], s[5]);
    return {du, Tensor(), s[2].defined() ? dwl : Tensor(), dwo};
  }
};

Three readout_autograd(const Tensor& u, const Tensor& present, const Optional& wl, const Tensor& wo) {
  if (any_requires_grad({u, wo, wl.value_or(Tensor())})) {
    const variable_list out = ReadoutFunction::apply(u, present, wl, wo);
    return {out[0], out[1], out[2]};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  static const auto op = find_op<Readout>("hhmpn_fast::readout");
  return op.call(u, present, wl, wo);
}

Three readout_autocast(const Tensor& u, const Tensor& present, const Optional& wl, const Tensor& wo) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastCPU);
  static const auto op = find_op<Readout>("hhmpn_fast::readout");
  return op.call(autocast_one(u), present, wl ? Optional(autocast_one(*wl)) : wl, autocast_one(wo));
}

// The loss and its gradient, in double whatever the dtype: a few numbers a sample.
std::tuple<Tensor, Tensor> joint_bce_forward(const Tensor& logits, const Tensor& targets, double lambda, const Optional& label_weights) {
  TORCH_CHECK_VALUE(logits.dim() == 3 && logits.size(0) >= 1 && targets.sizes() == logits.sizes().slice(1), "joint_bce: logits have shape ",
                    logits.sizes(), " and targets ", targets.sizes(), "; expected (T, B, L) with T >= 1, and (B, L).");
  TORCH_CHECK_VALUE(!label_weights || label_weights->sizes() == at::IntArrayRef({logits.size(2)}),
                    "joint_bce: label_weights have shape ", label_weights->sizes(), "; expected (", logits.size(2), ",).");
  const Tensor x = logits.to(at::kDouble).contiguous(), y = targets.to(at::kDouble).contiguous();
  const Tensor p = label_weights ? label_weights->to(at::kDouble).contiguous() : Tensor();
  Tensor grad = at::empty(x.sizes(), x.options());
  const int64_t steps = x.size(0), count = y.numel(), labels = x.size(2);
  double total = 0;
  for (int64_t t = 0; t < steps; t++) {
    const double scale = count ? (t + 1 == steps ? 1.0 : lambda) / double(count) : 0;
    const double* xs = x.const_data_ptr<double>() + t * count;
    const double* ys = y.const_data_ptr<double>();
    double* g = grad.data_ptr<double>() + t * count;
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
      const double e = std::exp(-std::fabs(xs[i])), weight = p.defined() ? 1 + (p.const_data_ptr<double>()[i % labels] - 1) * ys[i] : 1;
      const double below = (xs[i] >= 0 ? e : 1.0) / (1 + e);  // sigmoid(-x)
      sum += (1 - ys[i]) * xs[i] + weight * (std::log1p(e) + std::fmax(-xs[i], 0.0));
      g[i] = scale * ((1 - ys[i]) - weight * below);
    }
    total += scale * sum;
  }
  const at::ScalarType dtype = accumulate_dtype(logits.scalar_type());
  return {at::scalar_tensor(total, logits.options().dtype(dtype)), grad.to(logits.scalar_type())};
}

Tensor joint_bce_value(const Tensor& logits, const Tensor& targets, double lambda, const Optional& label_weights) {
  return std::get<0>(joint_bce_forward(logits, targets, lambda, label_weights));
}

// `logits` only ties the result to them, so that a second derivative raises.
Tensor joint_bce_backward(const Tensor& upstream, const Tensor& grad, const Tensor&) { return (grad * upstream).to(grad.scalar_type()); }

struct BceFunction : torch::autograd::Function<BceFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& logits, const Tensor& targets, double lambda, const Optional& label_weights) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto op = find_op<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, double, const Optional&)>(
        "hhmpn_fast::joint_bce_save");
    const auto [loss, grad] = op.call(logits, targets, lambda, label_weights);
    ctx->save_for_backward({grad, logits});
    return loss;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op = find_op<Tensor(const Tensor&, const Tensor&, const Tensor&)>("hhmpn_fast::joint_bce_backward");
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
  m.impl("readout", readout_forward);
  m.impl("readout_backward", readout_backward);
  m.impl("joint_bce", joint_bce_value);
  m.impl("joint_bce_save", joint_bce_forward);
  m.impl("joint_bce_backward", joint_bce_backward);
}
TORCH_LIBRARY_IMPL(hhmpn_fast, Autograd, m) {
  m.impl("readout", readout_autograd);
  m.impl("readout_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("joint_bce", joint_bce_autograd);
  m.impl("joint_bce_save", torch::autograd::autogradNotImplementedFallback());
  m.impl("joint_bce_backward", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(hhmpn_fast, AutocastCPU, m) { m.impl("readout", readout_autocast); }

}  // namespace hhmpn
