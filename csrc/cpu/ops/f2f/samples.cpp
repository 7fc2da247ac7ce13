// Tasks over samples, packing and weight gradients of F2F.
#include "ops/f2f/samples.h"

#include <algorithm>

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

F2fWeights::F2fWeights(const char* op, int64_t d, at::ScalarType dtype, const Tensor& a, const Tensor& c,
                       const Tensor& wv, const Tensor& b1, const Tensor& wb, const Tensor& b2) {
  const auto held = weight_dtype(c, dtype);
  TORCH_CHECK_VALUE(c.dim() == 3 && c.scalar_type() == held && c.size(1) == d && c.size(2) == d, op, ": C is ",
                    c.scalar_type(), " ", c.sizes(), "; expected ", held, " of shape (M, d, d), M <= 64 and d = ", d,
                    ".");
  check_matrix(op, "A", a, d, d, held);
  check_matrix(op, "wv", wv, d, d, held);
  check_matrix(op, "wb", wb, d, d, held);
  check_vector(op, "b1", b1, d, held);
  check_vector(op, "b2", b2, d, held);
  const auto bias = [&](const Tensor& t) { return t.to(dtype).to(accumulate_dtype(dtype)).contiguous(); };
  this->a = a.contiguous();
  this->c = c.contiguous();
  this->wv = wv.contiguous();
  this->b1 = bias(b1);
  this->wb = wb.contiguous();
  this->b2 = bias(b2);
}

template <class T>
F2fPacks<T>::F2fPacks(const F2fWeights& w, bool forward, bool keep) : b1_(w.b1), b2_(w.b2) {
  const int64_t d = w.a.size(0);
  a_ = packed_.add(w.a, 0, d, d, !forward);  // v A forward, dq A^T backward
  wv_ = packed_.add(w.wv, 0, d, d, forward);
  wb_ = packed_.add(w.wb, 0, d, d, forward);
  c_ = packed_.add(w.c, 0, d, d, forward);
  for (int64_t m = 1; m < w.c.size(0); m++) packed_.add(w.c, m, d, d, forward);
  packed_.pack(keep);
}

template <class T>
void F2fPacks<T>::give(F2fArgs<T>& args) const {
  args.a = packed_[a_];
  args.wv = packed_[wv_];
  args.wb = packed_[wb_];
  args.c = packed_[c_];
  args.c_bytes = packed_.bytes(c_);
  args.b1 = data<Acc<T>>(b1_);
  args.b2 = data<Acc<T>>(b2_);
}

F2fGradients::F2fGradients(int64_t d, int64_t modalities, at::TensorOptions wide)
    : a(pooled_empty({d, d}, wide)),
      c(pooled_empty({modalities, d, d}, wide)),
      wv(pooled_empty({d, d}, wide)),
      b1(pooled_empty({d}, wide)),
      wb(pooled_empty({d, d}, wide)),
      b2(pooled_empty({d}, wide)) {}

std::vector<Tensor> F2fGradients::all(at::ScalarType dtype) const {
  std::vector<Tensor> out;
  for (const Tensor& t : {a, c, wv, b1, wb, b2}) out.push_back(t.to(dtype));
  return out;
}

template <class T>
F2fArgs<T> f2f_args(const F2fBatch& batch, const Dropout& dropout, int64_t attention_site, int64_t update_site) {
  F2fArgs<T> a{};
  a.nodes = batch.nodes;
  a.d = batch.d;
  a.modalities = batch.modalities;
  a.samples = batch.samples;
  a.offsets = batch.offsets;
  a.dropout = dropout;
  a.attention_site = uint32_t(attention_site);
  a.update_site = uint32_t(update_site);
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
void f2f_weight_jobs(const F2fBatch& p, const F2fArgs<T>& args, const F2fGradients& to, bool add,
                     std::vector<OuterJob<T>>& jobs) {
  const int64_t d = p.d, n = p.nodes;
  const auto job = [&](const T* left, const T* right, int64_t begin, int64_t end, const Tensor& c, int64_t item,
                       const Tensor& sums) {
    jobs.push_back({d, d, left, d, right, d, begin, end, data<Acc<T>>(c) + item * d * d, data<Acc<T>>(sums), add});
  };
  job(args.v, args.dq, 0, n, to.a, 0, {});
  job(args.dz, args.s, 0, n, to.wv, 0, {});
  job(args.dt, args.r, 0, n, to.wb, 0, to.b2);
  for (int64_t m = 0; m < p.modalities; m++)
    job(args.dw, args.v, p.offsets[m * p.samples], p.offsets[(m + 1) * p.samples], to.c, m, {});
  Acc<T>* b1 = data<Acc<T>>(to.b1);
  if (!add) std::fill(b1, b1 + d, Acc<T>(0));
  for (int64_t b = 0; b < p.samples; b++)
    for (int64_t j = 0; j < d; j++) b1[j] += args.h_sums[b * d + j];
}

#define HHMPN_INSTANTIATE(T)                                                                   \
  template struct F2fPacks<T>;                                                                 \
  template F2fArgs<T> f2f_args(const F2fBatch&, const Dropout&, int64_t, int64_t);             \
  template void f2f_forward_samples(const F2fBatch&, const F2fArgs<T>&);                       \
  template void f2f_backward_samples(const F2fBatch&, const F2fArgs<T>&);                      \
  template void f2f_weight_jobs(const F2fBatch&, const F2fArgs<T>&, const F2fGradients&, bool, \
                                std::vector<OuterJob<T>>&);
HHMPN_INSTANTIATE(float)
HHMPN_INSTANTIATE(double)
HHMPN_INSTANTIATE(bf16)
#undef HHMPN_INSTANTIATE

}  // namespace hhmpn
