// tower: the whole label side in one op (tower.h holds its equations and shapes).
//
//   tower         logits (T, B, L)                                   inference: nothing is kept
//   tower_save    logits, then the six saved tensors of tower.h      what tower_backward reads
#include "scratch.h"
#include "tower_host.h"

namespace hhmpn {
namespace {

using at::Tensor;
using at::TensorList;
using Optional = std::optional<Tensor>;

std::vector<Tensor> run(const TowerInputs& in, bool save) {
  const int64_t d = in.dim(), L = in.labels(), B = in.samples();
  const auto options = in.z.options(), wide = options.dtype(accumulate_dtype(in.z.scalar_type()));
  std::vector<Tensor> out = {pooled_empty({in.steps, B, L}, options)};
  if (save) {
    const bool l2l = !in.l2l.empty();
    out.push_back(pooled_empty({in.steps, tower_kinds(l2l), in.cap(), d}, options));
    out.push_back(pooled_empty({in.steps, B * L, d}, options));
    out.push_back(pooled_empty({in.f2l_query.defined() ? L + (in.steps - 1) * B * L : 0, d}, options));
    out.push_back(pooled_empty({in.steps, in.z.size(0) * L}, wide));
    out.push_back(pooled_empty({in.steps, l2l ? in.cap() : 0, L}, wide));
    out.push_back(pooled_empty({in.steps, in.cap()}, wide));
  }
  const TowerPlan plan(in);
  with_dtype(in.z.scalar_type(), "tower", [&](auto type) {
    using T = decltype(type);
    const TowerKernels<T>& k = tower<T>();
    TowerCall<T> call = tower_call<T>(in, plan);
    call.logits = data<T>(out[0]);
    if (save) {
      call.states = data<T>(out[1]);
      call.fused = data<T>(out[2]);
      call.queries = data<T>(out[3]);
      call.weights = data<Acc<T>>(out[4]);
      call.label_weights = data<Acc<T>>(out[5]);
      call.alpha = data<Acc<T>>(out[6]);
    }
    const TowerPacks<T> packs(in, true);
    call.f2l = packs.f2l.data();
    call.label = packs.label.data();
    int64_t bytes = 0;
    for (const TowerBlock& b : plan.blocks) bytes = std::max(bytes, k.forward_scratch(call, b.end - b.begin, plan.pairs_of(b)));
    parallel_tasks(int64_t(plan.blocks.size()), bytes, [&](int64_t i, char* scratch) { k.forward(call, plan.blocks[i], scratch); });
  });
  return out;
}

Tensor tower_infer(const Tensor& z, const Tensor& offsets, const Tensor& present, TensorList f2l, TensorList l2l, TensorList readout,
                   const Optional& mask, const Optional& rng, int64_t steps, double dropout) {
  return run(TowerInputs("tower", z, offsets, present, f2l, l2l, readout, mask, rng, steps, dropout), false)[0];
}

std::vector<Tensor> tower_save(const Tensor& z, const Tensor& offsets, const Tensor& present, TensorList f2l, TensorList l2l,
                               TensorList readout, const Optional& mask, const Optional& rng, int64_t steps, double dropout) {
  return run(TowerInputs("tower", z, offsets, present, f2l, l2l, readout, mask, rng, steps, dropout), true);
}

}  // namespace

TORCH_LIBRARY_IMPL(hhmpn_fast, CPU, m) {
  m.impl("tower", tower_infer);
  m.impl("tower_save", tower_save);
}

}  // namespace hhmpn
