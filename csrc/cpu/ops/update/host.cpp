// Host side of kernels.h: labels where `hidden` is (h, d), features where it is (M, h, d).
#include "ops/update/kernels.h"

#include "host/block_weights.h"
#include "host/dropout.h"
#include "host/memory.h"
#include "adapter/op.h"
#include "host/packed_weights.h"
#include "host/tensors.h"
#include "host/weight_gradients.h"

namespace hhmpn {
namespace {

using at::Tensor;

struct Update {
  Tensor state, context, value, hidden, b1, output, b2;
  DropoutInput dropout;
  int64_t site;
  template <class V>
  void each(V& v) {
    v.rows("state", state), v.rows("context", context), v.rows("value", value), v.rows("hidden", hidden),
        v.rows("b1", b1);
    v.rows("output", output), v.rows("b2", b2), dropout.each(v), v.data("site", site);
  }
  bool features() const { return hidden.dim() == 3; }
};

struct UpdateResult {
  Tensor out, g, h;
  template <class V>
  void each(V& v) {
    v.exact("out", out), v.kept("g", g), v.kept("h", h);
  }
};

struct UpdateBack {
  Tensor d_out;
  Update in;
  Tensor g, h;
  Needs needs;
  template <class V>
  void each(V& v) {
    v.data("d_out", d_out), in.each(v), v.data("g", g), v.data("h", h);
  }
};

struct Sizes {
  int64_t rows, state_rows, d, width, modalities;
};

Sizes check(const char* op, const Update& in) {
  const Tensor &state = in.state, &context = in.context;
  const auto dtype = state.scalar_type();
  const bool features = in.features();
  const int64_t d = state.size(-1), width = in.hidden.size(-2);
  TORCH_CHECK_VALUE(context.dim() == 3 && context.size(2) == d && context.scalar_type() == dtype && state.dim() >= 2,
                    op, ": state is ", dtype, " ", state.sizes(), " and context ", context.scalar_type(), " ",
                    context.sizes(), "; expected one dtype, states (..., d) and contexts (M, rows, d).");
  const int64_t rows = features ? context.size(1) : context.size(0) * context.size(1),
                state_rows = state.numel() / std::max<int64_t>(d, 1);
  TORCH_CHECK_VALUE(d > 0 && (features ? state_rows == rows && in.hidden.size(0) == context.size(0)
                                       : state_rows == rows || state_rows == context.size(1)),
                    op, ": state ", state.sizes(), ", context ", context.sizes(), " and hidden ", in.hidden.sizes(),
                    " do not fit; expected ",
                    features ? "states (N, d), contexts (M, N, d) and C (M, h, d)."
                             : "states (B*L, d) or (M, B*L, d) for contexts (M, B*L, d).");
  check_matrix(op, "value", in.value, d, d, dtype);
  check_matrix(op, "hidden", in.hidden.reshape({-1, in.hidden.size(-1)}), features ? in.hidden.size(0) * width : width,
               d, dtype);
  check_matrix(op, "output", in.output, d, width, dtype);
  check_vector(op, "b1", in.b1, width, dtype);
  check_vector(op, "b2", in.b2, d, dtype);
  return {rows, state_rows, d, width, features ? in.hidden.size(0) : 0};
}

template <class T>
UpdateArgs<T> args_of(const Sizes& s, const Dropout& dropout, int64_t site) {
  UpdateArgs<T> a{};
  a.rows = s.rows;
  a.state_rows = s.state_rows;
  a.d = s.d;
  a.width = s.width;
  a.modalities = s.modalities;
  a.dropout = dropout;
  a.site = uint32_t(site);
  return a;
}

template <class T>
void pack_all(UpdateArgs<T>& a, PackedWeights<T>& packed, const Update& in, bool transposed) {
  const Tensor value = in.value.contiguous(), hidden = in.hidden.contiguous(), output = in.output.contiguous();
  const int64_t v = packed.add(value, 0, a.d, a.d, transposed);
  const int64_t o = packed.add(output, 0, a.d, a.width, transposed);
  const int64_t h = packed.add(hidden, 0, a.width, a.d, transposed);
  for (int64_t m = 1; m < a.modalities; m++) packed.add(hidden, m, a.width, a.d, transposed);
  packed.pack();
  a.value = packed[v];
  a.output = packed[o];
  a.hidden = packed[h];
  a.hidden_bytes = packed.bytes(h);
}

UpdateResult update_forward(const Update& in, bool keep) {
  const Sizes sizes = check("update", in);
  const Dropout dropout = make_dropout("update", in.dropout);
  const Tensor u = in.state.contiguous(), s = in.context.contiguous(), b1 = in.b1.contiguous(), b2 = in.b2.contiguous();
  const auto options = in.state.options();
  UpdateResult r;
  r.out = pooled_empty(sizes.modalities ? in.state.sizes() : in.context.sizes(), options);
  if (keep) r.g = pooled_empty({sizes.rows, sizes.d}, options), r.h = pooled_empty({sizes.rows, sizes.width}, options);
  with_dtype(in.state.scalar_type(), "update", [&](auto type) {
    using T = decltype(type);
    UpdateArgs<T> a = args_of<T>(sizes, dropout, in.site);
    PackedWeights<T> packed;
    pack_all(a, packed, in, true);
    a.state = data<T>(u);
    a.context = data<T>(s);
    a.b1 = data<T>(b1);
    a.b2 = data<T>(b2);
    a.out = data<T>(r.out);
    a.g = data<T>(r.g);
    a.h = data<T>(r.h);
    const UpdateKernels<T>& k = update<T>();
    parallel_tasks((sizes.rows + kUpdateRows - 1) / kUpdateRows, k.scratch(sizes.d, sizes.width),
                   [&](int64_t i, char* scratch) {
                     k.forward(a, i * kUpdateRows, std::min(kUpdateRows, sizes.rows - i * kUpdateRows), scratch);
                   });
  });
  return r;
}

Update update_backward(const UpdateBack& back) {
  const Update& in = back.in;
  const Sizes sizes = check("update_backward", in);
  const Dropout dropout = make_dropout("update_backward", in.dropout);
  check_kept("update_backward", "g", back.g, sizes.rows * sizes.d, in.state.scalar_type());
  check_kept("update_backward", "h", back.h, sizes.rows * sizes.width, in.state.scalar_type());
  check_kept("update_backward", "d_out", back.d_out, sizes.rows * sizes.d, in.state.scalar_type());
  const Tensor d_out = back.d_out.contiguous(), s = in.context.contiguous(), g = back.g.contiguous(),
               h = back.h.contiguous();
  const auto options = in.state.options(), wide = options.dtype(accumulate_dtype(in.state.scalar_type()));
  const bool features = sizes.modalities > 0;
  const int64_t d = sizes.d, width = sizes.width, rows = sizes.rows;
  const Tensor d_tail = dropout.on ? pooled_empty({rows, d}, options) : d_out,
               d_h = pooled_empty({rows, width}, options);
  const Tensor d_g = features ? d_out : pooled_empty({rows, d}, options);
  Update to{};
  to.context = pooled_empty(in.context.sizes(), options);
  to.value = pooled_empty(in.value.sizes(), wide), to.hidden = pooled_empty(in.hidden.sizes(), wide);
  to.output = pooled_empty(in.output.sizes(), wide);
  to.b1 = pooled_empty({width}, wide), to.b2 = pooled_empty({d}, wide);
  with_dtype(in.state.scalar_type(), "update_backward", [&](auto type) {
    using T = decltype(type);
    UpdateArgs<T> a = args_of<T>(sizes, dropout, in.site);
    PackedWeights<T> packed;
    pack_all(a, packed, in, false);
    a.context = data<T>(s);
    a.h = data<T>(h);
    a.d_out = data<T>(d_out);
    a.d_tail = data<T>(d_tail);
    a.d_h = data<T>(d_h);
    a.d_g = data<T>(d_g);
    a.d_context = data<T>(to.context);
    const UpdateKernels<T>& k = update<T>();
    parallel_tasks((rows + kUpdateRows - 1) / kUpdateRows, k.scratch(d, width), [&](int64_t i, char* scratch) {
      k.backward(a, i * kUpdateRows, std::min(kUpdateRows, rows - i * kUpdateRows), scratch);
    });
    using A = Acc<T>;
    std::vector<OuterJob<T>> jobs;
    jobs.push_back({d, width, data<T>(d_tail), d, data<T>(h), width, 0, rows, data<A>(to.output), data<A>(to.b2)});
    jobs.push_back({d, d, data<T>(d_g), d, data<T>(features ? g : s), d, 0, rows, data<A>(to.value), nullptr});
    if (!features)
      jobs.push_back({width, d, data<T>(d_h), width, data<T>(g), d, 0, rows, data<A>(to.hidden), data<A>(to.b1)});
    for (int64_t m = 0; m < sizes.modalities; m++)
      jobs.push_back({width, d, data<T>(d_h), width, data<T>(s) + m * rows * d, d, 0, rows,
                      data<A>(to.hidden) + m * width * d, m ? nullptr : data<A>(to.b1)});
    run_outer_jobs<T>(jobs);
  });
  to.state = d_g;
  if (!features && sizes.state_rows != rows) to.state = d_g.view({-1, sizes.state_rows, d}).sum(0);
  to.state = to.state.reshape(in.state.sizes());
  if (to.state.is_alias_of(back.d_out)) to.state = to.state.clone();
  for (Tensor* t : {&to.value, &to.hidden, &to.b1, &to.output, &to.b2}) *t = t->to(in.state.scalar_type());
  return to;
}

HHMPN_OP(update, update_forward, update_backward)

}  // namespace
}  // namespace hhmpn
