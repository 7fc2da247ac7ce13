// tower_backward: step after step from the last, first every block's data gradients, then the step's weight gradients, each
// summed over all rows in ascending order by one task; at the end the nodes'. No atomics, no partial sums that depend on threads.
//
// Returns dz, du0, dwo, dwl (empty without wl), then F2L's and L2L's as the forward op lists them.
#include "reduce.h"
#include "scratch.h"
#include "tower_host.h"

namespace hhmpn {
namespace {

using at::Tensor;
using at::TensorList;
using Optional = std::optional<Tensor>;

// Gradients of one block of weights, (sets, ...) in accumulators: query (may be undefined), wv, wr, b1, wb, b2.
template <class T>
struct BlockGrads {
  BlockGrads(const Tensor& query, const std::vector<Tensor>& w, at::TensorOptions wide) {
    if (query.defined()) all.push_back(pooled_empty(query.sizes(), wide));
    for (const Tensor& t : w) all.push_back(pooled_empty(t.sizes(), wide));
  }
  Acc<T>* at(int64_t from_end, int64_t set) const {
    const Tensor& t = all[all.size() - size_t(from_end)];
    return data<Acc<T>>(t) + set * t.stride(0);
  }
  std::vector<Tensor> all;
};
constexpr int64_t kQuery = 6, kWv = 5, kWr = 4, kB1 = 3, kWb = 2, kB2 = 1;

template <class T>
struct Backward {
  Backward(const TowerInputs& in, TensorList saved, const Tensor& grad, bool need_z)
      : in(in), plan(in), call(tower_call<T>(in, plan)), d(in.dim()), L(in.labels()), rows(int64_t(plan.pair_modality.size()) * L),
        wide(in.z.options().dtype(accumulate_dtype(in.z.scalar_type()))), f2l(in.f2l_query, in.f2l, wide),
        label(in.l2l_query, in.l2l, wide), packs(in, false), logits(grad.contiguous()) {
    call.states = data<T>(saved[0]);
    call.fused = data<T>(saved[1]);
    call.queries = data<T>(saved[2]);
    call.weights = data<Acc<T>>(saved[3]);
    call.label_weights = data<Acc<T>>(saved[4]);
    call.alpha = data<Acc<T>>(saved[5]);
    const auto options = in.z.options();
    const int64_t cap = in.cap(), label_rows = in.samples() * L;
    buffers = {pooled_empty({label_rows, d}, wide).zero_(), pooled_empty({kTowerGrads, cap, d}, options), pooled_empty({2, cap, d}, options),
               pooled_empty({label_rows, d}, options),    pooled_empty({in.steps, cap, d}, options),
               pooled_empty({in.z.size(0) * 2 * L * in.steps}, wide),
               at::zeros({int64_t(plan.blocks.size()), 1 + 3 * L, d}, wide)};
    g.f2l = packs.f2l.data();
    g.label = packs.label.data();
    g.logits = data<T>(logits);
    g.state = data<Acc<T>>(buffers[0]);
    g.rows = data<T>(buffers[1]);
    g.contexts = data<T>(buffers[2]);
    g.query = data<T>(buffers[3]);
    g.context = data<T>(buffers[4]);
    g.factors = data<Acc<T>>(buffers[5]);
    g.sums = data<Acc<T>>(buffers[6]);
    if (need_z) dz = pooled_empty(in.z.sizes(), options);
    if (need_z && plan.skips_nodes) dz.zero_();
    g.z = data<T>(dz);
  }

  std::vector<Tensor> run() {
    const TowerKernels<T>& k = tower<T>();
    int64_t bytes = 0;
    for (const TowerBlock& b : plan.blocks) bytes = std::max(bytes, k.backward_scratch(call, b.end - b.begin, plan.pairs_of(b)));
    for (int64_t t = in.steps - 1; t >= 0; t--) {
      parallel_tasks(int64_t(plan.blocks.size()), bytes,
                     [&](int64_t i, char* scratch) { k.backward(call, g, plan.blocks[i], t, scratch); });
      weight_gradients(t);
    }
    if (dz.defined()) node_gradients();
    return finish();
  }

  void weight_gradients(int64_t t) {
    // Tied sets add up over the steps: each later one in a buffer of its own first.
    const bool add = in.sets == 1 && t < in.steps - 1;
    std::vector<OuterJob<T>> jobs;
    const BlockGrads<T> own_f2l = add ? BlockGrads<T>(in.f2l_query, in.f2l, wide) : f2l;
    const BlockGrads<T> own_label = add ? BlockGrads<T>(in.l2l_query, in.l2l, wide) : label;
    const int64_t set = in.set(t);
    const auto job = [&](const T* a, const T* b, Acc<T>* c, Acc<T>* sums, int64_t count) {
      jobs.push_back({d, d, a, d, b, d, 0, count, c, sums});
    };
    const auto grad = [&](int64_t kind) { return g.rows + kind * call.cap * d; };
    const auto state = [&](int64_t kind) { return call.states + (t * tower_kinds(call.l2l) + kind) * call.cap * d; };
    job(grad(kGradMid), g.contexts, own_f2l.at(kWv, set), nullptr, rows);
    job(grad(kGradHidden), state(kMid), own_f2l.at(kWr, set), own_f2l.at(kB1, set), rows);
    job(grad(kGradOut), state(kHidden), own_f2l.at(kWb, set), own_f2l.at(kB2, set), rows);
    if (call.l2l) {
      job(state(kOut), grad(kGradLabelQuery), own_label.at(kQuery, set), nullptr, rows);
      job(grad(kGradLabelMid), g.contexts + call.cap * d, own_label.at(kWv, set), nullptr, rows);
      job(grad(kGradLabelHidden), state(kLabelMid), own_label.at(kWr, set), own_label.at(kB1, set), rows);
      job(grad(kGradLabelOut), state(kLabelHidden), own_label.at(kWb, set), own_label.at(kB2, set), rows);
    }
    const int64_t label_rows = in.samples() * L;
    if (call.query && t > 0) job(call.fused + (t - 1) * label_rows * d, g.query, own_f2l.at(kQuery, set), nullptr, label_rows);
    if (call.query && t == 0) {
      // At step 0 the query of a label is one row for the whole batch: its gradient is the sum over the blocks.
      label_sums = block_sums();
      query_sum = label_sums.slice(0, 1 + 2 * L, 1 + 3 * L).to(in.z.scalar_type()).contiguous();
      job(call.label_embedding, data<T>(query_sum), own_f2l.at(kQuery, set), nullptr, L);
    }
    run_outer_jobs<T>(jobs);
    if (!add) return;
    for (size_t i = 0; i < f2l.all.size(); i++) f2l.all[i].add_(own_f2l.all[i]);
    for (size_t i = 0; i < label.all.size(); i++) label.all[i].add_(own_label.all[i]);
  }

  Tensor block_sums() const {
    Tensor total = at::zeros({1 + 3 * L, d}, wide);
    for (int64_t i = 0; i < buffers[6].size(0); i++) total.add_(buffers[6][i]);
    return total;
  }

  void node_gradients() {
    const TowerKernels<T>& k = tower<T>();
    std::vector<int64_t> sample_of;
    for (int64_t b = 0; b < in.samples(); b++) sample_of.resize(size_t(plan.pair_at[b + 1]), b);
    parallel_tasks(int64_t(sample_of.size()), k.nodes_scratch(call),
                   [&](int64_t pair, char* scratch) { k.nodes(call, g, sample_of[pair], pair, scratch); });
  }

  std::vector<Tensor> finish() {
    const at::ScalarType dtype = in.weight_dtype();
    if (!label_sums.defined()) label_sums = block_sums();
    Tensor u0 = label_sums.slice(0, 1 + L, 1 + 2 * L);
    if (call.query) {
      // The query's own way back, u0 += q0 A^T.
      const DenseKernels<T>& k = dense<T>();
      Tensor back = pooled_empty({L, d}, in.z.options());
      k.linear(L, d, d, data<T>(query_sum), d, g.f2l[0].query, nullptr, data<T>(back), d, thread_scratch(k.linear_scratch(d, d)));
      u0 = u0 + back;
    }
    // Copies: outputs of an op must not share memory.
    const auto part = [&](const Tensor& t) { return t.to(dtype, false, true).contiguous(); };
    std::vector<Tensor> out = {dz.defined() ? dz : at::empty({0}, in.z.options()), part(u0), part(label_sums.slice(0, 1, 1 + L)),
                               in.wl.defined() ? part(label_sums[0]) : at::empty({0}, in.z.options().dtype(dtype))};
    for (const BlockGrads<T>* grads : {&f2l, &label})
      for (const Tensor& t : grads->all) out.push_back(t.to(dtype));
    return out;
  }

  const TowerInputs& in;
  TowerPlan plan;
  TowerCall<T> call;
  int64_t d, L, rows;
  at::TensorOptions wide;
  BlockGrads<T> f2l, label;
  TowerPacks<T> packs;
  Tensor logits, dz, label_sums, query_sum;
  std::vector<Tensor> buffers;
  TowerGrads<T> g{};
};

std::vector<Tensor> tower_backward(const Tensor& grad, TensorList saved, const Tensor& z, const Tensor& offsets, const Tensor& present,
                                   TensorList f2l, TensorList l2l, TensorList readout, const Optional& mask, const Optional& rng,
                                   int64_t steps, double dropout, bool need_z) {
  const TowerInputs in("tower_backward", z, offsets, present, f2l, l2l, readout, mask, rng, steps, dropout);
  TORCH_CHECK_VALUE(saved.size() == 6, "tower_backward: saved holds ", saved.size(), " tensors; expected 6.");
  TORCH_CHECK_VALUE(grad.sizes() == at::IntArrayRef({steps, in.samples(), in.labels()}) && grad.scalar_type() == z.scalar_type(),
                    "tower_backward: grad is ", grad.scalar_type(), " ", grad.sizes(), "; expected ", z.scalar_type(),
                    " of the logits' shape.");
  std::vector<Tensor> out;
  with_dtype(z.scalar_type(), "tower_backward", [&](auto type) { out = Backward<decltype(type)>(in, saved, grad, need_z).run(); });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(hhmpn_fast, CPU, m) { m.impl("tower_backward", tower_backward); }

}  // namespace hhmpn
