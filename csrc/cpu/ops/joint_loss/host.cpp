// joint_loss: features to the joint loss of Eqs 18-20, and every weight's gradient with it, in chunks of samples: what a chunk keeps
// for its backward pass is overwritten by the next one, so that a training step's memory does not grow with the batch.
//
//   joint_loss        (loss, logits)
//   joint_loss_save   loss (), logits (T, B, L), then the gradients of embed, f2f, f2l, l2l and readout in the op's own order
//
// Weights are packed once. Chunks follow from the shapes alone, and each is run as embed, f2f, tower and joint_bce run it.
#include "base/arena.h"
#include "host/cuts.h"
#include "ops/embed/rows.h"
#include "ops/f2f/samples.h"
#include "ops/joint_bce/sum.h"
#include "ops/tower/inputs.h"

namespace hhmpn {
namespace {

using at::Tensor;
using at::TensorList;
using Optional = std::optional<Tensor>;

constexpr const char* kOp = "joint_loss";

struct Batch {
  int64_t samples() const { return tower.samples(); }
  int64_t modalities() const { return int64_t(xs.size()); }

  std::vector<Tensor> xs;
  TensorList embed;             // W_m, then b_m
  std::vector<F2fWeights> f2f;  // by layer
  std::vector<int64_t> sites;   // dropout sites of attention and update, by layer
  TowerInputs tower;
  Tensor targets;
  Optional label_weights;
  double intermediate_weight;
};

// The samples [begin, end) as a batch of their own.
struct Part {
  Part(const Batch& all, const Cut& cut) : first(cut.begin), tower(all.tower) {
    const int64_t M = all.modalities(), B = all.samples(), own = cut.end - cut.begin;
    const int32_t* from = all.tower.offsets.const_data_ptr<int32_t>();
    tower.offsets = at::zeros({M * own + 1}, at::kInt);
    tower.present = all.tower.present.slice(1, cut.begin, cut.end).contiguous();
    int32_t* to = tower.offsets.data_ptr<int32_t>();
    for (int64_t m = 0; m < M; m++) {
      const int32_t* segment = from + m * B + cut.begin;
      row_shift.push_back(segment[0] - to[m * own]);
      xs.push_back(all.xs[m].slice(0, segment[0] - from[m * B], segment[own] - from[m * B]));
      for (int64_t b = 0; b < own; b++) to[m * own + b + 1] = to[m * own + b] + segment[b + 1] - segment[b];
    }
    tower.nodes.count = to[M * own];
    batch.emplace(tower.nodes.count, tower.dim(), M, own, to);
    plan.emplace(tower);
  }
  int64_t first;
  std::vector<Tensor> xs;
  std::vector<int32_t> row_shift;
  TowerInputs tower;
  std::optional<F2fBatch> batch;
  std::optional<TowerPlan> plan;
};

// What a part keeps between its forward and its backward pass.
template <class T>
struct Memory {
  struct Layer {
    T *q, *w, *s, *r;
    Acc<T>* lse;
  };
  Memory(void* block, const Part& part, size_t count) {
    Arena a(block);
    const TowerInputs& in = part.tower;
    const int64_t d = in.dim(), n = in.nodes.count, B = in.samples(), L = in.labels(), cap = in.cap();
    for (size_t i = 0; i <= count; i++) nodes.push_back(a.take<T>(n * d));
    for (size_t i = 0; i < count; i++)
      layers.push_back({a.take<T>(n * d), a.take<T>(n * d), a.take<T>(n * d), a.take<T>(n * d),
                        a.take<Acc<T>>(n * part.batch->modalities)});
    dz = a.take<T>(n * d);
    dt = a.take<T>(in.dropout.on ? n * d : 0);
    h_sums = a.take<Acc<T>>(B * d);
    states = a.take<T>(in.steps * tower_kinds(!in.l2l.empty()) * cap * d);
    fused = a.take<T>(in.steps * B * L * d);
    queries = a.take<T>((L + (in.steps - 1) * B * L) * d);
    weights = a.take<Acc<T>>(in.steps * n * L);
    label_weights = a.take<Acc<T>>(in.steps * cap * L);
    alpha = a.take<Acc<T>>(in.steps * cap);
    buffers = a.base + a.bytes;
    bytes = a.bytes + TowerBuffers<T>(nullptr, in, *part.plan).bytes;
  }
  std::vector<T*> nodes;  // the embeddings, then each layer's result; its gradient takes the result's place
  std::vector<Layer> layers;
  T *dz, *dt, *states, *fused, *queries;
  Acc<T>*h_sums, *weights, *label_weights, *alpha;
  char* buffers;
  int64_t bytes;
};

// Packed weights of one direction, for all chunks.
template <class T>
struct Packs {
  Packs(const Batch& all, bool forward) : tower(all.tower, forward, true) {
    for (const F2fWeights& w : all.f2f) f2f.emplace_back(w, forward, true);
  }
  std::vector<F2fPacks<T>> f2f;
  TowerPacks<T> tower;
};

template <class T>
struct Gradients {
  explicit Gradients(const Batch& all) : tower(all.tower) {
    for (const Tensor& t : all.embed) embed.push_back(pooled_empty(t.sizes(), all.tower.wide()));
    for (size_t i = 0; i < all.f2f.size(); i++) f2f.emplace_back(all.tower.dim(), all.modalities(), all.tower.wide());
  }
  std::vector<Tensor> finish(const Batch& all, const TowerPacks<T>& packs) {
    const at::ScalarType dtype = all.tower.weight_dtype();
    std::vector<Tensor> out;
    for (const Tensor& t : embed) out.push_back(t.to(dtype));
    for (const F2fGradients& g : f2f)
      for (const Tensor& t : {g.a, g.wv, g.c, g.b1, g.wb, g.b2}) out.push_back(t.to(dtype));
    const std::vector<Tensor> rest = tower.finish(all.tower, packs);
    out.insert(out.end(), rest.begin() + 3, rest.end());
    out.insert(out.end(), rest.begin(), rest.begin() + (all.tower.wl.defined() ? 3 : 2));
    return out;
  }
  std::vector<Tensor> embed;
  std::vector<F2fGradients> f2f;
  TowerGradients<T> tower;
};

// Chunks of nearly equal memory, at most `budget` bytes each where a sample's own is not more.
template <class T>
std::vector<Part> parts_of(const Batch& all, int64_t budget) {
  const TowerInputs& in = all.tower;
  const int64_t M = all.modalities(), B = all.samples(), layers = int64_t(all.f2f.size());
  const int32_t* offsets = in.offsets.const_data_ptr<int32_t>();
  std::vector<double> size(size_t(B) + 1, 0);
  const double rows = double(M * in.labels() * (in.steps * (tower_kinds(!in.l2l.empty()) + 1) + kTowerGrads + 2));
  for (int64_t b = 0; b < B; b++) {
    int64_t nodes = 0;
    for (int64_t m = 0; m < M; m++) nodes += offsets[m * B + b + 1] - offsets[m * B + b];
    size[b + 1] = size[b] + double(nodes * (5 * layers + 2)) + rows;
  }
  const double total = size[B] * double(in.dim()) * double(sizeof(T));
  std::vector<Part> parts;
  for (const Cut& cut : even_cuts(size, int64_t(total / double(std::max<int64_t>(budget, 1))) + 1))
    parts.emplace_back(all, cut);
  return parts;
}

template <class T>
struct Step {
  Step(const Batch& all, int64_t budget, bool backward)
      : all(all), backward(backward), d(all.tower.dim()), parts(parts_of<T>(all, budget)), forward_packs(all, true) {
    const auto rows = all.tower.dtype(), wide = accumulate_dtype(rows);
    const size_t M = all.xs.size();
    for (size_t m = 0; m < M; m++)
      embed_packs.add(weights.emplace_back(as_matrix(all.embed[m])), 0, d, all.embed[m].size(1), true);
    for (size_t m = 0; m < M; m++) biases.push_back(all.embed[M + m].to(rows).to(wide).contiguous());
    embed_packs.pack(true);
    int64_t bytes = 0;
    for (const Part& p : parts) bytes = std::max(bytes, Memory<T>(nullptr, p, all.f2f.size()).bytes);
    block = pooled_empty({bytes}, at::kByte);
    logits = at::empty({all.tower.steps, all.samples(), all.tower.labels()}, all.tower.nodes.options);
  }

  F2fArgs<T> f2f_of(const Part& part, const Memory<T>& at, size_t layer, const Packs<T>& packs) const {
    F2fArgs<T> args = f2f_args<T>(*part.batch, all.tower.dropout, all.sites[2 * layer], all.sites[2 * layer + 1]);
    packs.f2f[layer].give(args);
    args.row_shift = part.row_shift.data();
    const auto& own = at.layers[layer];
    args.v = at.nodes[layer];
    args.z = at.nodes[layer + 1];
    args.q = own.q;
    args.w = own.w;
    args.s = own.s;
    args.r = own.r;
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
    call.weights = at.weights;
    call.label_weights = at.label_weights;
    call.alpha = at.alpha;
    call.f2l = forward_packs.tower.f2l.data();
    call.label = forward_packs.tower.label.data();
    return call;
  }

  void backward_part(const Part& part, const Memory<T>& at, const TowerCall<T>& call, const Tensor& d_logits,
                     bool first) {
    TowerGrads<T> grads = TowerBuffers<T>(at.buffers, part.tower, *part.plan).grads;
    grads.f2l = backward_packs->tower.f2l.data();
    grads.label = backward_packs->tower.label.data();
    grads.logits = data<T>(d_logits);
    grads.z = at.dz;
    if (part.plan->skips_nodes) std::fill(at.dz, at.dz + part.tower.nodes.count * d, T{});
    tower_backward_pass(part.tower, *part.plan, call, grads, gradients->tower, first);
    const T* dz = at.dz;
    std::vector<OuterJob<T>> jobs;
    for (size_t layer = all.f2f.size(); layer-- > 0;) {
      F2fArgs<T> args = f2f_of(part, at, layer, *backward_packs);
      args.dz = dz;
      args.dt = all.tower.dropout.on ? at.dt : const_cast<T*>(dz);
      args.dq = args.q;
      args.dw = args.w;
      args.dv = args.z;
      args.h_sums = at.h_sums;
      f2f_backward_samples(*part.batch, args);
      f2f_weight_jobs(*part.batch, args, gradients->f2f[layer], !first, jobs);
      dz = args.dv;
      if (layer == 0) break;  // its jobs run beside the embedding's
      run_outer_jobs<T>(jobs);
      jobs.clear();
    }
    const TensorList to(gradients->embed);
    embed_weight_jobs(part.xs, dz, d, d, to.slice(0, part.xs.size()), to.slice(part.xs.size()), !first, jobs);
    run_outer_jobs<T>(jobs);
  }

  std::vector<Tensor> run() {
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
      loss += joint_bce_sum(out, all.targets.narrow(0, part.first, own), all.intermediate_weight, all.label_weights,
                            all.targets.numel(), d_out);
      logits.narrow(1, part.first, own).copy_(out);
      if (backward) backward_part(part, at, call, d_out, &part == &parts[0]);
    }
    std::vector<Tensor> out = {at::scalar_tensor(loss, all.tower.wide()), logits};
    if (!backward) return out;
    const std::vector<Tensor> rest = gradients->finish(all, backward_packs->tower);
    out.insert(out.end(), rest.begin(), rest.end());
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

std::vector<Tensor> run(TensorList xs, const Tensor& offsets, const Tensor& present, const Tensor& targets,
                        const Optional& label_weights, TensorList embed, TensorList f2f, TensorList f2l, TensorList l2l,
                        TensorList readout, const Optional& mask, const Optional& rng, at::IntArrayRef sites,
                        int64_t steps, double intermediate_weight, double dropout, int64_t budget, bool backward) {
  TORCH_CHECK_VALUE(embed.size() == 2 * xs.size() && f2f.size() % 6 == 0 && sites.size() == f2f.size() / 3, kOp,
                    ": found ", xs.size(), " inputs, ", embed.size(), " embedding tensors, ", f2f.size(),
                    " F2F tensors and ", sites.size(), " sites; expected M, 2 M, six a layer and two a layer.");
  embed_check(kOp, xs, embed.slice(0, xs.size()), embed.slice(xs.size()));
  int64_t nodes = 0;
  std::vector<Tensor> rows;
  for (const Tensor& x : xs) nodes += rows.emplace_back(as_matrix(x)).size(0);
  const int64_t d = embed[0].size(0);
  const TowerNodes z{nodes, d, xs[0].options()};
  Batch all{std::move(rows),
            embed,
            {},
            sites.vec(),
            {kOp, z, offsets, present, f2l, l2l, readout, mask, rng, steps, dropout},
            targets,
            label_weights,
            intermediate_weight};
  TORCH_CHECK_VALUE(all.tower.present.size(0) == int64_t(xs.size()), kOp, ": present is ", present.sizes(), " with ",
                    xs.size(), " inputs; expected (M, B).");
  const int32_t* o = all.tower.offsets.const_data_ptr<int32_t>();
  for (int64_t m = 0; m < all.modalities(); m++)
    TORCH_CHECK_VALUE(o[(m + 1) * all.samples()] - o[m * all.samples()] == xs[m].size(0), kOp, ": xs[", m, "] has ",
                      xs[m].size(0), " nodes and its offsets ", o[(m + 1) * all.samples()] - o[m * all.samples()],
                      "; expected as many.");
  TORCH_CHECK_VALUE(all.f2f.empty() || xs.size() <= 64, kOp, ": found ", xs.size(), " modalities; expected 1 to 64.");
  joint_bce_check(kOp, {steps, all.samples(), all.tower.labels()}, targets, label_weights);
  for (size_t i = 0; i < f2f.size(); i += 6) {
    TORCH_CHECK_VALUE(f2f[i + 2].size(0) == int64_t(xs.size()), kOp, ": C is of shape ", f2f[i + 2].sizes(), " with ",
                      xs.size(), " inputs; expected (M, d, d).");
    all.f2f.emplace_back(kOp, d, z.dtype(), f2f[i], f2f[i + 2], f2f[i + 1], f2f[i + 3], f2f[i + 4], f2f[i + 5]);
  }
  std::vector<Tensor> out;
  with_dtype(z.dtype(), kOp, [&](auto type) { out = Step<decltype(type)>(all, budget, backward).run(); });
  return out;
}

std::tuple<Tensor, Tensor> joint_loss(TensorList xs, const Tensor& offsets, const Tensor& present,
                                      const Tensor& targets, const Optional& label_weights, TensorList embed,
                                      TensorList f2f, TensorList f2l, TensorList l2l, TensorList readout,
                                      const Optional& mask, const Optional& rng, at::IntArrayRef sites, int64_t steps,
                                      double intermediate_weight, double dropout, int64_t budget) {
  const std::vector<Tensor> out = run(xs, offsets, present, targets, label_weights, embed, f2f, f2l, l2l, readout, mask,
                                      rng, sites, steps, intermediate_weight, dropout, budget, false);
  return {out[0], out[1]};
}

std::vector<Tensor> joint_loss_save(TensorList xs, const Tensor& offsets, const Tensor& present, const Tensor& targets,
                                    const Optional& label_weights, TensorList embed, TensorList f2f, TensorList f2l,
                                    TensorList l2l, TensorList readout, const Optional& mask, const Optional& rng,
                                    at::IntArrayRef sites, int64_t steps, double intermediate_weight, double dropout,
                                    int64_t budget) {
  return run(xs, offsets, present, targets, label_weights, embed, f2f, f2l, l2l, readout, mask, rng, sites, steps,
             intermediate_weight, dropout, budget, true);
}

}  // namespace

TORCH_LIBRARY_IMPL(hhmpn_fast, CPU, m) {
  m.impl("joint_loss", joint_loss);
  m.impl("joint_loss_save", joint_loss_save);
}

}  // namespace hhmpn
