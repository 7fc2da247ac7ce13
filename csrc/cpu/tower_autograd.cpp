// Gradient and autocast registration of tower.
#include "torch_util.h"

namespace hhmpn {
namespace {

using at::Tensor;
using at::TensorList;
using Optional = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Forward = Tensor(const Tensor&, const Tensor&, const Tensor&, TensorList, TensorList, TensorList, const Optional&,
                       const Optional&, int64_t, double);
using Save = std::vector<Tensor>(const Tensor&, const Tensor&, const Tensor&, TensorList, TensorList, TensorList,
                                 const Optional&, const Optional&, int64_t, double);
using Backward = std::vector<Tensor>(const Tensor&, TensorList, const Tensor&, const Tensor&, const Tensor&, TensorList,
                                     TensorList, TensorList, const Optional&, const Optional&, int64_t, double, bool);

struct TowerFunction : torch::autograd::Function<TowerFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& z, TensorList f2l, TensorList l2l, TensorList readout,
                        const Tensor& offsets, const Tensor& present, const Optional& mask, const Optional& rng,
                        int64_t steps, double dropout) {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto op = find_op<Save>("hhmpn_fast::tower_save");
    std::vector<Tensor> out = op.call(z, offsets, present, f2l, l2l, readout, mask, rng, steps, dropout);
    const Tensor logits = out[0];
    out[0] = z;
    for (TensorList list : {f2l, l2l, readout}) out.insert(out.end(), list.begin(), list.end());
    for (const Tensor& t : {offsets, present, mask.value_or(Tensor()), rng.value_or(Tensor())}) out.push_back(t);
    ctx->save_for_backward(out);
    ctx->saved_data["sizes"] = std::vector<int64_t>{int64_t(f2l.size()), int64_t(l2l.size()), int64_t(readout.size())};
    ctx->saved_data["steps"] = steps;
    ctx->saved_data["dropout"] = dropout;
    ctx->saved_data["need_z"] = z.requires_grad();
    return logits;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const TensorList all(saved);
    const std::vector<int64_t> sizes = ctx->saved_data["sizes"].toIntVector();
    const size_t a = size_t(sizes[0]), b = size_t(sizes[1]), c = size_t(sizes[2]), aux = 7 + a + b + c;
    const auto optional = [](const Tensor& t) { return t.defined() ? Optional(t) : Optional(); };
    static const auto op = find_op<Backward>("hhmpn_fast::tower_backward");
    const bool need_z = ctx->saved_data["need_z"].toBool();
    const std::vector<Tensor> g =
        op.call(grads[0], all.slice(1, 6), all[0], all[aux], all[aux + 1], all.slice(7, a), all.slice(7 + a, b),
                all.slice(7 + a + b, c), optional(all[aux + 2]), optional(all[aux + 3]),
                ctx->saved_data["steps"].toInt(), ctx->saved_data["dropout"].toDouble(), need_z);
    // z, f2l, l2l, readout (u0, wo[, wl]), then the six arguments that have none
    variable_list out = {need_z ? g[0] : Tensor()};
    out.insert(out.end(), g.begin() + 4, g.end());
    for (size_t i = 0; i < c; i++) out.push_back(g[1 + i]);
    out.resize(out.size() + 6);
    return out;
  }
};

Tensor tower_autograd(const Tensor& z, const Tensor& offsets, const Tensor& present, TensorList f2l, TensorList l2l,
                      TensorList readout, const Optional& mask, const Optional& rng, int64_t steps, double dropout) {
  if (any_requires_grad(z) || any_requires_grad(f2l) || any_requires_grad(l2l) || any_requires_grad(readout))
    return TowerFunction::apply(z, f2l, l2l, readout, offsets, present, mask, rng, steps, dropout);
  at::AutoDispatchBelowADInplaceOrView guard;
  static const auto op = find_op<Forward>("hhmpn_fast::tower");
  return op.call(z, offsets, present, f2l, l2l, readout, mask, rng, steps, dropout);
}

Tensor tower_autocast(const Tensor& z, const Tensor& offsets, const Tensor& present, TensorList f2l, TensorList l2l,
                      TensorList readout, const Optional& mask, const Optional& rng, int64_t steps, double dropout) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastCPU);
  static const auto op = find_op<Forward>("hhmpn_fast::tower");
  if (autocast_keeps(f2l) && autocast_keeps(l2l) && autocast_keeps(readout))
    return op.call(autocast_one(z), offsets, present, f2l, l2l, readout, mask, rng, steps, dropout);
  return op.call(autocast_one(z), offsets, present, autocast_all(f2l), autocast_all(l2l), autocast_all(readout), mask,
                 rng, steps, dropout);
}

}  // namespace

TORCH_LIBRARY_IMPL(hhmpn_fast, Autograd, m) {
  m.impl("tower", tower_autograd);
  m.impl("tower_save", torch::autograd::autogradNotImplementedFallback());
  m.impl("tower_backward", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(hhmpn_fast, AutocastCPU, m) { m.impl("tower", tower_autocast); }

}  // namespace hhmpn
