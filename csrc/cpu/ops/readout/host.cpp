// Host side of kernels.h, which holds the equations.
#include "ops/readout/kernels.h"

#include "host/memory.h"
#include "adapter/op.h"
#include "host/tensors.h"
#include "host/threads.h"

namespace hhmpn {
namespace {

using at::Tensor;

struct Readout {
  Tensor u, present, wl, wo;
  template <class V>
  void each(V& v) {
    v.rows("u", u), v.data("present", present), v.rows("wl", wl), v.rows("wo", wo);
  }
};

struct ReadoutResult {
  Tensor fused, logits, alpha;
  template <class V>
  void each(V& v) {
    v.exact("fused", fused), v.exact("logits", logits), v.exact("alpha", alpha);
  }
};

struct ReadoutBack {
  Tensor d_fused, d_logits, d_alpha;
  Readout in;
  Tensor fused, alpha;
  Needs needs;
  template <class V>
  void each(V& v) {
    v.data("d_fused", d_fused), v.data("d_logits", d_logits), v.data("d_alpha", d_alpha), in.each(v);
    v.data("fused", fused), v.data("alpha", alpha);
  }
};

Tensor contiguous(const Tensor& t) { return t.defined() ? t.contiguous() : t; }

// Checked, and each tensor in one piece.
Readout checked(const Readout& in) {
  const Tensor& u = in.u;
  TORCH_CHECK_VALUE(u.dim() == 4, "readout: u is ", u.scalar_type(), " of shape ", u.sizes(),
                    "; expected (M, B, L, d).");
  TORCH_CHECK_VALUE(in.present.sizes() == u.sizes().slice(0, 2) && in.present.scalar_type() == at::kBool,
                    "readout: present is ", in.present.scalar_type(), " of shape ", in.present.sizes(),
                    "; expected bool of shape ", u.sizes().slice(0, 2), ".");
  if (in.wl.defined()) check_vector("readout", "wl", in.wl, u.size(3), u.scalar_type());
  check_matrix("readout", "wo", in.wo, u.size(2), u.size(3), u.scalar_type());
  return {u.contiguous(), in.present.contiguous(), contiguous(in.wl), in.wo.contiguous()};
}

template <class T>
ReadoutArgs<T> readout_args(const Readout& in) {
  ReadoutArgs<T> r{};
  r.modalities = in.u.size(0);
  r.samples = in.u.size(1);
  r.labels = in.u.size(2);
  r.dim = in.u.size(3);
  r.u = data<T>(in.u);
  r.present = in.present.const_data_ptr<bool>();
  r.wl = data<T>(in.wl);
  r.wo = data<T>(in.wo);
  return r;
}

ReadoutResult readout_forward(const Readout& any, bool) {
  const Readout in = checked(any);
  const auto sizes = in.u.sizes();
  const ReadoutResult out{pooled_empty(sizes.slice(1), in.u.options()), at::empty(sizes.slice(1, 2), in.u.options()),
                          pooled_empty(sizes.slice(0, 3), in.u.options())};
  with_dtype(in.u.scalar_type(), "readout", [&](auto type) {
    using T = decltype(type);
    ReadoutArgs<T> r = readout_args<T>(in);
    r.fused = data<T>(out.fused);
    r.logits = data<T>(out.logits);
    r.alpha = data<T>(out.alpha);
    const ReadoutKernels<T>& k = readout<T>();
    parallel_tasks((r.samples + kReadoutSamples - 1) / kReadoutSamples, k.scratch(r), [&](int64_t i, char* scratch) {
      for (int64_t b = i * kReadoutSamples; b < std::min(r.samples, (i + 1) * kReadoutSamples); b++)
        k.forward(r, b, scratch);
    });
  });
  return out;
}

Readout readout_backward(const ReadoutBack& back) {
  const Readout in = checked(back.in);
  const Tensor d_fused = contiguous(back.d_fused), d_logits = contiguous(back.d_logits),
               d_alpha = contiguous(back.d_alpha);
  const auto dtype = in.u.scalar_type();
  check_kept("readout_backward", "fused", back.fused, in.u.numel() / std::max<int64_t>(in.u.size(0), 1), dtype);
  check_kept("readout_backward", "alpha", back.alpha, in.u.size(0) * in.u.size(1) * in.u.size(2), dtype);
  Readout d;
  d.u = pooled_empty(in.u.sizes(), in.u.options());
  const int64_t tasks = (in.u.size(1) + kReadoutSamples - 1) / kReadoutSamples;
  Tensor sums = at::zeros({tasks, 1 + in.u.size(2), in.u.size(3)}, in.u.options().dtype(accumulate_dtype(dtype)));
  with_dtype(dtype, "readout_backward", [&](auto type) {
    using T = decltype(type);
    ReadoutArgs<T> r = readout_args<T>(in);
    r.fused = data<T>(back.fused);
    r.alpha = data<T>(back.alpha);
    r.d_fused = data<T>(d_fused);
    r.d_logits = data<T>(d_logits);
    r.d_alpha = data<T>(d_alpha);
    r.d_u = data<T>(d.u);
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
  if (in.wl.defined()) d.wl = total[0].to(dtype, false, true);
  d.wo = total.slice(0, 1).to(dtype, false, true);
  return d;
}

HHMPN_OP(readout, readout_forward, readout_backward)

}  // namespace
}  // namespace hhmpn
