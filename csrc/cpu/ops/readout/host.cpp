// readout: host side, gradients, autocast (kernels.h holds the equations).
#include "ops/readout/kernels.h"

#include "host/threads.h"
#include "host/memory.h"
#include "host/tensors.h"

namespace hhmpn {

using at::Tensor;
using at::TensorList;
using Optional = std::optional<Tensor>;

namespace {

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
  TORCH_CHECK_VALUE(u.dim() == 4, "readout: u is ", u.scalar_type(), " of shape ", u.sizes(),
                    "; expected (M, B, L, d).");
  TORCH_CHECK_VALUE(present.sizes() == u.sizes().slice(0, 2) && present.scalar_type() == at::kBool,
                    "readout: present is ", present.scalar_type(), " of shape ", present.sizes(),
                    "; expected bool of shape ", u.sizes().slice(0, 2), ".");
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
      for (int64_t b = i * kReadoutSamples; b < std::min(r.samples, (i + 1) * kReadoutSamples); b++)
        k.forward(r, b, scratch);
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
    r.d_u = data<T>(du);
    const ReadoutKernels<T>& k = readout<T>();
    parallel_tasks(tasks, k.scratch(r), [&](int64_t i, char* scratch) {
      Acc<T>* own = data<Acc<T>>(sums) + i * (1 + r.labels) * r.dim;
      for (int64_t b = i * kReadoutSamples; b < std::min(r.samples, (i + 1) * kReadoutSamples); b++)
        k.backward(r, b, own, scratch);
    });
  });
  Tensor total = at::zeros(sums.sizes().slice(1), sums.options());
  for (int64_t i = 0; i < tasks; i++) total.add_(sums[i]);
  // Copies: outputs of an op must not share memory.
  return {du, wl ? total[0].to(u.scalar_type(), false, true) : at::empty({0}, u.options()),
          total.slice(0, 1).to(u.scalar_type(), false, true)};
}

using Readout = Three(const Tensor&, const Tensor&, const Optional&, const Tensor&);
using ReadoutBackward = Three(const Optional&, const Optional&, const Optional&, const Tensor&, const Tensor&,
                              const Optional&, const Tensor&, const Tensor&, const Tensor&);

struct ReadoutFunction : torch::autograd::Function<ReadoutFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& u, const Tensor& present, const Optional& wl,
                               const Tensor& wo) {
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
    const auto [du, dwl, dwo] =
        op.call(some(grads[0]), some(grads[1]), some(grads[2]), s[0], s[1], some(s[2]), s[3], s[4], s[5]);
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

}  // namespace

TORCH_LIBRARY_IMPL(hhmpn_fast, CPU, m) {
  m.impl("readout", readout_forward);
  m.impl("readout_backward", readout_backward);
}
TORCH_LIBRARY_IMPL(hhmpn_fast, Autograd, m) {
  m.impl("readout", readout_autograd);
  m.impl("readout_backward", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(hhmpn_fast, AutocastCPU, m) { m.impl("readout", readout_autocast); }

}  // namespace hhmpn
