// The ops of F2F: checks, autograd, autocast (kernels.h holds the equations).
#include "ops/f2f/samples.h"
#include "ops/infer/packed.h"

namespace hhmpn {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

F2fBatch batch_of(const char* op, const Tensor& v, const Tensor& offsets, int64_t modalities) {
  TORCH_CHECK_VALUE(v.dim() == 2 && v.size(1) > 0, op, ": v has shape ", v.sizes(), "; expected (N, d).");
  TORCH_CHECK_VALUE(modalities >= 1 && modalities <= 64, op, ": found ", modalities, " modalities; expected 1 to 64.");
  const int64_t segments = offsets.numel() - 1;
  TORCH_CHECK_VALUE(segments >= 0 && segments % modalities == 0, op, ": found ", segments, " segments for ", modalities,
                    " modalities; expected M * B.");
  return {v.size(0), v.size(1), modalities, segments / modalities, check_offsets(op, "offsets", offsets, v.size(0))};
}

// z, then what backward needs: q, w, s, r (N, d) and lse (N, M), all empty where `save` is false.
std::vector<Tensor> f2f_forward(const Tensor& v_any, const Tensor& offsets_any, const Tensor& a, const Tensor& c,
                                const Tensor& wv, const Tensor& b1, const Tensor& wb, const Tensor& b2, double p_drop,
                                const OptionalTensor& rng, int64_t attention_site, int64_t update_site, bool save) {
  const Tensor v = v_any.contiguous(), offsets = offsets_any.contiguous();
  const F2fWeights weights("f2f", v.dim() == 2 ? v.size(1) : -1, v.scalar_type(), a, c, wv, b1, wb, b2);
  const F2fBatch batch = batch_of("f2f", v, offsets, c.size(0));
  const Dropout dropout = make_dropout("f2f", p_drop, rng.value_or(Tensor()));
  const int64_t n = save ? batch.nodes : 0;
  std::vector<Tensor> out{pooled_empty({batch.nodes, batch.d}, v.options())};
  for (int i = 0; i < 4; i++) out.push_back(pooled_empty({n, batch.d}, v.options()));
  out.push_back(pooled_empty({n, batch.modalities}, v.options().dtype(accumulate_dtype(v.scalar_type()))));
  with_dtype(v.scalar_type(), "f2f", [&](auto type) {
    using T = decltype(type);
    F2fArgs<T> args = f2f_args<T>(batch, dropout, attention_site, update_site);
    const F2fPacks<T> packs(weights, true);
    packs.give(args);
    args.v = data<T>(v);
    args.z = data<T>(out[0]);
    if (save) {
      args.q = data<T>(out[1]);
      args.w = data<T>(out[2]);
      args.s = data<T>(out[3]);
      args.r = data<T>(out[4]);
      args.lse = data<Acc<T>>(out[5]);
    }
    f2f_forward_samples(batch, args);
  });
  return out;
}

// dv, dA, dC, dWv, db1, dWb, db2. `saved` is f2f_forward's output but for z.
std::vector<Tensor> f2f_backward(const Tensor& dz, const Tensor& v_any, const Tensor& offsets_any, const Tensor& a,
                                 const Tensor& c, const Tensor& wv, const Tensor& b1, const Tensor& wb,
                                 const Tensor& b2, double p_drop, const OptionalTensor& rng, int64_t attention_site,
                                 int64_t update_site, at::TensorList saved) {
  const Tensor v = v_any.contiguous(), offsets = offsets_any.contiguous(), g = dz.contiguous();
  const F2fWeights weights("f2f_backward", v.dim() == 2 ? v.size(1) : -1, v.scalar_type(), a, c, wv, b1, wb, b2);
  const F2fBatch batch = batch_of("f2f_backward", v, offsets, c.size(0));
  const Dropout dropout = make_dropout("f2f_backward", p_drop, rng.value_or(Tensor()));
  TORCH_CHECK_VALUE(saved.size() == 5, "f2f_backward: found ", saved.size(),
                    " saved tensors; expected q, w, s, r and lse.");
  const auto options = v.options(), wide = options.dtype(accumulate_dtype(v.scalar_type()));
  std::vector<Tensor> kept;
  for (const Tensor& t : saved) kept.push_back(t.contiguous());
  const Tensor dq = pooled_empty(v.sizes(), options), dw = pooled_empty(v.sizes(), options),
               dv = pooled_empty(v.sizes(), options), dt = dropout.on ? pooled_empty(v.sizes(), options) : g,
               h_sums = pooled_empty({batch.samples, batch.d}, wide);
  const F2fGradients gradients(batch.d, batch.modalities, wide);
  with_dtype(v.scalar_type(), "f2f_backward", [&](auto type) {
    using T = decltype(type);
    F2fArgs<T> args = f2f_args<T>(batch, dropout, attention_site, update_site);
    const F2fPacks<T> packs(weights, false);
    packs.give(args);
    args.v = data<T>(v);
    args.q = data<T>(kept[0]);
    args.w = data<T>(kept[1]);
    args.s = data<T>(kept[2]);
    args.r = data<T>(kept[3]);
    args.lse = data<Acc<T>>(kept[4]);
    args.dz = data<T>(g);
    args.dt = data<T>(dt);
    args.dq = data<T>(dq);
    args.dw = data<T>(dw);
    args.dv = data<T>(dv);
    args.h_sums = data<Acc<T>>(h_sums);
    f2f_backward_samples(batch, args);
    std::vector<OuterJob<T>> jobs;
    f2f_weight_jobs(batch, args, gradients, false, jobs);
    run_outer_jobs<T>(jobs);
  });
  std::vector<Tensor> out = gradients.all(c.scalar_type());
  out.insert(out.begin(), dv);
  return out;
}

using ForwardSignature = std::vector<Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                             const Tensor&, const Tensor&, const Tensor&, double, const OptionalTensor&,
                                             int64_t, int64_t, bool);
const auto& forward_op() {
  static const auto op = find_op<ForwardSignature>("hhmpn_fast::f2f_forward");
  return op;
}

struct F2fFunction : torch::autograd::Function<F2fFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& v, const Tensor& offsets, const Tensor& a,
                        const Tensor& c, const Tensor& wv, const Tensor& b1, const Tensor& wb, const Tensor& b2,
                        double p, const OptionalTensor& rng, int64_t attention_site, int64_t update_site) {
    at::AutoDispatchBelowADInplaceOrView guard;
    std::vector<Tensor> out =
        forward_op().call(v, offsets, a, c, wv, b1, wb, b2, p, rng, attention_site, update_site, true);
    std::vector<Tensor> saved{v, offsets, a, c, wv, b1, wb, b2, rng.value_or(Tensor())};
    saved.insert(saved.end(), out.begin() + 1, out.end());
    ctx->save_for_backward(saved);
    ctx->saved_data["p"] = p;
    ctx->saved_data["attention_site"] = attention_site;
    ctx->saved_data["update_site"] = update_site;
    return out[0];
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto s = ctx->get_saved_variables();
    static const auto op = find_op<std::vector<Tensor>(
        const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
        const Tensor&, const Tensor&, double, const OptionalTensor&, int64_t, int64_t, at::TensorList)>(
        "hhmpn_fast::f2f_backward");
    const std::vector<Tensor> g =
        op.call(grads[0], s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], ctx->saved_data["p"].toDouble(),
                s[8].defined() ? OptionalTensor(s[8]) : OptionalTensor(), ctx->saved_data["attention_site"].toInt(),
                ctx->saved_data["update_site"].toInt(), at::TensorList(s).slice(9));
    torch::autograd::variable_list out(12);
    out[0] = g[0];
    for (int i = 1; i < 7; i++) out[i + 1] = g[i];
    return out;
  }
};

Tensor f2f_autograd(const Tensor& v, const Tensor& offsets, const Tensor& a, const Tensor& c, const Tensor& wv,
                    const Tensor& b1, const Tensor& wb, const Tensor& b2, double p, const OptionalTensor& rng,
                    int64_t attention_site, int64_t update_site) {
  if (any_requires_grad({v, a, c, wv, b1, wb, b2}))
    return F2fFunction::apply(v, offsets, a, c, wv, b1, wb, b2, p, rng, attention_site, update_site);
  at::AutoDispatchBelowADInplaceOrView guard;
  return forward_op().call(v, offsets, a, c, wv, b1, wb, b2, p, rng, attention_site, update_site, false)[0];
}

Tensor f2f_plain(const Tensor& v, const Tensor& offsets, const Tensor& a, const Tensor& c, const Tensor& wv,
                 const Tensor& b1, const Tensor& wb, const Tensor& b2, double p, const OptionalTensor& rng,
                 int64_t attention_site, int64_t update_site) {
  return f2f_forward(v, offsets, a, c, wv, b1, wb, b2, p, rng, attention_site, update_site, false)[0];
}

Tensor f2f_autocast(const Tensor& v, const Tensor& offsets, const Tensor& a, const Tensor& c, const Tensor& wv,
                    const Tensor& b1, const Tensor& wb, const Tensor& b2, double p, const OptionalTensor& rng,
                    int64_t attention_site, int64_t update_site) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastCPU);
  static const auto op =
      find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                     const Tensor&, const Tensor&, double, const OptionalTensor&, int64_t, int64_t)>("hhmpn_fast::f2f");
  if (autocast_keeps({a, c, wv, b1, wb, b2}))
    return op.call(autocast_one(v), offsets, a, c, wv, b1, wb, b2, p, rng, attention_site, update_site);
  return op.call(autocast_one(v), offsets, autocast_one(a), autocast_one(c), autocast_one(wv), autocast_one(b1),
                 autocast_one(wb), autocast_one(b2), p, rng, attention_site, update_site);
}

}  // namespace

Tensor f2f_packed(const Tensor& v_any, const Tensor& offsets_any, int64_t modalities, at::TensorList weights) {
  const Tensor v = v_any.contiguous(), offsets = offsets_any.contiguous();
  const F2fBatch batch = batch_of("infer", v, offsets, modalities);
  Tensor z = pooled_empty({batch.nodes, batch.d}, v.options());
  with_dtype(v.scalar_type(), "infer", [&](auto type) {
    using T = decltype(type);
    F2fArgs<T> args = f2f_args<T>(batch, Dropout{}, 0, 0);
    const int64_t bytes = dense<T>().packed_bytes(batch.d, batch.d);
    args.a = packed_matrices("A", weights[0], 1, bytes);
    args.wv = packed_matrices("wv", weights[1], 1, bytes);
    args.c = packed_matrices("C", weights[2], modalities, bytes);
    args.c_bytes = bytes;
    args.b1 = data<Acc<T>>(weights[3]);
    args.wb = packed_matrices("wb", weights[4], 1, bytes);
    args.b2 = data<Acc<T>>(weights[5]);
    args.v = data<T>(v);
    args.z = data<T>(z);
    f2f_forward_samples(batch, args);
  });
  return z;
}

TORCH_LIBRARY_IMPL(hhmpn_fast, CPU, m) {
  m.impl("f2f", f2f_plain);
  m.impl("f2f_forward", f2f_forward);
  m.impl("f2f_backward", f2f_backward);
}
TORCH_LIBRARY_IMPL(hhmpn_fast, Autograd, m) {
  m.impl("f2f", f2f_autograd);
  m.impl("f2f_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("f2f_backward", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(hhmpn_fast, AutocastCPU, m) { m.impl("f2f", f2f_autocast); }

}  // namespace hhmpn
