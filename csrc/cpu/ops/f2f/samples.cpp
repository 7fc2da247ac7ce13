// Tasks over samples, packing and weight gradients of F2F.
#include "ops/f2f/samples.h"

#include <algorithm>
#include <functional>

namespace hhmpn {

using at::Tensor;

F2fBatch::F2fBatch(int64_t nodes, int64_t d, int64_t modalities, int64_t samples, const int32_t* offsets)
    : nodes(nodes), d(d), modalities(modalities), samples(samples), offsets(offsets), counts(size_t(samples), 0) {
  for (int64_t i = 0; i < modalities * samples; i++) counts[i % samples] += offsets[i + 1] - offsets[i];
  for (int64_t b = 0; b < samples; b++) {
    order.push_back(b);
    longest = std::max(longest, counts[b]);
    total += cost(b);
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) { return counts[x] > counts[y]; });
}

BlockWeights f2f_weights(const char* op, int64_t d, at::ScalarType dtype, const BlockWeights& given) {
  const Tensor& c = given.hidden;
  const auto held = weight_dtype(c, dtype);
  TORCH_CHECK_VALUE(c.dim() == 3 && c.scalar_type() == held && c.size(1) == d && c.size(2) == d, op, ": hidden is ",
                    c.scalar_type(), " ", c.sizes(), "; expected ", held, " of shape (M, d, d), M <= 64 and d = ", d,
                    ".");
  BlockWeights w;
  BlockWeights::matrices(w, given, [&](const char* name, Tensor& to, const Tensor& t) {
    if (&t != &c) check_matrix(op, name, t, d, d, held);
    to = t.contiguous();
  });
  BlockWeights::biases(w, given, [&](const char* name, Tensor& to, const Tensor& t) {
    check_vector(op, name, t, d, held);
    to = t.to(dtype).to(accumulate_dtype(dtype)).contiguous();
  });
  return w;
}

template <class T>
F2fPacks<T>::F2fPacks(const BlockWeights& w, bool forward, bool keep) : b1_(w.b1), b2_(w.b2) {
  const int64_t d = w.query.size(0);
  query_ = packed_.add(w.query, 0, d, d, !forward);  // v query forward, d_q query^T backward
  value_ = packed_.add(w.value, 0, d, d, forward);
  output_ = packed_.add(w.output, 0, d, d, forward);
  hidden_ = packed_.add(w.hidden, 0, d, d, forward);
  for (int64_t m = 1; m < w.hidden.size(0); m++) packed_.add(w.hidden, m, d, d, forward);
  packed_.pack(keep);
}

template <class T>
void F2fPacks<T>::give(F2fArgs<T>& args) const {
  args.query = packed_[query_];
  args.value = packed_[value_];
  args.output = packed_[output_];
  args.hidden = packed_[hidden_];
  args.hidden_bytes = packed_.bytes(hidden_);
  args.b1 = data<Acc<T>>(b1_);
  args.b2 = data<Acc<T>>(b2_);
}

BlockWeights f2f_gradients(int64_t d, int64_t modalities, at::TensorOptions wide) {
  BlockWeights g;
  BlockWeights::matrices(g, g, [&](const char*, Tensor& to, Tensor&) { to = pooled_empty({d, d}, wide); });
  BlockWeights::biases(g, g, [&](const char*, Tensor& to, Tensor&) { to = pooled_empty({d}, wide); });
  g.hidden = pooled_empty({modalities, d, d}, wide);
  return g;
}

BlockWeights f2f_finish(const BlockWeights& gradients, at::ScalarType dtype) {
  BlockWeights out;
  BlockWeights::both(out, gradients, [&](const char*, Tensor& to, const Tensor& t) { to = t.to(dtype); });
  return out;
}

template <class T>
F2fArgs<T> f2f_args(const F2fBatch& batch, const Dropout& dropout, const F2fSites& sites) {
  F2fArgs<T> a{};
  a.nodes = batch.nodes;
  a.d = batch.d;
  a.modalities = batch.modalities;
  a.samples = batch.samples;
  a.offsets = batch.offsets;
  a.dropout = dropout;
  a.attention_site = uint32_t(sites.attention);
  a.update_site = uint32_t(sites.update);
  return a;
}

namespace {

struct Task {
  int64_t sample, begin, end;
};

// Whole samples, but for those that would keep one thread busy alone: their rows are cut, at the price of projecting keys twice.
// The one that costs more than all others together may be left to a team.
std::vector<Task> forward_tasks(const F2fBatch& p, bool team) {
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

}  // namespace

template <class T>
void f2f_forward_samples(const F2fBatch& p, const F2fArgs<T>& args) {
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

template <class T>
void f2f_backward_samples(const F2fBatch& p, const F2fArgs<T>& args) {
  const F2fKernels<T>& k = f2f<T>();
  parallel_tasks(p.samples, k.backward_scratch(p.d, p.longest),
                 [&](int64_t i, char* scratch) { k.backward(args, p.order[i], scratch); });
}

template <class T>
void f2f_weight_jobs(const F2fBatch& p, const F2fArgs<T>& args, const BlockWeights& to, bool add,
                     std::vector<OuterJob<T>>& jobs) {
  const int64_t d = p.d, n = p.nodes;
  using A = Acc<T>;
  jobs.push_back({d, d, args.v, d, args.d_q, d, 0, n, data<A>(to.query), nullptr, add});
  jobs.push_back({d, d, args.d_out, d, args.s, d, 0, n, data<A>(to.value), nullptr, add});
  jobs.push_back({d, d, args.d_tail, d, args.h, d, 0, n, data<A>(to.output), data<A>(to.b2), add});
  for (int64_t m = 0; m < p.modalities; m++)
    jobs.push_back({d, d, args.d_w, d, args.v, d, p.offsets[m * p.samples], p.offsets[(m + 1) * p.samples],
                    data<A>(to.hidden) + m * d * d, nullptr, add});
  A* b1 = data<A>(to.b1);
  if (!add) std::fill(b1, b1 + d, A(0));
  for (int64_t b = 0; b < p.samples; b++)
    for (int64_t j = 0; j < d; j++) b1[j] += args.d_h_sums[b * d + j];
}

#define HHMPN_INSTANTIATE(T)                                                                   \
  template struct F2fPacks<T>;                                                                 \
  template F2fArgs<T> f2f_args(const F2fBatch&, const Dropout&, const F2fSites&);              \
  template void f2f_forward_samples(const F2fBatch&, const F2fArgs<T>&);                       \
  template void f2f_backward_samples(const F2fBatch&, const F2fArgs<T>&);                      \
  template void f2f_weight_jobs(const F2fBatch&, const F2fArgs<T>&, const BlockWeights&, bool, \
                                std::vector<OuterJob<T>>&);
HHMPN_INSTANTIATE(float)
HHMPN_INSTANTIATE(double)
HHMPN_INSTANTIATE(bf16)
#undef HHMPN_INSTANTIATE

}  // namespace hhmpn
