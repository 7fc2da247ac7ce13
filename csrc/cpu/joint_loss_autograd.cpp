// Gradient and autocast registration of joint_loss: the forward pass has the gradients, the backward pass hands them out.
#include "torch_util.h"

namespace hhmpn {
namespace {

using at::Tensor;
using at::TensorList;
using Optional = std::optional<Tensor>;
using Two = std::tuple<Tensor, Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Forward = Two(TensorList, const Tensor&, const Tensor&, const Tensor&, const Optional&, TensorList, TensorList,
                    TensorList, TensorList, TensorList, const Optional&, const Optional&, at::IntArrayRef, int64_t,
                    double, double, int64_t);
using Save = std::vector<Tensor>(TensorList, const Tensor&, const Tensor&, const Tensor&, const Optional&, TensorList,
                                 TensorList, TensorList, TensorList, TensorList, const Optional&, const Optional&,
                                 at::IntArrayRef, int64_t, double, double, int64_t);
using Backward = std::vector<Tensor>(const Tensor&, TensorList, TensorList);

struct JointLossFunction : torch::autograd::Function<JointLossFunction> {
  static variable_list forward(AutogradContext* ctx, TensorList embed, TensorList f2f, TensorList f2l, TensorList l2l,
                               TensorList readout, TensorList xs, const Tensor& offsets, const Tensor& present,
                               const Tensor& targets, const Optional& label_weights, const Optional& mask,
                               const Optional& rng, std::vector<int64_t> sites, int64_t steps,
                               double intermediate_weight, double dropout, int64_t budget) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto op = find_op<Save>("hhmpn_fast::joint_loss_save");
    std::vector<Tensor> out = op.call(xs, offsets, present, targets, label_weights, embed, f2f, f2l, l2l, readout, mask,
                                      rng, sites, steps, intermediate_weight, dropout, budget);
    const Tensor loss = out[0], logits = out[1];
    out.erase(out.begin(), out.begin() + 2);
    ctx->saved_data["count"] = int64_t(out.size());
    ctx->saved_data["inputs"] = int64_t(xs.size());
    for (TensorList list : {embed, f2f, f2l, l2l, readout}) out.insert(out.end(), list.begin(), list.end());
    ctx->save_for_backward(out);
    ctx->mark_non_differentiable({logits});
    return {loss, logits};
  }

  // The gradients themselves for an upstream gradient of 1, which is what `loss.backward()` has: no copy of every weight's size.
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list saved = ctx->get_saved_variables();
    const size_t count = size_t(ctx->saved_data["count"].toInt()), inputs = size_t(ctx->saved_data["inputs"].toInt());
    const bool traced = grads[0].key_set().has(c10::DispatchKey::Python);
    variable_list out(saved.begin(), saved.begin() + int64_t(count));
    if (traced || at::GradMode::is_enabled() || grads[0].item<double>() != 1.0) {
      static const auto op = find_op<Backward>("hhmpn_fast::joint_loss_backward");
      out = op.call(grads[0], out, TensorList(saved).slice(count));
    }
    out.resize(count + inputs + 11);  // the features and what has no gradient
    return out;
  }
};

Two joint_loss_autograd(TensorList xs, const Tensor& offsets, const Tensor& present, const Tensor& targets,
                        const Optional& label_weights, TensorList embed, TensorList f2f, TensorList f2l, TensorList l2l,
                        TensorList readout, const Optional& mask, const Optional& rng, at::IntArrayRef sites,
                        int64_t steps, double intermediate_weight, double dropout, int64_t budget) {
  TORCH_CHECK_VALUE(!any_requires_grad(xs),
                    "joint_loss: an input requires a gradient; expected features that need none.");
  bool any = false;
  for (TensorList list : {embed, f2f, f2l, l2l, readout}) any = any || any_requires_grad(list);
  if (any) {
    const variable_list out =
        JointLossFunction::apply(embed, f2f, f2l, l2l, readout, xs, offsets, present, targets, label_weights, mask, rng,
                                 sites.vec(), steps, intermediate_weight, dropout, budget);
    return {out[0], out[1]};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  static const auto op = find_op<Forward>("hhmpn_fast::joint_loss");
  return op.call(xs, offsets, present, targets, label_weights, embed, f2f, f2l, l2l, readout, mask, rng, sites, steps,
                 intermediate_weight, dropout, budget);
}

Two joint_loss_autocast(TensorList xs, const Tensor& offsets, const Tensor& present, const Tensor& targets,
                        const Optional& label_weights, TensorList embed, TensorList f2f, TensorList f2l, TensorList l2l,
                        TensorList readout, const Optional& mask, const Optional& rng, at::IntArrayRef sites,
                        int64_t steps, double intermediate_weight, double dropout, int64_t budget) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastCPU);
  static const auto op = find_op<Forward>("hhmpn_fast::joint_loss");
  bool keeps = true;
  for (TensorList list : {embed, f2f, f2l, l2l, readout}) keeps = keeps && autocast_keeps(list);
  const auto cast = [&](TensorList list) { return keeps ? list.vec() : autocast_all(list); };
  return op.call(autocast_all(xs), offsets, present, targets, label_weights, cast(embed), cast(f2f), cast(f2l),
                 cast(l2l), cast(readout), mask, rng, sites, steps, intermediate_weight, dropout, budget);
}

// `weights` only tie the result to them, so that a second derivative raises.
std::vector<Tensor> joint_loss_backward(const Tensor& upstream, TensorList gradients, TensorList) {
  std::vector<Tensor> out;
  for (const Tensor& g : gradients) out.push_back((g * upstream).to(g.scalar_type()));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(hhmpn_fast, CPU, m) { m.impl("joint_loss_backward", joint_loss_backward); }
TORCH_LIBRARY_IMPL(hhmpn_fast, Autograd, m) {
  m.impl("joint_loss", joint_loss_autograd);
  m.impl("joint_loss_save", torch::autograd::autogradNotImplementedFallback());
  m.impl("joint_loss_backward", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(hhmpn_fast, AutocastCPU, m) { m.impl("joint_loss", joint_loss_autocast); }

}  // namespace hhmpn
