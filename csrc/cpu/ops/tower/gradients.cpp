// tower_backward: step after step from the last, first every block's data gradients, then the step's weight gradients, each
// summed over all rows in ascending order by one task; at the end the nodes'. No atomics, no partial sums that depend on threads.
//
// Returns dz, du0, dwo, dwl (empty without wl), then F2L's and L2L's as the forward op lists them.
#include "base/arena.h"
#include "host/weight_gradients.h"
#include "host/memory.h"
#include "ops/tower/inputs.h"

namespace hhmpn {

using at::Tensor;
using at::TensorList;
using Optional = std::optional<Tensor>;

namespace {

constexpr int64_t kQuery = 6, kWv = 5, kWr = 4, kB1 = 3, kWb = 2, kB2 = 1;  // from the end of a block's list

template <class T>
Acc<T>* gradient(const std::vector<Tensor>& block, int64_t from_end, int64_t set) {
  const Tensor& t = block[block.size() - size_t(from_end)];
  return data<Acc<T>>(t) + set * t.stride(0);
}

// The gradients of step t's weights from what every block left in `g`.
template <class T>
void weight_gradients(const TowerInputs& in, const TowerPlan& plan, const TowerCall<T>& call, const TowerGrads<T>& g,
                      const TowerGradients<T>& to, int64_t t, bool first) {
  const int64_t d = in.dim(), set = in.set(t), rows = int64_t(plan.pair_modality.size()) * in.labels();
  const bool add = !first || (in.sets == 1 && t < in.steps - 1);  // tied sets add up over the steps
  std::vector<OuterJob<T>> jobs;
  const auto job = [&](const T* a, const T* b, Acc<T>* c, Acc<T>* sums, int64_t count) {
    jobs.push_back({d, d, a, d, b, d, 0, count, c, sums, add});
  };
  const auto grad = [&](int64_t kind) { return g.rows + kind * call.cap * d; };
  const auto state = [&](int64_t kind) { return call.states + (t * tower_kinds(call.has_l2l) + kind) * call.cap * d; };
  const auto f2l = [&](int64_t which) { return gradient<T>(to.f2l, which, set); };
  const auto l2l = [&](int64_t which) { return gradient<T>(to.l2l, which, set); };
  job(grad(kGradG), g.contexts, f2l(kWv), nullptr, rows);
  job(grad(kGradH), state(kG), f2l(kWr), f2l(kB1), rows);
  job(grad(kGradOut), state(kH), f2l(kWb), f2l(kB2), rows);
  if (call.has_l2l) {
    job(state(kOut), grad(kGradLabelQuery), l2l(kQuery), nullptr, rows);
    job(grad(kGradLabelG), g.contexts + call.cap * d, l2l(kWv), nullptr, rows);
    job(grad(kGradLabelH), state(kLabelG), l2l(kWr), l2l(kB1), rows);
    job(grad(kGradLabelOut), state(kLabelH), l2l(kWb), l2l(kB2), rows);
  }
  const int64_t label_rows = in.samples() * in.labels();
  if (call.has_query && t > 0) job(call.fused + (t - 1) * label_rows * d, g.d_q, f2l(kQuery), nullptr, label_rows);
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
  grads.sums = a.take<Acc<T>>(int64_t(plan.blocks.size()) * (1 + 3 * L) * d);
  bytes = a.bytes;
}

template <class T>
TowerGradients<T>::TowerGradients(const TowerInputs& in) {
  const auto wide = in.wide();
  sums = at::zeros({1 + 3 * in.labels(), in.dim()}, wide);
  const auto fill = [&](std::vector<Tensor>& grads, const Tensor& query, const std::vector<Tensor>& weights) {
    if (query.defined()) grads.push_back(pooled_empty(query.sizes(), wide));
    for (const Tensor& t : weights) grads.push_back(pooled_empty(t.sizes(), wide));
  };
  fill(f2l, in.f2l_query, in.f2l);
  fill(l2l, in.l2l_query, in.l2l);
}

template <class T>
std::vector<Tensor> TowerGradients<T>::finish(const TowerInputs& in, const TowerPacks<T>& packs) {
  const int64_t d = in.dim(), L = in.labels();
  Tensor u0 = sums.slice(0, 1 + L, 1 + 2 * L);
  if (in.f2l_query.defined()) {
    // At step 0 the query of a label is one row for the whole batch: its gradient q0 is summed over the samples before it goes on.
    const Tensor q0 = sums.slice(0, 1 + 2 * L, 1 + 3 * L).to(in.dtype()).contiguous();
    run_outer_jobs<T>({{d, d, data<T>(in.label_embedding), d, data<T>(q0), d, 0, L, gradient<T>(f2l, kQuery, 0),
                        nullptr, in.sets == 1 && in.steps > 1}});
    const DenseKernels<T>& k = dense<T>();
    const Tensor back = pooled_empty({L, d}, in.nodes.options);
    k.linear({L, d, d}, {data<T>(q0), d}, packs.f2l[0].query, nullptr, {data<T>(back), d},
             thread_scratch(k.linear_scratch(d, d)));
    u0 = u0 + back;
  }
  const at::ScalarType dtype = in.weight_dtype();
  // Copies: outputs of an op must not share memory.
  const auto part = [&](const Tensor& t) { return t.to(dtype, false, true).contiguous(); };
  std::vector<Tensor> out = {part(u0), part(sums.slice(0, 1, 1 + L)),
                             in.wl.defined() ? part(sums[0]) : at::empty({0}, in.nodes.options.dtype(dtype))};
  for (const std::vector<Tensor>* grads : {&f2l, &l2l})
    for (const Tensor& t : *grads) out.push_back(t.to(dtype));
  return out;
}

template <class T>
void tower_backward_pass(const TowerInputs& in, const TowerPlan& plan, const TowerCall<T>& call, const TowerGrads<T>& g,
                         TowerGradients<T>& to, bool first) {
  const TowerKernels<T>& k = tower<T>();
  const int64_t parts = int64_t(plan.blocks.size()), width = (1 + 3 * in.labels()) * in.dim();
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

namespace {

std::vector<Tensor> tower_backward(const Tensor& grad, TensorList saved, const Tensor& z_any, const Tensor& offsets,
                                   const Tensor& present, TensorList f2l, TensorList l2l, TensorList readout,
                                   const Optional& mask, const Optional& rng, int64_t steps, double dropout,
                                   bool need_z) {
  const Tensor z = tower_rows("tower_backward", z_any);
  const TowerInputs in("tower_backward", tower_nodes(z), offsets, present, f2l, l2l, readout, mask, rng, steps,
                       dropout);
  TORCH_CHECK_VALUE(saved.size() == 6, "tower_backward: saved holds ", saved.size(), " tensors; expected 6.");
  TORCH_CHECK_VALUE(
      grad.sizes() == at::IntArrayRef({steps, in.samples(), in.labels()}) && grad.scalar_type() == z.scalar_type(),
      "tower_backward: grad is ", grad.scalar_type(), " ", grad.sizes(), "; expected ", z.scalar_type(),
      " of the logits' shape.");
  const TowerPlan plan(in);
  const Tensor logits = grad.contiguous();
  Tensor dz = need_z ? pooled_empty(z.sizes(), z.options()) : at::empty({0}, z.options());
  if (need_z && plan.skips_nodes) dz.zero_();
  std::vector<Tensor> out;
  with_dtype(z.scalar_type(), "tower_backward", [&](auto type) {
    using T = decltype(type);
    TowerCall<T> call = tower_call<T>(in, plan, data<T>(z));
    call.states = data<T>(saved[0]);
    call.fused = data<T>(saved[1]);
    call.queries = data<T>(saved[2]);
    call.probs = data<Acc<T>>(saved[3]);
    call.label_probs = data<Acc<T>>(saved[4]);
    call.alpha = data<Acc<T>>(saved[5]);
    const Tensor block = pooled_empty({TowerBuffers<T>(nullptr, in, plan).bytes}, at::kByte);
    TowerGrads<T> grads = TowerBuffers<T>(data<char>(block), in, plan).grads;
    const TowerPacks<T> packs(in, false);
    grads.f2l = packs.f2l.data();
    grads.l2l = packs.label.data();
    grads.d_logits = data<T>(logits);
    grads.d_z = need_z ? data<T>(dz) : nullptr;
    TowerGradients<T> to(in);
    tower_backward_pass(in, plan, call, grads, to, true);
    out = to.finish(in, packs);
  });
  out.insert(out.begin(), dz);
  return out;
}

}  // namespace

#define HHMPN_INSTANTIATE(T)                                                                                         \
  template struct TowerBuffers<T>;                                                                                   \
  template struct TowerGradients<T>;                                                                                 \
  template void tower_backward_pass(const TowerInputs&, const TowerPlan&, const TowerCall<T>&, const TowerGrads<T>&, \
                                    TowerGradients<T>&, bool);
HHMPN_INSTANTIATE(float)
HHMPN_INSTANTIATE(double)
HHMPN_INSTANTIATE(bf16)
#undef HHMPN_INSTANTIATE

TORCH_LIBRARY_IMPL(hhmpn_fast, CPU, m) { m.impl("tower_backward", tower_backward); }

}  // namespace hhmpn
