// tower: the whole label side in one op (kernels.h holds its equations and shapes).
#include <c10/util/accumulate.h>

#include "host/memory.h"
#include "adapter/op.h"
#include "ops/tower/gradients.h"
#include "ops/tower/inputs.h"

namespace hhmpn {

using at::Tensor;

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

struct Tower {
  Tensor z;
  TowerBatch batch;
  LabelWeights weights;
  DropoutInput dropout;
  template <class V>
  void each(V& v) {
    v.rows("z", z), batch.each(v), weights.each(v), dropout.each(v);
  }
};

// What the backward pass reads (kernels.h has the shapes).
struct TowerKept {
  Tensor states, fused, queries, probs, label_probs, alpha;
  template <class V>
  void each(V& v) {
    v.kept("states", states), v.kept("fused", fused), v.kept("queries", queries), v.kept("probs", probs);
    v.kept("label_probs", label_probs), v.kept("alpha", alpha);
  }
  TowerKept() = default;
  explicit TowerKept(const TowerInputs& in) {
    shapes(in, *this, [](const char*, Tensor& t, const std::vector<int64_t>& sizes, const at::TensorOptions& options) {
      t = pooled_empty(sizes, options);
    });
  }
  // Refuses what no forward pass on these inputs left.
  void check(const TowerInputs& in) const {
    shapes(in, *this,
           [](const char* name, const Tensor& t, const std::vector<int64_t>& sizes, const at::TensorOptions& o) {
             check_kept("tower_backward", name, t, c10::multiply_integers(sizes), at::typeMetaToScalarType(o.dtype()));
           });
  }
  template <class Self, class F>
  static void shapes(const TowerInputs& in, Self& self, const F& f) {
    const int64_t T = in.steps, d = in.dim(), L = in.labels(), rows = in.samples() * L;
    const auto options = in.nodes.options, wide = in.wide();
    f("states", self.states, {T, tower_kinds(in.has_l2l()), in.cap(), d}, options);
    f("fused", self.fused, {T, rows, d}, options);
    f("queries", self.queries, {in.has_query() ? L + (T - 1) * rows : 0, d}, options);
    f("probs", self.probs, {T, in.nodes.count * L}, wide);
    f("label_probs", self.label_probs, {T, in.has_l2l() ? in.cap() : 0, L}, wide);
    f("alpha", self.alpha, {T, in.cap()}, wide);
  }
  template <class T>
  void give(TowerCall<T>& call) const {
    call.states = data<T>(states);
    call.fused = data<T>(fused);
    call.queries = data<T>(queries);
    call.probs = data<Acc<T>>(probs);
    call.label_probs = data<Acc<T>>(label_probs);
    call.alpha = data<Acc<T>>(alpha);
  }
};

struct TowerResult {
  Tensor logits;
  TowerKept kept;
  template <class V>
  void each(V& v) {
    v.exact("logits", logits), kept.each(v);
  }
};

struct TowerBack {
  Tensor d_logits;
  Tower in;
  TowerKept kept;
  Needs needs;
  template <class V>
  void each(V& v) {
    v.data("d_logits", d_logits), in.each(v), kept.each(v);
  }
};

TowerResult tower_op(const Tower& any, bool keep) {
  const Tensor z = tower_rows("tower", any.z);
  const TowerInputs in("tower", tower_nodes(z), any.batch, any.weights, any.dropout);
  TowerResult out;
  out.logits = pooled_empty({in.steps, in.samples(), in.labels()}, in.nodes.options);
  if (keep) out.kept = TowerKept(in);
  const TowerPlan plan(in);
  with_dtype(in.dtype(), "tower", [&](auto type) {
    using T = decltype(type);
    TowerCall<T> call = tower_call<T>(in, plan, data<T>(z));
    call.logits = data<T>(out.logits);
    out.kept.give(call);
    const TowerPacks<T> packs(in, true);
    call.f2l = packs.f2l.data();
    call.l2l = packs.l2l.data();
    tower_forward_blocks(plan, call);
  });
  return out;
}

Tower tower_backward(const TowerBack& back) {
  const Tensor z = tower_rows("tower_backward", back.in.z);
  const TowerInputs in("tower_backward", tower_nodes(z), back.in.batch, back.in.weights, back.in.dropout);
  TORCH_CHECK_VALUE(back.d_logits.sizes() == at::IntArrayRef({in.steps, in.samples(), in.labels()}) &&
                        back.d_logits.scalar_type() == z.scalar_type(),
                    "tower_backward: d_logits is ", back.d_logits.scalar_type(), " ", back.d_logits.sizes(),
                    "; expected ", z.scalar_type(), " of the logits' shape.");
  back.kept.check(in);
  const TowerPlan plan(in);
  const Tensor d_logits = back.d_logits.contiguous();
  const bool need_z = back.needs.of("z").front();
  Tower to;
  if (need_z) to.z = pooled_empty(z.sizes(), z.options());
  if (need_z && plan.skips_nodes) to.z.zero_();
  with_dtype(z.scalar_type(), "tower_backward", [&](auto type) {
    using T = decltype(type);
    TowerCall<T> call = tower_call<T>(in, plan, data<T>(z));
    back.kept.give(call);
    const Tensor block = pooled_empty({TowerBuffers<T>(nullptr, in, plan).bytes}, at::kByte);
    TowerGrads<T> grads = TowerBuffers<T>(data<char>(block), in, plan).grads;
    const TowerPacks<T> packs(in, false);
    grads.f2l = packs.f2l.data();
    grads.l2l = packs.l2l.data();
    grads.d_logits = data<T>(d_logits);
    grads.d_z = data<T>(to.z);
    TowerGradients<T> gradients(in);
    tower_backward_pass(in, plan, call, grads, gradients, true);
    to.weights = gradients.finish(in, packs);
  });
  return to;
}

HHMPN_OP(tower, tower_op, tower_backward)

// Where every step finds its packed weights.
template <class T>
std::vector<TowerWeights> packed_weights(const BlockWeights& packed, int64_t steps, int64_t d) {
  const int64_t bytes = dense<T>().packed_bytes(d, d), sets = packed.b2.size(0);
  TORCH_CHECK_VALUE(sets == 1 || sets == steps, "infer: found ", sets, " sets of weights; expected 1 or ", steps, ".");
  std::vector<TowerWeights> out;
  for (int64_t t = 0; t < steps; t++) {
    const int64_t set = sets == 1 ? 0 : t;
    const auto matrix = [&](const Tensor& w) -> const void* {
      return w.defined() ? packed_matrices("label weights", w, sets, bytes) + set * bytes : nullptr;
    };
    const auto bias = [&](const Tensor& b) { return packed_bias<T>("label bias", b, sets * d) + set * d; };
    out.push_back({matrix(packed.query), matrix(packed.value), matrix(packed.hidden), bias(packed.b1),
                   matrix(packed.output), bias(packed.b2)});
  }
  return out;
}

}  // namespace

Tensor tower_packed(const Tensor& z_any, const TowerBatch& batch, const LabelWeights& packed) {
  const Tensor z = tower_rows("infer", z_any);
  const TowerInputs in("infer", tower_nodes(z), batch, packed);
  const TowerPlan plan(in);
  Tensor logits = pooled_empty({in.steps, in.samples(), in.labels()}, in.nodes.options);
  with_dtype(in.dtype(), "infer", [&](auto type) {
    using T = decltype(type);
    TowerCall<T> call = tower_call<T>(in, plan, data<T>(z));
    call.logits = data<T>(logits);
    call.has_query = packed.f2l.query.defined();
    call.has_l2l = packed.l2l.value.defined();
    const std::vector<TowerWeights> f2l = packed_weights<T>(packed.f2l, in.steps, in.dim());
    const std::vector<TowerWeights> l2l =
        call.has_l2l ? packed_weights<T>(packed.l2l, in.steps, in.dim()) : std::vector<TowerWeights>();
    call.f2l = f2l.data();
    call.l2l = l2l.data();
    tower_forward_blocks(plan, call);
  });
  return logits;
}

}  // namespace hhmpn
