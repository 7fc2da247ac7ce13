// Host side of kernels.h: `update_labels` is wr of shape (h, d), `update_features` is wr (M, h, d).
#include "ops/update/kernels.h"

#include "host/packed_weights.h"
#include "host/weight_gradients.h"
#include "host/memory.h"
#include "host/tensors.h"

namespace hhmpn {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct Sizes {
  int64_t rows, state_rows, d, h, modalities;
};

Sizes check(const char* op, const Tensor& state, const Tensor& context, const Tensor& wv, const Tensor& wr,
            const Tensor& b1, const Tensor& wb, const Tensor& b2) {
  const auto dtype = state.scalar_type();
  const bool features = wr.dim() == 3;
  const int64_t d = state.size(-1), h = wr.size(-2);
  TORCH_CHECK_VALUE(context.dim() == 3 && context.size(2) == d && context.scalar_type() == dtype && state.dim() >= 2,
                    op, ": state is ", dtype, " ", state.sizes(), " and context ", context.scalar_type(), " ",
                    context.sizes(), "; expected one dtype, states (..., d) and contexts (M, rows, d).");
  const int64_t rows = features ? context.size(1) : context.size(0) * context.size(1),
                state_rows = state.numel() / std::max<int64_t>(d, 1);
  TORCH_CHECK_VALUE(d > 0 && (features ? state_rows == rows && wr.size(0) == context.size(0)
                                       : state_rows == rows || state_rows == context.size(1)),
                    op, ": state ", state.sizes(), ", context ", context.sizes(), " and wr ", wr.sizes(),
                    " do not fit; expected ",
                    features ? "states (N, d), contexts (M, N, d) and C (M, h, d)."
                             : "states (B*L, d) or (M, B*L, d) for contexts (M, B*L, d).");
  check_matrix(op, "wv", wv, d, d, dtype);
  check_matrix(op, "wr", wr.reshape({-1, wr.size(-1)}), features ? wr.size(0) * h : h, d, dtype);
  check_matrix(op, "wb", wb, d, h, dtype);
  check_vector(op, "b1", b1, h, dtype);
  check_vector(op, "b2", b2, d, dtype);
  return {rows, state_rows, d, h, features ? wr.size(0) : 0};
}

template <class T>
UpdateArgs<T> args_of(const Sizes& s, const Dropout& dropout, int64_t site) {
  UpdateArgs<T> a{};
  a.rows = s.rows;
  a.state_rows = s.state_rows;
  a.d = s.d;
  a.h = s.h;
  a.modalities = s.modalities;
  a.dropout = dropout;
  a.site = uint32_t(site);
  return a;
}

template <class T>
void pack_all(UpdateArgs<T>& a, PackedWeights<T>& packed, const Tensor& wv, const Tensor& wr, const Tensor& wb,
              bool transposed) {
  const int64_t v = packed.add(wv, 0, a.d, a.d, transposed);
  const int64_t b = packed.add(wb, 0, a.d, a.h, transposed);
  const int64_t r = packed.add(wr, 0, a.h, a.d, transposed);
  for (int64_t m = 1; m < a.modalities; m++) packed.add(wr, m, a.h, a.d, transposed);
  packed.pack();
  a.wv = packed[v];
  a.wb = packed[b];
  a.wr = packed[r];
  a.wr_bytes = packed.bytes(r);
}

// out, and what backward needs: mixed and hidden, both empty where `save` is false.
std::tuple<Tensor, Tensor, Tensor> update_forward(const Tensor& state, const Tensor& context, const Tensor& wv,
                                                  const Tensor& wr, const Tensor& b1, const Tensor& wb,
                                                  const Tensor& b2, double p, const OptionalTensor& rng, int64_t site,
                                                  bool save) {
  const Sizes sizes = check("update", state, context, wv, wr, b1, wb, b2);
  const Dropout dropout = make_dropout("update", p, rng.value_or(Tensor()));
  const Tensor u = state.contiguous(), s = context.contiguous(), v = wv.contiguous(), r = wr.contiguous(),
               b = wb.contiguous(), c1 = b1.contiguous(), c2 = b2.contiguous();
  Tensor out = pooled_empty(sizes.modalities ? state.sizes() : context.sizes(), state.options());
  Tensor mixed = pooled_empty({save ? sizes.rows : 0, sizes.d}, state.options());
  Tensor hidden = pooled_empty({save ? sizes.rows : 0, sizes.h}, state.options());
  with_dtype(state.scalar_type(), "update", [&](auto type) {
    using T = decltype(type);
    UpdateArgs<T> a = args_of<T>(sizes, dropout, site);
    PackedWeights<T> packed;
    pack_all(a, packed, v, r, b, true);
    a.state = data<T>(u);
    a.context = data<T>(s);
    a.b1 = data<T>(c1);
    a.b2 = data<T>(c2);
    a.out = data<T>(out);
    a.mixed = save ? data<T>(mixed) : nullptr;
    a.hidden = save ? data<T>(hidden) : nullptr;
    const UpdateKernels<T>& k = update<T>();
    parallel_tasks((sizes.rows + kUpdateRows - 1) / kUpdateRows, k.scratch(sizes.d, sizes.h),
                   [&](int64_t i, char* scratch) {
                     k.forward(a, i * kUpdateRows, std::min(kUpdateRows, sizes.rows - i * kUpdateRows), scratch);
                   });
  });
  return {out, mixed, hidden};
}

// d_state, d_context, d_wv, d_wr, d_b1, d_wb, d_b2.
std::vector<Tensor> update_backward(const Tensor& d_out, const Tensor& state, const Tensor& context, const Tensor& wv,
                                    const Tensor& wr, const Tensor& b1, const Tensor& wb, const Tensor& b2, double p,
                                    const OptionalTensor& rng, int64_t site, const Tensor& mixed,
                                    const Tensor& hidden) {
  const Sizes sizes = check("update_backward", state, context, wv, wr, b1, wb, b2);
  const Dropout dropout = make_dropout("update_backward", p, rng.value_or(Tensor()));
  const Tensor g = d_out.contiguous(), s = context.contiguous(), v = wv.contiguous(), r = wr.contiguous(),
               b = wb.contiguous(), mix = mixed.contiguous(), hid = hidden.contiguous();
  const auto options = state.options(), wide = options.dtype(accumulate_dtype(state.scalar_type()));
  const bool features = sizes.modalities > 0;
  const int64_t d = sizes.d, h = sizes.h, rows = sizes.rows;
  Tensor dt = dropout.on ? pooled_empty({rows, d}, options) : g, dh = pooled_empty({rows, h}, options);
  Tensor dg = features ? g : pooled_empty({rows, d}, options), d_context = pooled_empty(context.sizes(), options);
  Tensor dwv = pooled_empty(wv.sizes(), wide), dwr = pooled_empty(wr.sizes(), wide),
         dwb = pooled_empty(wb.sizes(), wide), db1 = pooled_empty({h}, wide), db2 = pooled_empty({d}, wide);
  with_dtype(state.scalar_type(), "update_backward", [&](auto type) {
    using T = decltype(type);
    UpdateArgs<T> a = args_of<T>(sizes, dropout, site);
    PackedWeights<T> packed;
    pack_all(a, packed, v, r, b, false);
    a.context = data<T>(s);
    a.hidden = data<T>(hid);
    a.d_out = data<T>(g);
    a.dt = data<T>(dt);
    a.dh = data<T>(dh);
    a.dg = data<T>(dg);
    a.d_context = data<T>(d_context);
    const UpdateKernels<T>& k = update<T>();
    parallel_tasks((rows + kUpdateRows - 1) / kUpdateRows, k.scratch(d, h), [&](int64_t i, char* scratch) {
      k.backward(a, i * kUpdateRows, std::min(kUpdateRows, rows - i * kUpdateRows), scratch);
    });
    std::vector<OuterJob<T>> jobs;
    jobs.push_back({d, h, data<T>(dt), d, data<T>(hid), h, 0, rows, data<Acc<T>>(dwb), data<Acc<T>>(db2)});
    jobs.push_back({d, d, data<T>(dg), d, data<T>(features ? mix : s), d, 0, rows, data<Acc<T>>(dwv), nullptr});
    if (!features)
      jobs.push_back({h, d, data<T>(dh), h, data<T>(mix), d, 0, rows, data<Acc<T>>(dwr), data<Acc<T>>(db1)});
    for (int64_t m = 0; m < sizes.modalities; m++)
      jobs.push_back({h, d, data<T>(dh), h, data<T>(s) + m * rows * d, d, 0, rows, data<Acc<T>>(dwr) + m * h * d,
                      m ? nullptr : data<Acc<T>>(db1)});
    run_outer_jobs<T>(jobs);
  });
  Tensor d_state = dg;
  if (!features && sizes.state_rows != rows) d_state = dg.view({-1, sizes.state_rows, d}).sum(0);
  d_state = d_state.reshape(state.sizes());
  if (d_state.is_alias_of(d_out)) d_state = d_state.clone();
  std::vector<Tensor> out{d_state, d_context, dwv, dwr, db1, dwb, db2};
  for (Tensor& t : out) t = t.to(state.scalar_type());
  return out;
}

using ForwardSignature = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                            const Tensor&, const Tensor&, const Tensor&, double,
                                                            const OptionalTensor&, int64_t, bool);
const auto& forward_op() {
  static const auto op = find_op<ForwardSignature>("hhmpn_fast::update_forward");
  return op;
}

struct UpdateFunction : torch::autograd::Function<UpdateFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& state, const Tensor& context,
                        const Tensor& wv, const Tensor& wr, const Tensor& b1, const Tensor& wb, const Tensor& b2,
                        double p, const OptionalTensor& rng, int64_t site) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [out, mixed, hidden] = forward_op().call(state, context, wv, wr, b1, wb, b2, p, rng, site, true);
    ctx->save_for_backward({state, context, wv, wr, b1, wb, b2, rng.value_or(Tensor()), mixed, hidden});
    ctx->saved_data["p"] = p;
    ctx->saved_data["site"] = site;
    return out;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto s = ctx->get_saved_variables();
    static const auto op =
        find_op<std::vector<Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                    const Tensor&, const Tensor&, const Tensor&, double, const OptionalTensor&, int64_t,
                                    const Tensor&, const Tensor&)>("hhmpn_fast::update_backward");
    std::vector<Tensor> out =
        op.call(grads[0], s[0], s[1], s[2], s[3], s[4], s[5], s[6], ctx->saved_data["p"].toDouble(),
                s[7].defined() ? OptionalTensor(s[7]) : OptionalTensor(), ctx->saved_data["site"].toInt(), s[8], s[9]);
    out.resize(10);
    return out;
  }
};

Tensor update_autograd(const Tensor& state, const Tensor& context, const Tensor& wv, const Tensor& wr, const Tensor& b1,
                       const Tensor& wb, const Tensor& b2, double p, const OptionalTensor& rng, int64_t site) {
  if (any_requires_grad({state, context, wv, wr, b1, wb, b2}))
    return UpdateFunction::apply(state, context, wv, wr, b1, wb, b2, p, rng, site);
  at::AutoDispatchBelowADInplaceOrView guard;
  return std::get<0>(forward_op().call(state, context, wv, wr, b1, wb, b2, p, rng, site, false));
}

Tensor update_plain(const Tensor& state, const Tensor& context, const Tensor& wv, const Tensor& wr, const Tensor& b1,
                    const Tensor& wb, const Tensor& b2, double p, const OptionalTensor& rng, int64_t site) {
  return std::get<0>(update_forward(state, context, wv, wr, b1, wb, b2, p, rng, site, false));
}

Tensor update_autocast(const Tensor& state, const Tensor& context, const Tensor& wv, const Tensor& wr, const Tensor& b1,
                       const Tensor& wb, const Tensor& b2, double p, const OptionalTensor& rng, int64_t site) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastCPU);
  static const auto op =
      find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                     const Tensor&, double, const OptionalTensor&, int64_t)>("hhmpn_fast::update");
  return op.call(autocast_one(state), autocast_one(context), autocast_one(wv), autocast_one(wr), autocast_one(b1),
                 autocast_one(wb), autocast_one(b2), p, rng, site);
}

}  // namespace

TORCH_LIBRARY_IMPL(hhmpn_fast, CPU, m) {
  m.impl("update", update_plain);
  m.impl("update_forward", update_forward);
  m.impl("update_backward", update_backward);
}
TORCH_LIBRARY_IMPL(hhmpn_fast, Autograd, m) {
  m.impl("update", update_autograd);
  m.impl("update_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("update_backward", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(hhmpn_fast, AutocastCPU, m) { m.impl("update", update_autocast); }

}  // namespace hhmpn
