// Host side of f2f.h: checks, tasks over samples, weight gradients, autograd, autocast.
#include "f2f.h"

#include <algorithm>

#include "infer.h"
#include "packed.h"
#include "reduce.h"
#include "scratch.h"
#include "torch_util.h"

namespace hhmpn {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct Weights {
  Tensor a, c, wv, b1, wb, b2;
};

struct Problem {
  Tensor v, offsets;
  Weights weights;
  int64_t cost(int64_t sample) const { return counts[sample] * (counts[sample] + d); }

  int64_t nodes, d, modalities, samples, longest = 0, total = 0;  // total cost
  std::vector<int64_t> counts, order;  // nodes of a sample; samples, costliest first
};

// v and its segments.
Problem problem_of(const char* op, const Tensor& v, const Tensor& offsets, int64_t modalities) {
  TORCH_CHECK_VALUE(v.dim() == 2 && v.size(1) > 0, op, ": v has shape ", v.sizes(), "; expected (N, d).");
  TORCH_CHECK_VALUE(modalities >= 1 && modalities <= 64, op, ": found ", modalities, " modalities; expected 1 to 64.");
  Problem p;
  p.nodes = v.size(0);
  p.d = v.size(1);
  p.modalities = modalities;
  p.v = v.contiguous();
  p.offsets = offsets.contiguous();
  const int64_t segments = offsets.numel() - 1;
  TORCH_CHECK_VALUE(segments >= 0 && segments % p.modalities == 0, op, ": found ", segments, " segments for ", p.modalities,
                    " modalities; expected M * B.");
  p.samples = segments / p.modalities;
  const int32_t* o = check_offsets(op, "offsets", p.offsets, p.nodes);
  p.counts.assign(p.samples, 0);
  for (int64_t i = 0; i < segments; i++) p.counts[i % p.samples] += o[i + 1] - o[i];
  for (int64_t b = 0; b < p.samples; b++) {
    p.order.push_back(b);
    p.longest = std::max(p.longest, p.counts[b]);
  }
  std::stable_sort(p.order.begin(), p.order.end(), [&](int64_t x, int64_t y) { return p.counts[x] > p.counts[y]; });
  for (int64_t b = 0; b < p.samples; b++) p.total += p.cost(b);
  return p;
}

Problem problem_of(const char* op, const Tensor& v, const Tensor& offsets, const Tensor& a, const Tensor& c, const Tensor& wv,
                   const Tensor& b1, const Tensor& wb, const Tensor& b2) {
  const auto dtype = v.scalar_type(), held = weight_dtype(c, dtype);
  const int64_t d = v.dim() == 2 ? v.size(1) : -1;
  TORCH_CHECK_VALUE(c.dim() == 3 && c.scalar_type() == held && c.size(1) == d && c.size(2) == d, op, ": C is ", c.scalar_type(), " ",
                    c.sizes(), "; expected ", held, " of shape (M, d, d), M <= 64 and d = ", d, ".");
  check_matrix(op, "A", a, d, d, held);
  check_matrix(op, "wv", wv, d, d, held);
  check_matrix(op, "wb", wb, d, d, held);
  check_vector(op, "b1", b1, d, held);
  check_vector(op, "b2", b2, d, held);
  Problem p = problem_of(op, v, offsets, c.size(0));
  const auto bias = [&](const Tensor& t) { return t.to(dtype).to(accumulate_dtype(dtype)).contiguous(); };
  p.weights = {a.contiguous(), c.contiguous(), wv.contiguous(), bias(b1), wb.contiguous(), bias(b2)};
  return p;
}

template <class T>
F2fArgs<T> args_of(const Problem& p, const Dropout& dropout, int64_t attention_site, int64_t update_site) {
  F2fArgs<T> a{};
  a.nodes = p.nodes;
  a.d = p.d;
  a.modalities = p.modalities;
  a.samples = p.samples;
  a.offsets = p.offsets.const_data_ptr<int32_t>();
  a.v = data<T>(p.v);
  a.b1 = data<Acc<T>>(p.weights.b1);
  a.b2 = data<Acc<T>>(p.weights.b2);
  a.dropout = dropout;
  a.attention_site = uint32_t(attention_site);
  a.update_site = uint32_t(update_site);
  return a;
}

template <class T>
void pack_all(F2fArgs<T>& a, PackedWeights<T>& packed, const Weights& w, bool forward) {
  const int64_t d = a.d;
  const int64_t q = packed.add(w.a, 0, d, d, !forward);  // v A forward, dq A^T backward
  const int64_t v = packed.add(w.wv, 0, d, d, forward);
  const int64_t b = packed.add(w.wb, 0, d, d, forward);
  const int64_t c = packed.add(w.c, 0, d, d, forward);
  for (int64_t m = 1; m < a.modalities; m++) packed.add(w.c, m, d, d, forward);
  packed.pack();
  a.a = packed[q];
  a.wv = packed[v];
  a.wb = packed[b];
  a.c = packed[c];
  a.c_bytes = packed.bytes(c);
}

struct Task {
  int64_t sample, begin, end;
};

// Whole samples, but for those that would keep one thread busy alone: their rows are cut, at the price of projecting keys twice.
// The one that costs more than all others together may be left to a team.
std::vector<Task> forward_tasks(const Problem& p, bool team) {
  const int64_t threads = at::get_num_threads();
  std::vector<Task> tasks;
  for (int64_t b : p.order) {
    const int64_t count = p.counts[b];
    if (count == 0 || (team && b == p.order[0])) continue;
    const int64_t parts = threads > 1 && p.cost(b) * threads > p.total ? std::min(threads, (count + 15) / 16) : 1;
    const int64_t step = (count + parts - 1) / parts;
    for (int64_t i = 0; i < count; i += step) tasks.push_back({b, i, std::min(count, i + step)});
  }
  return tasks;
}

template <class T>
void forward_samples(const Problem& p, const F2fArgs<T>& args) {
  const F2fKernels<T>& k = f2f<T>();
  const int64_t members = team_size(p.longest / 8);
  const bool team = members > 1 && p.cost(p.order[0]) * 2 > p.total;
  if (team) {
    const Tensor scratch = pooled_empty({k.team_scratch(p.d, p.longest, members)}, at::kByte);
    parallel_team(members, [&](const Team& of) { k.forward_team(args, p.order[0], of, data<char>(scratch)); });
  }
  const std::vector<Task> tasks = forward_tasks(p, team);
  parallel_tasks(int64_t(tasks.size()), k.forward_scratch(p.d, p.longest), [&](int64_t i, char* scratch) {
    k.forward(args, tasks[i].sample, tasks[i].begin, tasks[i].end, scratch);
  });
}

// z, then what backward needs: q, w, s, r (N, d) and lse (N, M), all empty where `save` is false.
std::vector<Tensor> f2f_forward(const Tensor& v, const Tensor& offsets, const Tensor& a, const Tensor& c, const Tensor& wv,
                                const Tensor& b1, const Tensor& wb, const Tensor& b2, double p_drop, const OptionalTensor& rng,
                                int64_t attention_site, int64_t update_site, bool save) {
  const Problem p = problem_of("f2f", v, offsets, a, c, wv, b1, wb, b2);
  const Dropout dropout = make_dropout("f2f", p_drop, rng.value_or(Tensor()));
  std::vector<Tensor> out{pooled_empty({p.nodes, p.d}, v.options())};
  for (int i = 0; i < 4; i++) out.push_back(pooled_empty({save ? p.nodes : 0, p.d}, v.options()));
  out.push_back(pooled_empty({save ? p.nodes : 0, p.modalities}, v.options().dtype(accumulate_dtype(v.scalar_type()))));
  with_dtype(v.scalar_type(), "f2f", [&](auto type) {
    using T = decltype(type);
    F2fArgs<T> args = args_of<T>(p, dropout, attention_site, update_site);
    PackedWeights<T> packed;
    pack_all(args, packed, p.weights, true);
    args.z = data<T>(out[0]);
    if (save) {
      args.q = data<T>(out[1]);
      args.w = data<T>(out[2]);
      args.s = data<T>(out[3]);
      args.r = data<T>(out[4]);
      args.lse = data<Acc<T>>(out[5]);
    }
    forward_samples(p, args);
  });
  return out;
}

// dv, dA, dC, dWv, db1, dWb, db2. `saved` is f2f_forward's output but for z.
std::vector<Tensor> f2f_backward(const Tensor& dz, const Tensor& v, const Tensor& offsets, const Tensor& a, const Tensor& c,
                                 const Tensor& wv, const Tensor& b1, const Tensor& wb, const Tensor& b2, double p_drop,
                                 const OptionalTensor& rng, int64_t attention_site, int64_t update_site, at::TensorList saved) {
  const Problem p = problem_of("f2f_backward", v, offsets, a, c, wv, b1, wb, b2);
  const Dropout dropout = make_dropout("f2f_backward", p_drop, rng.value_or(Tensor()));
  TORCH_CHECK_VALUE(saved.size() == 5, "f2f_backward: found ", saved.size(), " saved tensors; expected q, w, s, r and lse.");
  const int64_t d = p.d, n = p.nodes;
  const auto options = v.options(), wide = options.dtype(accumulate_dtype(v.scalar_type()));
  const Tensor g = dz.contiguous();
  std::vector<Tensor> kept;
  for (const Tensor& t : saved) kept.push_back(t.contiguous());
  Tensor dq = pooled_empty({n, d}, options), dw = pooled_empty({n, d}, options), dv = pooled_empty({n, d}, options);
  Tensor dt = dropout.on ? pooled_empty({n, d}, options) : g, h_sums = pooled_empty({p.samples, d}, wide);
  Tensor da = pooled_empty({d, d}, wide), dc = pooled_empty({p.modalities, d, d}, wide), dwv = pooled_empty({d, d}, wide),
         dwb = pooled_empty({d, d}, wide), db2 = pooled_empty({d}, wide);
  with_dtype(v.scalar_type(), "f2f_backward", [&](auto type) {
    using T = decltype(type);
    F2fArgs<T> args = args_of<T>(p, dropout, attention_site, update_site);
    PackedWeights<T> packed;
    pack_all(args, packed, p.weights, false);
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
    const F2fKernels<T>& k = f2f<T>();
    parallel_tasks(p.samples, k.backward_scratch(d, p.longest), [&](int64_t i, char* scratch) { k.backward(args, p.order[i], scratch); });
    const auto job = [&](const T* left, const T* right, int64_t begin, int64_t end, Acc<T>* to, Acc<T>* sums) {
      return OuterJob<T>{d, d, left, d, right, d, begin, end, to, sums};
    };
    std::vector<OuterJob<T>> jobs{job(args.v, args.dq, 0, n, data<Acc<T>>(da), nullptr),
                                  job(args.dz, args.s, 0, n, data<Acc<T>>(dwv), nullptr),
                                  job(args.dt, args.r, 0, n, data<Acc<T>>(dwb), data<Acc<T>>(db2))};
    for (int64_t m = 0; m < p.modalities; m++)
      jobs.push_back(job(args.dw, args.v, args.offsets[m * p.samples], args.offsets[(m + 1) * p.samples],
                         data<Acc<T>>(dc) + m * d * d, nullptr));
    run_outer_jobs<T>(jobs);
  });
  std::vector<Tensor> out{dv, da, dc, dwv, h_sums.sum(0), dwb, db2};
  for (size_t i = 1; i < out.size(); i++) out[i] = out[i].to(c.scalar_type());
  return out;
}

using ForwardSignature = std::vector<Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                             const Tensor&, const Tensor&, const Tensor&, double, const OptionalTensor&, int64_t,
                                             int64_t, bool);
const auto& forward_op() {
  static const auto op = find_op<ForwardSignature>("hhmpn_fast::f2f_forward");
  return op;
}

struct F2fFunction : torch::autograd::Function<F2fFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& v, const Tensor& offsets, const Tensor& a,
                        const Tensor& c, const Tensor& wv, const Tensor& b1, const Tensor& wb, const Tensor& b2, double p,
                        const OptionalTensor& rng, int64_t attention_site, int64_t update_site) {
    at::AutoDispatchBelowADInplaceOrView guard;
    std::vector<Tensor> out = forward_op().call(v, offsets, a, c, wv, b1, wb, b2, p, rng, attention_site, update_site, true);
    std::vector<Tensor> saved{v, offsets, a, c, wv, b1, wb, b2, rng.value_or(Tensor())};
    saved.insert(saved.end(), out.begin() + 1, out.end());
    ctx->save_for_backward(saved);
    ctx->saved_data["p"] = p;
    ctx->saved_data["attention_site"] = attention_site;
    ctx->saved_data["update_site"] = update_site;
    return out[0];
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, torch::autograd::variable_list grads) {
    const auto s = ctx->get_saved_variables();
    static const auto op = find_op<std::vector<Tensor>(
        const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
        const Tensor&, double, const OptionalTensor&, int64_t, int64_t, at::TensorList)>("hhmpn_fast::f2f_backward");
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

Tensor f2f_autograd(const Tensor& v, const Tensor& offsets, const Tensor& a, const Tensor& c, const Tensor& wv, const Tensor& b1,
                    const Tensor& wb, const Tensor& b2, double p, const OptionalTensor& rng, int64_t attention_site,
                    int64_t update_site) {
  if (any_requires_grad({v, a, c, wv, b1, wb, b2}))
    return F2fFunction::apply(v, offsets, a, c, wv, b1, wb, b2, p, rng, attention_site, update_site);
  at::AutoDispatchBelowADInplaceOrView guard;
  return forward_op().call(v, offsets, a, c, wv, b1, wb, b2, p, rng, attention_site, update_site, false)[0];
}

Tensor f2f_plain(const Tensor& v, const Tensor& offsets, const Tensor& a, const Tensor& c, const Tensor& wv, const Tensor& b1,
                 const Tensor& wb, const Tensor& b2, double p, const OptionalTensor& rng, int64_t attention_site,
                 int64_t update_site) {
  return f2f_forward(v, offsets, a, c, wv, b1, wb, b2, p, rng, attention_site, update_site, false)[0];
}

Tensor f2f_autocast(const Tensor& v, const Tensor& offsets, const Tensor& a, const Tensor& c, const Tensor& wv, const Tensor& b1,
                    const Tensor& wb, const Tensor& b2, double p, const OptionalTensor& rng, int64_t attention_site,
                    int64_t update_site) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastCPU);
  static const auto op =
      find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                     const Tensor&, double, const OptionalTensor&, int64_t, int64_t)>("hhmpn_fast::f2f");
  if (autocast_keeps({a, c, wv, b1, wb, b2}))
    return op.call(autocast_one(v), offsets, a, c, wv, b1, wb, b2, p, rng, attention_site, update_site);
  return op.call(autocast_one(v), offsets, autocast_one(a), autocast_one(c), autocast_one(wv), autocast_one(b1),
                 autocast_one(wb), autocast_one(b2), p, rng, attention_site, update_site);
}

}  // namespace

Tensor f2f_packed(const Tensor& v, const Tensor& offsets, int64_t modalities, at::TensorList weights) {
  const Problem p = problem_of("infer", v, offsets, modalities);
  Tensor z = pooled_empty({p.nodes, p.d}, v.options());
  with_dtype(v.scalar_type(), "infer", [&](auto type) {
    using T = decltype(type);
    F2fArgs<T> args = args_of<T>(p, Dropout{}, 0, 0);
    const int64_t bytes = dense<T>().packed_bytes(p.d, p.d);
    args.a = packed_matrices("A", weights[0], 1, bytes);
    args.wv = packed_matrices("wv", weights[1], 1, bytes);
    args.c = packed_matrices("C", weights[2], modalities, bytes);
    args.c_bytes = bytes;
    args.b1 = data<Acc<T>>(weights[3]);
    args.wb = packed_matrices("wb", weights[4], 1, bytes);
    args.b2 = data<Acc<T>>(weights[5]);
    args.z = data<T>(z);
    forward_samples(p, args);
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
