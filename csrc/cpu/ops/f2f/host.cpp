// The op of F2F (kernels.h holds the equations).
#include "host/dropout.h"
#include "adapter/op.h"
#include "ops/f2f/samples.h"

namespace hhmpn {
namespace {

using at::Tensor;

F2fBatch batch_of(const char* op, const Tensor& v, const Tensor& offsets, int64_t modalities) {
  TORCH_CHECK_VALUE(v.dim() == 2 && v.size(1) > 0, op, ": v has shape ", v.sizes(), "; expected (N, d).");
  TORCH_CHECK_VALUE(modalities >= 1 && modalities <= 64, op, ": found ", modalities, " modalities; expected 1 to 64.");
  const int64_t segments = offsets.numel() - 1;
  TORCH_CHECK_VALUE(segments >= 0 && segments % modalities == 0, op, ": found ", segments, " segments for ", modalities,
                    " modalities; expected M * B.");
  return {v.size(0), v.size(1), modalities, segments / modalities, check_offsets(op, "offsets", offsets, v.size(0))};
}

struct F2f {
  Tensor v, offsets;
  BlockWeights weights;
  DropoutInput dropout;
  F2fSites sites;
  template <class V>
  void each(V& visitor) {
    visitor.rows("v", v), visitor.data("offsets", offsets), weights.each(visitor), dropout.each(visitor);
    visitor.data("attention_site", sites.attention), visitor.data("update_site", sites.update);
  }
};

struct F2fKept {
  Tensor q, w, s, h, lse;
  template <class V>
  void each(V& v) {
    v.kept("q", q), v.kept("w", w), v.kept("s", s), v.kept("h", h), v.kept("lse", lse);
  }
  void check(int64_t rows, int64_t ends, at::ScalarType dtype) const {
    const char* op = "f2f_backward";
    check_kept(op, "q", q, rows, dtype), check_kept(op, "w", w, rows, dtype), check_kept(op, "s", s, rows, dtype);
    check_kept(op, "h", h, rows, dtype), check_kept(op, "lse", lse, ends, accumulate_dtype(dtype));
  }
  template <class T>
  void give(F2fArgs<T>& args) const {
    args.q = data<T>(q);
    args.w = data<T>(w);
    args.s = data<T>(s);
    args.h = data<T>(h);
    args.lse = data<Acc<T>>(lse);
  }
};

struct F2fResult {
  Tensor z;
  F2fKept kept;
  template <class V>
  void each(V& v) {
    v.exact("z", z), kept.each(v);
  }
};

struct F2fBack {
  Tensor d_z;
  F2f in;
  F2fKept kept;
  Needs needs;
  template <class V>
  void each(V& v) {
    v.data("d_z", d_z), in.each(v), kept.each(v);
  }
};

F2fResult f2f_forward(const F2f& in, bool keep) {
  const Tensor v = in.v.contiguous(), offsets = in.offsets.contiguous();
  const BlockWeights weights = f2f_weights("f2f", v.dim() == 2 ? v.size(1) : -1, v.scalar_type(), in.weights);
  const F2fBatch batch = batch_of("f2f", v, offsets, weights.hidden.size(0));
  const Dropout dropout = make_dropout("f2f", in.dropout);
  F2fResult out;
  out.z = pooled_empty({batch.nodes, batch.d}, v.options());
  if (keep) {
    for (Tensor* t : {&out.kept.q, &out.kept.w, &out.kept.s, &out.kept.h})
      *t = pooled_empty(out.z.sizes(), v.options());
    out.kept.lse = pooled_empty({batch.nodes, batch.modalities}, v.options().dtype(accumulate_dtype(v.scalar_type())));
  }
  with_dtype(v.scalar_type(), "f2f", [&](auto type) {
    using T = decltype(type);
    F2fArgs<T> args = f2f_args<T>(batch, dropout, in.sites);
    const F2fPacks<T> packs(weights, true);
    packs.give(args);
    out.kept.give(args);
    args.v = data<T>(v);
    args.z = data<T>(out.z);
    f2f_forward_samples(batch, args);
  });
  return out;
}

F2f f2f_backward(const F2fBack& back) {
  const F2f& in = back.in;
  const Tensor v = in.v.contiguous(), offsets = in.offsets.contiguous(), d_out = back.d_z.contiguous();
  const BlockWeights weights = f2f_weights("f2f_backward", v.dim() == 2 ? v.size(1) : -1, v.scalar_type(), in.weights);
  const F2fBatch batch = batch_of("f2f_backward", v, offsets, weights.hidden.size(0));
  const Dropout dropout = make_dropout("f2f_backward", in.dropout);
  back.kept.check(v.numel(), batch.nodes * batch.modalities, v.scalar_type());
  check_kept("f2f_backward", "d_z", back.d_z, v.numel(), v.scalar_type());
  const auto options = v.options(), wide = options.dtype(accumulate_dtype(v.scalar_type()));
  const F2fKept kept{back.kept.q.contiguous(), back.kept.w.contiguous(), back.kept.s.contiguous(),
                     back.kept.h.contiguous(), back.kept.lse.contiguous()};
  const Tensor d_q = pooled_empty(v.sizes(), options), d_w = pooled_empty(v.sizes(), options),
               d_tail = dropout.on ? pooled_empty(v.sizes(), options) : d_out,
               d_h_sums = pooled_empty({batch.samples, batch.d}, wide);
  const BlockWeights gradients = f2f_gradients(batch.d, batch.modalities, wide);
  F2f to;
  to.v = pooled_empty(v.sizes(), options);
  with_dtype(v.scalar_type(), "f2f_backward", [&](auto type) {
    using T = decltype(type);
    F2fArgs<T> args = f2f_args<T>(batch, dropout, in.sites);
    const F2fPacks<T> packs(weights, false);
    packs.give(args);
    kept.give(args);
    args.v = data<T>(v);
    args.d_out = data<T>(d_out);
    args.d_tail = data<T>(d_tail);
    args.d_q = data<T>(d_q);
    args.d_w = data<T>(d_w);
    args.d_v = data<T>(to.v);
    args.d_h_sums = data<Acc<T>>(d_h_sums);
    f2f_backward_samples(batch, args);
    std::vector<OuterJob<T>> jobs;
    f2f_weight_jobs(batch, args, gradients, false, jobs);
    run_outer_jobs<T>(jobs);
  });
  to.weights = f2f_finish(gradients, in.weights.hidden.scalar_type());
  return to;
}

HHMPN_OP(f2f, f2f_forward, f2f_backward)

}  // namespace

Tensor f2f_packed(const Tensor& v_any, const Tensor& offsets_any, int64_t modalities, const BlockWeights& packed) {
  const Tensor v = v_any.contiguous(), offsets = offsets_any.contiguous();
  const F2fBatch batch = batch_of("infer", v, offsets, modalities);
  Tensor z = pooled_empty({batch.nodes, batch.d}, v.options());
  with_dtype(v.scalar_type(), "infer", [&](auto type) {
    using T = decltype(type);
    F2fArgs<T> args = f2f_args<T>(batch, Dropout{}, {0, 0});
    const int64_t bytes = dense<T>().packed_bytes(batch.d, batch.d);
    args.query = packed_matrices("query", packed.query, 1, bytes);
    args.value = packed_matrices("value", packed.value, 1, bytes);
    args.hidden = packed_matrices("hidden", packed.hidden, modalities, bytes);
    args.hidden_bytes = bytes;
    args.b1 = packed_bias<T>("b1", packed.b1, batch.d);
    args.output = packed_matrices("output", packed.output, 1, bytes);
    args.b2 = packed_bias<T>("b2", packed.b2, batch.d);
    args.v = data<T>(v);
    args.z = data<T>(z);
    f2f_forward_samples(batch, args);
  });
  return z;
}

}  // namespace hhmpn
