// tower: the whole label side in one op (kernels.h holds its equations and shapes).
//
//   tower         logits (T, B, L)                                   inference: nothing is kept
//   tower_save    logits, then the six saved tensors of kernels.h      what tower_backward reads
#include "ops/infer/packed.h"
#include "host/memory.h"
#include "ops/tower/inputs.h"

namespace hhmpn {

using at::Tensor;
using at::TensorList;
using Optional = std::optional<Tensor>;

// Blocks of samples over threads; the only block of one sample by all of them together.
template <class T>
void tower_forward_blocks(const TowerPlan& plan, const TowerCall<T>& call) {
  const TowerKernels<T>& k = tower<T>();
  const auto bytes = [&](const TowerBlock& b, int64_t members) {
    return k.forward_scratch(call, b.end - b.begin, plan.pairs_of(b), members);
  };
  const int64_t members = plan.blocks.size() == 1 && !call.dropout.on ? team_size(call.dim / dense<T>().panel) : 1;
  if (members > 1) {
    const Tensor scratch = pooled_empty({bytes(plan.blocks[0], members)}, at::kByte);
    return parallel_team(members,
                         [&](const Team& team) { k.forward(call, plan.blocks[0], team, data<char>(scratch)); });
  }
  int64_t most = 0;
  for (const TowerBlock& b : plan.blocks) most = std::max(most, bytes(b, 1));
  parallel_tasks(int64_t(plan.blocks.size()), most,
                 [&](int64_t i, char* scratch) { k.forward(call, plan.blocks[i], Team{}, scratch); });
}

template void tower_forward_blocks(const TowerPlan&, const TowerCall<float>&);
template void tower_forward_blocks(const TowerPlan&, const TowerCall<double>&);
template void tower_forward_blocks(const TowerPlan&, const TowerCall<bf16>&);

namespace {

std::vector<Tensor> run(const Tensor& z, const TowerInputs& in, bool save) {
  const int64_t d = in.dim(), L = in.labels(), B = in.samples();
  const auto options = in.nodes.options, wide = in.wide();
  std::vector<Tensor> out = {pooled_empty({in.steps, B, L}, options)};
  if (save) {
    const bool l2l = !in.l2l.empty();
    out.push_back(pooled_empty({in.steps, tower_kinds(l2l), in.cap(), d}, options));
    out.push_back(pooled_empty({in.steps, B * L, d}, options));
    out.push_back(pooled_empty({in.f2l_query.defined() ? L + (in.steps - 1) * B * L : 0, d}, options));
    out.push_back(pooled_empty({in.steps, in.nodes.count * L}, wide));
    out.push_back(pooled_empty({in.steps, l2l ? in.cap() : 0, L}, wide));
    out.push_back(pooled_empty({in.steps, in.cap()}, wide));
  }
  const TowerPlan plan(in);
  with_dtype(in.dtype(), "tower", [&](auto type) {
    using T = decltype(type);
    TowerCall<T> call = tower_call<T>(in, plan, data<T>(z));
    call.logits = data<T>(out[0]);
    if (save) {
      call.states = data<T>(out[1]);
      call.fused = data<T>(out[2]);
      call.queries = data<T>(out[3]);
      call.probs = data<Acc<T>>(out[4]);
      call.label_probs = data<Acc<T>>(out[5]);
      call.alpha = data<Acc<T>>(out[6]);
    }
    const TowerPacks<T> packs(in, true);
    call.f2l = packs.f2l.data();
    call.l2l = packs.label.data();
    tower_forward_blocks(plan, call);
  });
  return out;
}

Tensor tower_infer(const Tensor& z_any, const Tensor& offsets, const Tensor& present, TensorList f2l, TensorList l2l,
                   TensorList readout, const Optional& mask, const Optional& rng, int64_t steps, double dropout) {
  const Tensor z = tower_rows("tower", z_any);
  return run(z, {"tower", tower_nodes(z), offsets, present, f2l, l2l, readout, mask, rng, steps, dropout}, false)[0];
}

std::vector<Tensor> tower_save(const Tensor& z_any, const Tensor& offsets, const Tensor& present, TensorList f2l,
                               TensorList l2l, TensorList readout, const Optional& mask, const Optional& rng,
                               int64_t steps, double dropout) {
  const Tensor z = tower_rows("tower", z_any);
  return run(z, {"tower", tower_nodes(z), offsets, present, f2l, l2l, readout, mask, rng, steps, dropout}, true);
}

// Where every step finds its packed weights in the list of one block.
template <class T>
std::vector<TowerWeights> packed_weights(TensorList list, int64_t steps, int64_t d) {
  const size_t skip = list.size() == 6 ? 0 : 1;
  const int64_t bytes = dense<T>().packed_bytes(d, d), sets = list.back().size(0);
  TORCH_CHECK_VALUE((sets == 1 || sets == steps) && (list.size() == 5 || list.size() == 6), "infer: found ",
                    list.size(), " tensors with ", sets, " sets of weights; expected 5 or 6 with 1 or ", steps, ".");
  std::vector<TowerWeights> out;
  for (int64_t t = 0; t < steps; t++) {
    const int64_t set = sets == 1 ? 0 : t;
    const auto matrix = [&](size_t i) {
      return packed_matrices("label weights", list[i - skip], sets, bytes) + set * bytes;
    };
    const auto bias = [&](size_t i) { return data<Acc<T>>(list[i - skip]) + set * d; };
    out.push_back({skip ? nullptr : matrix(0), matrix(1), matrix(2), matrix(4), bias(3), bias(5)});
  }
  return out;
}

}  // namespace

Tensor tower_packed(const Tensor& z_any, const Tensor& offsets, const Tensor& present, TensorList f2l, TensorList l2l,
                    TensorList readout, const Optional& mask, int64_t steps) {
  const Tensor z = tower_rows("infer", z_any);
  const TowerInputs in("infer", tower_nodes(z), offsets, present, readout, mask, steps);
  const TowerPlan plan(in);
  Tensor logits = pooled_empty({steps, in.samples(), in.labels()}, in.nodes.options);
  with_dtype(in.dtype(), "infer", [&](auto type) {
    using T = decltype(type);
    TowerCall<T> call = tower_call<T>(in, plan, data<T>(z));
    call.logits = data<T>(logits);
    call.has_query = f2l.size() == 6;
    call.has_l2l = !l2l.empty();
    const std::vector<TowerWeights> own_f2l = packed_weights<T>(f2l, steps, in.dim());
    const std::vector<TowerWeights> own_l2l =
        call.has_l2l ? packed_weights<T>(l2l, steps, in.dim()) : std::vector<TowerWeights>();
    call.f2l = own_f2l.data();
    call.l2l = own_l2l.data();
    tower_forward_blocks(plan, call);
  });
  return logits;
}

TORCH_LIBRARY_IMPL(hhmpn_fast, CPU, m) {
  m.impl("tower", tower_infer);
  m.impl("tower_save", tower_save);
}

}  // namespace hhmpn
