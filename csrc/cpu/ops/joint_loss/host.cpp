// joint_loss: features to the joint loss of Eqs 18-20, and every weight's gradient with it, in chunks of samples: what a chunk
// keeps for its backward pass is overwritten by the next one, so that a training step's memory does not grow with the batch.
// Weights are packed once. Chunks follow from the shapes alone, and each is run as embed, f2f, tower and joint_bce run it.
#include <ATen/ops/empty_like.h>
#include <ATen/ops/scalar_tensor.h>

#include "adapter/op.h"
#include "ops/embed/rows.h"
#include "ops/joint_bce/sum.h"
#include "ops/joint_loss/chunks.h"

namespace hhmpn {
namespace {

using at::Tensor;

constexpr const char* kOp = "joint_loss";

// Packed weights of one direction, for all chunks.
template <class T>
struct Packs {
  Packs(const Batch& all, bool forward) : tower(all.tower, forward, true) {
    for (const BlockWeights& w : all.f2f) f2f.emplace_back(w, forward, true);
  }
  std::vector<F2fPacks<T>> f2f;
  TowerPacks<T> tower;
};

template <class T>
struct Gradients {
  explicit Gradients(const Batch& all) : tower(all.tower) {
    const auto wide = all.tower.wide();
    for (const Tensor& t : all.in.weights.embed_weights) embed_weights.push_back(pooled_empty(t.sizes(), wide));
    for (const Tensor& t : all.in.weights.embed_biases) embed_biases.push_back(pooled_empty(t.sizes(), wide));
    for (size_t i = 0; i < all.f2f.size(); i++) f2f.push_back(f2f_gradients(all.tower.dim(), all.modalities(), wide));
  }
  ModelWeights finish(const Batch& all, const TowerPacks<T>& packs) {
    const at::ScalarType dtype = all.tower.weight_dtype();
    ModelWeights out;
    for (const Tensor& t : embed_weights) out.embed_weights.push_back(t.to(dtype));
    for (const Tensor& t : embed_biases) out.embed_biases.push_back(t.to(dtype));
    for (const BlockWeights& layer : f2f)
      BlockWeights::both(out.f2f, layer,
                         [&](const char*, std::vector<Tensor>& list, const Tensor& t) { list.push_back(t.to(dtype)); });
    out.labels = tower.finish(all.tower, packs);
    return out;
  }
  std::vector<Tensor> embed_weights, embed_biases;
  std::vector<BlockWeights> f2f;
  TowerGradients<T> tower;
};

template <class T>
struct Step {
  Step(const Batch& all, int64_t budget, bool backward)
      : all(all), backward(backward), d(all.tower.dim()), parts(parts_of<T>(all, budget)), forward_packs(all, true) {
    const auto rows = all.tower.dtype(), wide = accumulate_dtype(rows);
    for (const Tensor& t : all.in.weights.embed_weights)
      embed_packs.add(weights.emplace_back(as_matrix(t)), 0, d, t.size(1), true);
    for (const Tensor& t : all.in.weights.embed_biases) biases.push_back(t.to(rows).to(wide).contiguous());
    embed_packs.pack(true);
    int64_t bytes = 0;
    for (const Part& p : parts) bytes = std::max(bytes, Memory<T>(nullptr, p, all.f2f.size()).bytes);
    block = pooled_empty({bytes}, at::kByte);
    logits = at::empty({all.tower.steps, all.samples(), all.tower.labels()}, all.tower.nodes.options);
  }

  F2fArgs<T> f2f_of(const Part& part, const Memory<T>& at, size_t layer, const Packs<T>& packs) const {
    F2fArgs<T> args =
        f2f_args<T>(*part.batch, all.tower.dropout, {all.in.attention_sites[layer], all.in.update_sites[layer]});
    packs.f2f[layer].give(args);
    args.row_shift = part.row_shift.data();
    const auto& own = at.layers[layer];
    args.v = at.nodes[layer];
    args.z = at.nodes[layer + 1];
    args.q = own.q;
    args.w = own.w;
    args.s = own.s;
    args.h = own.h;
    args.lse = own.lse;
    return args;
  }

  TowerCall<T> tower_of(const Part& part, const Memory<T>& at) const {
    TowerCall<T> call = tower_call<T>(part.tower, *part.plan, at.nodes.back());
    call.batch = all.samples();
    call.first_sample = part.first;
    call.states = at.states;
    call.fused = at.fused;
    call.queries = at.queries;
    call.probs = at.probs;
    call.label_probs = at.label_probs;
    call.alpha = at.alpha;
    call.f2l = forward_packs.tower.f2l.data();
    call.l2l = forward_packs.tower.l2l.data();
    return call;
  }

  void backward_part(const Part& part, const Memory<T>& at, const TowerCall<T>& call, const Tensor& d_logits,
                     bool first) {
    TowerGrads<T> grads = TowerBuffers<T>(at.buffers, part.tower, *part.plan).grads;
    grads.f2l = backward_packs->tower.f2l.data();
    grads.l2l = backward_packs->tower.l2l.data();
    grads.d_logits = data<T>(d_logits);
    grads.d_z = at.d_z;
    if (part.plan->skips_nodes) std::fill(at.d_z, at.d_z + part.tower.nodes.count * d, T{});
    tower_backward_pass(part.tower, *part.plan, call, grads, gradients->tower, first);
    const T* d_out = at.d_z;
    std::vector<OuterJob<T>> jobs;
    for (size_t layer = all.f2f.size(); layer-- > 0;) {
      F2fArgs<T> args = f2f_of(part, at, layer, *backward_packs);
      args.d_out = d_out;
      args.d_tail = all.tower.dropout.on ? at.d_tail : const_cast<T*>(d_out);
      args.d_q = args.q;
      args.d_w = args.w;
      args.d_v = args.z;
      args.d_h_sums = at.d_h_sums;
      f2f_backward_samples(*part.batch, args);
      f2f_weight_jobs(*part.batch, args, gradients->f2f[layer], !first, jobs);
      d_out = args.d_v;
      if (layer == 0) break;  // its jobs run beside the embedding's
      run_outer_jobs<T>(jobs);
      jobs.clear();
    }
    embed_weight_jobs(part.xs, d_out, d, gradients->embed_weights, gradients->embed_biases, !first, jobs);
    run_outer_jobs<T>(jobs);
  }

  JointLossResult run() {
    double loss = 0;
    if (backward) {
      backward_packs.emplace(all, false);
      gradients.emplace(all);
    }
    for (const Part& part : parts) {
      const Memory<T> at(data<char>(block), part, all.f2f.size());
      embed_rows(part.xs, [&](int64_t m) { return embed_packs[m]; }, biases, d, at.nodes[0]);
      for (size_t layer = 0; layer < all.f2f.size(); layer++)
        f2f_forward_samples(*part.batch, f2f_of(part, at, layer, forward_packs));
      TowerCall<T> call = tower_of(part, at);
      const int64_t own = part.tower.samples();
      const Tensor out = at::empty({all.tower.steps, own, all.tower.labels()}, logits.options()),
                   d_out = at::empty_like(out);
      call.logits = data<T>(out);
      tower_forward_blocks(*part.plan, call);
      loss += joint_bce_sum(out, all.in.targets.narrow(0, part.first, own), all.in.intermediate_weight,
                            all.in.label_weights, all.in.targets.numel(), d_out);
      logits.narrow(1, part.first, own).copy_(out);
      if (backward) backward_part(part, at, call, d_out, &part == &parts[0]);
    }
    JointLossResult out{at::scalar_tensor(loss, all.tower.wide()), logits, {}};
    if (backward) out.d = gradients->finish(all, backward_packs->tower);
    return out;
  }

  const Batch& all;
  bool backward;
  int64_t d;
  std::vector<Part> parts;
  Packs<T> forward_packs;
  std::optional<Packs<T>> backward_packs;
  std::optional<Gradients<T>> gradients;
  PackedWeights<T> embed_packs;
  std::vector<Tensor> weights, biases;  // of the embeddings
  Tensor block, logits;
};

// The layers' weights, checked.
std::vector<BlockWeights> layers(const JointLoss& in, int64_t d, at::ScalarType dtype) {
  const int64_t M = int64_t(in.xs.size()), count = layers_of(in.weights.f2f);
  TORCH_CHECK_VALUE(int64_t(in.attention_sites.size()) == count && int64_t(in.update_sites.size()) == count, kOp,
                    ": found ", count, " F2F layers with ", in.attention_sites.size(), " and ", in.update_sites.size(),
                    " dropout sites; expected one each a layer.");
  BlockWeights::both(in.weights.f2f, in.weights.f2f, [&](const char* name, const auto& list, const auto&) {
    TORCH_CHECK_VALUE(int64_t(list.size()) == count, kOp, ": f2f_", name, " holds ", list.size(), " layers; expected ",
                      count, ".");
  });
  TORCH_CHECK_VALUE(count == 0 || M <= 64, kOp, ": found ", M, " modalities; expected 1 to 64.");
  std::vector<BlockWeights> out;
  for (int64_t i = 0; i < count; i++) {
    const BlockWeights w = layer_of(in.weights.f2f, i);
    TORCH_CHECK_VALUE(w.hidden.size(0) == M, kOp, ": f2f_hidden is of shape ", w.hidden.sizes(), " with ", M,
                      " inputs; expected (M, d, d).");
    out.push_back(f2f_weights(kOp, d, dtype, w));
  }
  return out;
}

JointLossResult joint_loss(const JointLoss& in, bool keep) {
  const size_t M = in.xs.size();
  TORCH_CHECK_VALUE(in.weights.embed_weights.size() == M && in.weights.embed_biases.size() == M, kOp, ": found ", M,
                    " inputs, ", in.weights.embed_weights.size(), " weights and ", in.weights.embed_biases.size(),
                    " biases of embeddings; expected one each a modality.");
  embed_check(kOp, in.xs, in.weights.embed_weights, in.weights.embed_biases);
  int64_t nodes = 0;
  std::vector<Tensor> rows;
  for (const Tensor& x : in.xs) nodes += rows.emplace_back(as_matrix(x)).size(0);
  const int64_t d = in.weights.embed_weights[0].size(0);
  const TowerNodes z{nodes, d, in.xs[0].options()};
  Batch all{std::move(rows), in, {}, {kOp, z, in.batch, in.weights.labels, in.dropout}};
  const TowerInputs& tower = all.tower;
  TORCH_CHECK_VALUE(tower.present.size(0) == int64_t(M), kOp, ": present is ", tower.present.sizes(), " with ", M,
                    " inputs; expected (M, B).");
  const int32_t* o = tower.offsets.const_data_ptr<int32_t>();
  for (int64_t m = 0; m < int64_t(M); m++) {
    const int64_t own = o[(m + 1) * all.samples()] - o[m * all.samples()];
    TORCH_CHECK_VALUE(own == in.xs[m].size(0), kOp, ": xs[", m, "] has ", in.xs[m].size(0), " nodes and its offsets ",
                      own, "; expected as many.");
  }
  joint_bce_check(kOp, {tower.steps, all.samples(), tower.labels()}, in.targets, in.label_weights);
  all.f2f = layers(in, d, z.dtype());
  JointLossResult out;
  with_dtype(z.dtype(), kOp, [&](auto type) { out = Step<decltype(type)>(all, in.chunk_bytes, keep).run(); });
  return out;
}

HHMPN_SCALED_OP(joint_loss, joint_loss)

}  // namespace
}  // namespace hhmpn
