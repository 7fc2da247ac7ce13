// Host side of kernels.h: checks, tasks over samples, autograd, autocast.
#include "ops/attention/kernels.h"

#include <algorithm>
#include <numeric>

#include "host/threads.h"
#include "host/memory.h"
#include "host/tensors.h"

namespace hhmpn {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct Problem {
  Tensor q, x, q_offsets, x_offsets, mask;
  int64_t d, rows, groups, samples, queries, longest = 0, most_rows = 0;
  std::vector<int64_t> cost, sample_rows;
};

Problem problem_of(const char* op, const Tensor& q, const Tensor& x, const Tensor& q_offsets, const Tensor& x_offsets,
                   int64_t groups, const OptionalTensor& mask) {
  TORCH_CHECK_VALUE(q.dim() == 2, op, ": q has shape ", q.sizes(), "; expected (R, d).");
  check_matrix(op, "x", x, -1, q.size(1), q.scalar_type());
  Problem p;
  p.q = as_matrix(q);
  p.x = as_matrix(x);
  p.q_offsets = q_offsets.contiguous();
  p.x_offsets = x_offsets.contiguous();
  p.d = q.size(1);
  p.rows = q.size(0);
  p.groups = groups;
  p.queries = q_offsets.numel() - 1;
  const int64_t keys = x_offsets.numel() - 1;
  TORCH_CHECK_VALUE(
      groups >= 1 && keys % groups == 0 && (keys == 0 ? p.queries == 0 : p.queries % (keys / groups) == 0), op,
      ": found ", p.queries, " query segments, ", keys, " key segments and ", groups,
      " groups; expected key segments = groups * S and query segments a multiple of S.");
  p.samples = keys / groups;
  const int32_t* qo = check_offsets(op, "q_offsets", p.q_offsets, p.rows);
  const int32_t* xo = check_offsets(op, "x_offsets", p.x_offsets, x.size(0));
  int64_t longest_query = 0;
  p.cost.resize(p.samples);
  p.sample_rows.resize(p.samples);
  for (int64_t b = 0; b < p.samples; b++) {
    int64_t keys_read = 0;
    for (int64_t i = b; i < p.queries; i += p.samples) {
      p.sample_rows[b] += qo[i + 1] - qo[i];
      longest_query = std::max<int64_t>(longest_query, qo[i + 1] - qo[i]);
    }
    for (int64_t k = b; k < keys; k += p.samples) {
      keys_read += xo[k + 1] - xo[k];
      p.longest = std::max<int64_t>(p.longest, xo[k + 1] - xo[k]);
    }
    p.cost[b] = keys_read * (p.sample_rows[b] + 8);
    p.most_rows = std::max(p.most_rows, p.sample_rows[b]);
  }
  if (mask) {
    TORCH_CHECK_VALUE(mask->dim() == 2 && mask->scalar_type() == at::kBool && mask->size(0) >= longest_query &&
                          mask->size(1) >= p.longest,
                      op, ": mask is ", mask->scalar_type(), " ", mask->sizes(),
                      "; expected bool (rows of a query segment, rows of a key segment), at least (", longest_query,
                      ", ", p.longest, ").");
    p.mask = mask->contiguous();
  }
  return p;
}

template <class T>
AttentionArgs<T> args_of(const Problem& p, const Dropout& dropout, int64_t site, const Tensor& context,
                         const Tensor& lse) {
  AttentionArgs<T> a{};
  a.q = data<T>(p.q);
  a.x = data<T>(p.x);
  a.ldq = p.q.stride(0);
  a.ldx = p.x.stride(0);
  a.d = p.d;
  a.rows = p.rows;
  a.groups = p.groups;
  a.samples = p.samples;
  a.queries = p.queries;
  a.q_offsets = p.q_offsets.const_data_ptr<int32_t>();
  a.x_offsets = p.x_offsets.const_data_ptr<int32_t>();
  a.mask = p.mask.defined() ? p.mask.const_data_ptr<bool>() : nullptr;
  a.ldmask = p.mask.defined() ? p.mask.size(1) : 0;
  a.dropout = dropout;
  a.site = uint32_t(site);
  a.context = data<T>(context);
  a.lse = data<Acc<T>>(lse);
  return a;
}

struct Task {
  int64_t sample, begin, end, cost;
};

// Whole samples where they can keep every thread busy; costlier ones are cut at block bounds. Bits do not depend on the cut.
std::vector<Task> tasks_of(const Problem& p, bool cut) {
  const int64_t total = std::accumulate(p.cost.begin(), p.cost.end(), int64_t(0));
  const int64_t share = std::max<int64_t>(total / (4 * at::get_num_threads()), 1);
  std::vector<Task> tasks;
  for (int64_t b = 0; b < p.samples; b++) {
    const int64_t rows = p.sample_rows[b];
    if (rows == 0 && cut) continue;
    int64_t parts = cut && at::get_num_threads() > 1
                        ? std::min((p.cost[b] + share - 1) / share, (rows + kQueryRows - 1) / kQueryRows)
                        : 1;
    parts = std::max<int64_t>(parts, 1);
    const int64_t step = (rows + parts - 1) / parts;
    int64_t begin = 0;
    do {
      const int64_t end = std::min(rows, begin + step);
      tasks.push_back({b, begin, end, p.cost[b] / parts});
      begin = end;
    } while (begin < rows);
  }
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.cost > b.cost; });
  return tasks;
}

std::tuple<Tensor, Tensor> attention_forward(const Tensor& q, const Tensor& x, const Tensor& q_offsets,
                                             const Tensor& x_offsets, int64_t groups, const OptionalTensor& mask,
                                             double p_drop, const OptionalTensor& rng, int64_t site) {
  const Problem p = problem_of("attention", q, x, q_offsets, x_offsets, groups, mask);
  const Dropout dropout = make_dropout("attention", p_drop, rng.value_or(Tensor()));
  Tensor context = pooled_empty({groups, p.rows, p.d}, q.options());
  Tensor lse = pooled_empty({groups, p.rows}, q.options().dtype(accumulate_dtype(q.scalar_type())));
  with_dtype(q.scalar_type(), "attention", [&](auto type) {
    using T = decltype(type);
    const AttentionKernels<T>& k = attention<T>();
    const AttentionArgs<T> a = args_of<T>(p, dropout, site, context, lse);
    const std::vector<Task> tasks = tasks_of(p, true);
    parallel_tasks(int64_t(tasks.size()), k.forward_scratch(p.d, p.longest), [&](int64_t i, char* scratch) {
      k.forward(a, tasks[i].sample, tasks[i].begin, tasks[i].end, scratch);
    });
  });
  return {context, lse};
}

std::tuple<Tensor, Tensor> attention_backward(const Tensor& d_context, const OptionalTensor& d_lse, const Tensor& q,
                                              const Tensor& x, const Tensor& q_offsets, const Tensor& x_offsets,
                                              int64_t groups, const OptionalTensor& mask, double p_drop,
                                              const OptionalTensor& rng, int64_t site, const Tensor& context,
                                              const Tensor& lse) {
  const Problem p = problem_of("attention_backward", q, x, q_offsets, x_offsets, groups, mask);
  const Dropout dropout = make_dropout("attention_backward", p_drop, rng.value_or(Tensor()));
  Tensor dq = pooled_empty({p.rows, p.d}, q.options()), dx = pooled_empty({x.size(0), p.d}, q.options());
  const Tensor grad = d_context.contiguous(), c = context.contiguous(), l = lse.contiguous();
  const Tensor dl = d_lse ? d_lse->to(l.scalar_type()).contiguous() : Tensor();
  with_dtype(q.scalar_type(), "attention_backward", [&](auto type) {
    using T = decltype(type);
    const AttentionKernels<T>& k = attention<T>();
    AttentionArgs<T> a = args_of<T>(p, dropout, site, c, l);
    a.d_context = data<T>(grad);
    a.d_lse = data<Acc<T>>(dl);
    a.d_q = data<T>(dq);
    a.d_x = data<T>(dx);
    const std::vector<Task> tasks = tasks_of(p, false);
    parallel_tasks(int64_t(tasks.size()), k.backward_scratch(p.d, p.longest, p.most_rows),
                   [&](int64_t i, char* scratch) { k.backward(a, tasks[i].sample, scratch); });
  });
  return {dq, dx};
}

using ForwardSignature = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, int64_t,
                                                    const OptionalTensor&, double, const OptionalTensor&, int64_t);
const auto& forward_op() {
  static const auto op = find_op<ForwardSignature>("hhmpn_fast::attention");
  return op;
}

struct AttentionFunction : torch::autograd::Function<AttentionFunction> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const Tensor& q, const Tensor& x,
                                                const Tensor& q_offsets, const Tensor& x_offsets, int64_t groups,
                                                const OptionalTensor& mask, double p, const OptionalTensor& rng,
                                                int64_t site) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [context, lse] = forward_op().call(q, x, q_offsets, x_offsets, groups, mask, p, rng, site);
    ctx->save_for_backward({q, x, q_offsets, x_offsets, mask.value_or(Tensor()), rng.value_or(Tensor()), context, lse});
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["p"] = p;
    ctx->saved_data["site"] = site;
    ctx->set_materialize_grads(false);
    return {context, lse};
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    torch::autograd::variable_list out(9);
    if (!grads[0].defined() && !grads[1].defined()) return out;
    const auto s = ctx->get_saved_variables();
    const auto optional = [](const Tensor& t) { return t.defined() ? OptionalTensor(t) : OptionalTensor(); };
    const Tensor d_context = grads[0].defined() ? grads[0] : at::zeros_like(s[6]);
    static const auto op = find_op<std::tuple<Tensor, Tensor>(
        const Tensor&, const OptionalTensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, int64_t,
        const OptionalTensor&, double, const OptionalTensor&, int64_t, const Tensor&, const Tensor&)>(
        "hhmpn_fast::attention_backward");
    std::tie(out[0], out[1]) = op.call(
        d_context, optional(grads[1]), s[0], s[1], s[2], s[3], ctx->saved_data["groups"].toInt(), optional(s[4]),
        ctx->saved_data["p"].toDouble(), optional(s[5]), ctx->saved_data["site"].toInt(), s[6], s[7]);
    return out;
  }
};

std::tuple<Tensor, Tensor> attention_autograd(const Tensor& q, const Tensor& x, const Tensor& q_offsets,
                                              const Tensor& x_offsets, int64_t groups, const OptionalTensor& mask,
                                              double p, const OptionalTensor& rng, int64_t site) {
  if (any_requires_grad({q, x})) {
    auto out = AttentionFunction::apply(q, x, q_offsets, x_offsets, groups, mask, p, rng, site);
    return {out[0], out[1]};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return forward_op().call(q, x, q_offsets, x_offsets, groups, mask, p, rng, site);
}

std::tuple<Tensor, Tensor> attention_autocast(const Tensor& q, const Tensor& x, const Tensor& q_offsets,
                                              const Tensor& x_offsets, int64_t groups, const OptionalTensor& mask,
                                              double p, const OptionalTensor& rng, int64_t site) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastCPU);
  return forward_op().call(autocast_one(q), autocast_one(x), q_offsets, x_offsets, groups, mask, p, rng, site);
}

}  // namespace

TORCH_LIBRARY_IMPL(hhmpn_fast, CPU, m) {
  m.impl("attention", attention_forward);
  m.impl("attention_backward", attention_backward);
}
TORCH_LIBRARY_IMPL(hhmpn_fast, Autograd, m) {
  m.impl("attention", attention_autograd);
  m.impl("attention_backward", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(hhmpn_fast, AutocastCPU, m) { m.impl("attention", attention_autocast); }

}  // namespace hhmpn
