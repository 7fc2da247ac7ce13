// tower_backward_pass: step after step from the last, first every block's data gradients, then the step's weight gradients,
// each summed over all rows in ascending order by one task; at the end the nodes'. No atomics, no partial sums that depend on
// threads.
#include "ops/tower/gradients.h"

#include "base/arena.h"
#include "host/memory.h"
#include "host/weight_gradients.h"

namespace hhmpn {

using at::Tensor;

namespace {

template <class T>
Acc<T>* of_set(const Tensor& gradient, int64_t set) {
  return data<Acc<T>>(gradient) + set * gradient.stride(0);
}

// The gradients of step t's weights from what every block left in `g`.
template <class T>
void weight_gradients(const TowerInputs& in, const TowerPlan& plan, const TowerCall<T>& call, const TowerGrads<T>& g,
                      const TowerGradients<T>& to, int64_t t, bool first) {
  const int64_t d = in.dim(), set = in.set(t), rows = int64_t(plan.pair_modality.size()) * in.labels();
  const bool add = !first || (in.sets == 1 && t < in.steps - 1);  // tied sets add up over the steps
  std::vector<OuterJob<T>> jobs;
  const auto job = [&](const T* a, const T* b, const Tensor& c, const Tensor& sums, int64_t count) {
    jobs.push_back(
        {d, d, a, d, b, d, 0, count, of_set<T>(c, set), sums.defined() ? of_set<T>(sums, set) : nullptr, add});
  };
  const auto grad = [&](int64_t kind) { return g.rows + kind * call.cap * d; };
  const auto state = [&](int64_t kind) { return call.states + (t * tower_kinds(call.has_l2l) + kind) * call.cap * d; };
  job(grad(kGradG), g.contexts, to.f2l.value, {}, rows);
  job(grad(kGradH), state(kG), to.f2l.hidden, to.f2l.b1, rows);
  job(grad(kGradOut), state(kH), to.f2l.output, to.f2l.b2, rows);
  if (call.has_l2l) {
    job(state(kOut), grad(kGradLabelQuery), to.l2l.query, {}, rows);
    job(grad(kGradLabelG), g.contexts + call.cap * d, to.l2l.value, {}, rows);
    job(grad(kGradLabelH), state(kLabelG), to.l2l.hidden, to.l2l.b1, rows);
    job(grad(kGradLabelOut), state(kLabelH), to.l2l.output, to.l2l.b2, rows);
  }
  const int64_t label_rows = in.samples() * in.labels();
  if (call.has_query && t > 0) job(call.fused + (t - 1) * label_rows * d, g.d_q, to.f2l.query, {}, label_rows);
  run_outer_jobs<T>(jobs);
}

}  // namespace

template <class T>
TowerBuffers<T>::TowerBuffers(void* block, const TowerInputs& in, const TowerPlan& plan) {
  Arena a(block);
  const int64_t d = in.dim(), L = in.labels(), cap = in.cap(), label_rows = in.samples() * L;
  grads.state = a.take<Acc<T>>(label_rows * d);
  grads.rows = a.take<T>(kTowerGrads * cap * d);
  grads.contexts = a.take<T>(2 * cap * d);
  grads.d_q = a.take<T>(label_rows * d);
  grads.d_context = a.take<T>(in.steps * cap * d);
  grads.factors = a.take<Acc<T>>(in.nodes.count * 2 * L * in.steps);
  grads.sums = a.take<Acc<T>>(int64_t(plan.blocks.size()) * TowerSums{L}.rows() * d);
  bytes = a.bytes;
}

template <class T>
TowerGradients<T>::TowerGradients(const TowerInputs& in) {
  const auto wide = in.wide();
  sums = at::zeros({TowerSums{in.labels()}.rows(), in.dim()}, wide);
  const auto fill = [&](const char*, Tensor& to, const Tensor& t) {
    if (t.defined()) to = pooled_empty(t.sizes(), wide);
  };
  BlockWeights::both(f2l, in.f2l, fill);
  BlockWeights::both(l2l, in.l2l, fill);
}

template <class T>
LabelWeights TowerGradients<T>::finish(const TowerInputs& in, const TowerPacks<T>& packs) {
  const int64_t d = in.dim(), L = in.labels();
  const TowerSums at{L};
  Tensor u0 = sums.narrow(0, at.u0(), L);
  if (in.has_query()) {
    // At step 0 the query of a label is one row for the whole batch: its gradient q0 is summed over the samples before it goes on.
    const Tensor q0 = sums.narrow(0, at.q0(), L).to(in.dtype()).contiguous();
    run_outer_jobs<T>({{d, d, data<T>(in.label_embedding), d, data<T>(q0), d, 0, L, of_set<T>(f2l.query, 0), nullptr,
                        in.sets == 1 && in.steps > 1}});
    const DenseKernels<T>& k = dense<T>();
    const Tensor back = pooled_empty({L, d}, in.nodes.options);
    k.linear({L, d, d}, {data<T>(q0), d}, packs.f2l.front().query, nullptr, {data<T>(back), d},
             thread_scratch(k.linear_scratch(d, d)));
    u0 = u0.add(back);
  }
  const at::ScalarType dtype = in.weight_dtype();
  // Copies: outputs of an op must not share memory.
  const auto part = [&](const Tensor& t) { return t.to(dtype, false, true).contiguous(); };
  LabelWeights out;
  out.label_embedding = part(u0);
  out.wo = part(sums.narrow(0, at.wo(), L));
  if (in.wl.defined()) out.wl = part(sums.select(0, at.wl()));
  const auto round = [&](const char*, Tensor& to, const Tensor& t) {
    if (t.defined()) to = t.to(dtype);
  };
  BlockWeights::both(out.f2l, f2l, round);
  BlockWeights::both(out.l2l, l2l, round);
  return out;
}

template <class T>
void tower_backward_pass(const TowerInputs& in, const TowerPlan& plan, const TowerCall<T>& call, const TowerGrads<T>& g,
                         TowerGradients<T>& to, bool first) {
  const TowerKernels<T>& k = tower<T>();
  const int64_t parts = int64_t(plan.blocks.size()), width = TowerSums{in.labels()}.rows() * in.dim();
  std::fill(g.state, g.state + in.samples() * in.labels() * in.dim(), Acc<T>(0));
  std::fill(g.sums, g.sums + parts * width, Acc<T>(0));
  int64_t bytes = 0;
  for (const TowerBlock& b : plan.blocks)
    bytes = std::max(bytes, k.backward_scratch(call, b.end - b.begin, plan.pairs_of(b)));
  for (int64_t t = in.steps - 1; t >= 0; t--) {
    parallel_tasks(parts, bytes, [&](int64_t i, char* scratch) { k.backward(call, g, plan.blocks[i], t, scratch); });
    weight_gradients(in, plan, call, g, to, t, first);
  }
  Acc<T>* sums = data<Acc<T>>(to.sums);
  for (int64_t i = 0; i < parts; i++)
    for (int64_t j = 0; j < width; j++) sums[j] += g.sums[i * width + j];
  if (!g.d_z) return;
  std::vector<int64_t> sample_of;
  for (int64_t b = 0; b < in.samples(); b++) sample_of.resize(size_t(plan.pair_at[b + 1]), b);
  parallel_tasks(int64_t(sample_of.size()), k.nodes_scratch(call),
                 [&](int64_t pair, char* scratch) { k.nodes(call, g, sample_of[pair], pair, scratch); });
}

#define HHMPN_INSTANTIATE(T)                                                                                         \
  template struct TowerBuffers<T>;                                                                                   \
  template struct TowerGradients<T>;                                                                                 \
  template void tower_backward_pass(const TowerInputs&, const TowerPlan&, const TowerCall<T>&, const TowerGrads<T>&, \
                                    TowerGradients<T>&, bool);
HHMPN_INSTANTIATE(float)
HHMPN_INSTANTIATE(double)
HHMPN_INSTANTIATE(bf16)
#undef HHMPN_INSTANTIATE

}  // namespace hhmpn
