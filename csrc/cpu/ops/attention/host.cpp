// Host side of kernels.h: checks, tasks over samples.
#include "ops/attention/kernels.h"

#include <algorithm>
#include <numeric>

#include "host/threads.h"
#include "host/dropout.h"
#include "host/memory.h"
#include "adapter/op.h"
#include "host/tensors.h"

namespace hhmpn {
namespace {

using at::Tensor;

struct Attention {
  Tensor q, x, q_offsets, x_offsets, mask;
  int64_t groups, site;
  bool exclude_self;
  DropoutInput dropout;
  template <class V>
  void each(V& v) {
    v.rows("q", q), v.rows("x", x), v.data("q_offsets", q_offsets), v.data("x_offsets", x_offsets);
    v.data("groups", groups), v.data("mask", mask), v.data("exclude_self", exclude_self), dropout.each(v);
    v.data("site", site);
  }
};

struct AttentionResult {
  Tensor context, lse;
  template <class V>
  void each(V& v) {
    v.exact("context", context), v.exact("lse", lse);
  }
};

struct AttentionBack {
  Tensor d_context, d_lse;
  Attention in;
  AttentionResult out;
  Needs needs;
  template <class V>
  void each(V& v) {
    v.data("d_context", d_context), v.data("d_lse", d_lse), in.each(v), out.each(v);
  }
};

struct Problem {
  Tensor q, x, q_offsets, x_offsets, mask;
  int64_t d, rows, groups, samples, queries, longest = 0, most_rows = 0;
  std::vector<int64_t> cost, sample_rows;
};

Problem problem_of(const char* op, const Attention& in) {
  const Tensor &q = in.q, &x = in.x, &q_offsets = in.q_offsets, &x_offsets = in.x_offsets, &mask = in.mask;
  const int64_t groups = in.groups;
  TORCH_CHECK_VALUE(!in.exclude_self, op, ": the cpu kernels do not hold exclude_self; expected false.");
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
  if (mask.defined()) {
    TORCH_CHECK_VALUE(mask.dim() == 2 && mask.scalar_type() == at::kBool && mask.size(0) >= longest_query &&
                          mask.size(1) >= p.longest,
                      op, ": mask is ", mask.scalar_type(), " ", mask.sizes(),
                      "; expected bool (rows of a query segment, rows of a key segment), at least (", longest_query,
                      ", ", p.longest, ").");
    p.mask = mask.contiguous();
  }
  return p;
}

template <class T>
AttentionArgs<T> args_of(const Problem& p, const Attention& in, const Dropout& dropout, const AttentionResult& out) {
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
  a.site = uint32_t(in.site);
  a.context = data<T>(out.context);
  a.lse = data<Acc<T>>(out.lse);
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

AttentionResult attention_forward(const Attention& in, bool) {
  const Problem p = problem_of("attention", in);
  const Dropout dropout = make_dropout("attention", in.dropout);
  const AttentionResult out{
      pooled_empty({p.groups, p.rows, p.d}, in.q.options()),
      pooled_empty({p.groups, p.rows}, in.q.options().dtype(accumulate_dtype(in.q.scalar_type())))};
  with_dtype(in.q.scalar_type(), "attention", [&](auto type) {
    using T = decltype(type);
    const AttentionKernels<T>& k = attention<T>();
    const AttentionArgs<T> a = args_of<T>(p, in, dropout, out);
    const std::vector<Task> tasks = tasks_of(p, true);
    parallel_tasks(int64_t(tasks.size()), k.forward_scratch(p.d, p.longest), [&](int64_t i, char* scratch) {
      k.forward(a, tasks[i].sample, tasks[i].begin, tasks[i].end, scratch);
    });
  });
  return out;
}

Attention attention_backward(const AttentionBack& b) {
  const Attention& in = b.in;
  const Problem p = problem_of("attention_backward", in);
  const Dropout dropout = make_dropout("attention_backward", in.dropout);
  check_kept("attention_backward", "context", b.out.context, p.groups * p.rows * p.d, in.q.scalar_type());
  check_kept("attention_backward", "lse", b.out.lse, p.groups * p.rows, accumulate_dtype(in.q.scalar_type()));
  Attention d{};
  d.q = pooled_empty({p.rows, p.d}, in.q.options());
  d.x = pooled_empty({in.x.size(0), p.d}, in.q.options());
  const AttentionResult out{b.out.context.contiguous(), b.out.lse.contiguous()};
  const Tensor d_context =
      b.d_context.defined() ? b.d_context.contiguous() : at::zeros(out.context.sizes(), out.context.options());
  const Tensor d_lse = b.d_lse.defined() ? b.d_lse.to(out.lse.scalar_type()).contiguous() : Tensor();
  with_dtype(in.q.scalar_type(), "attention_backward", [&](auto type) {
    using T = decltype(type);
    const AttentionKernels<T>& k = attention<T>();
    AttentionArgs<T> a = args_of<T>(p, in, dropout, out);
    a.d_context = data<T>(d_context);
    a.d_lse = data<Acc<T>>(d_lse);
    a.d_q = data<T>(d.q);
    a.d_x = data<T>(d.x);
    const std::vector<Task> tasks = tasks_of(p, false);
    parallel_tasks(int64_t(tasks.size()), k.backward_scratch(p.d, p.longest, p.most_rows),
                   [&](int64_t i, char* scratch) { k.backward(a, tasks[i].sample, scratch); });
  });
  return d;
}

HHMPN_OP(attention, attention_forward, attention_backward)

}  // namespace
}  // namespace hhmpn
