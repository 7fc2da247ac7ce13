// A batch as chunks of samples: the op's record, what one chunk is, and what it keeps until its backward pass.
#pragma once
#include <optional>

#include "base/arena.h"
#include "host/dropout.h"
#include "host/threads.h"
#include "ops/f2f/samples.h"
#include "ops/tower/gradients.h"

namespace hhmpn {
namespace {

using at::Tensor;

// Every weight of a model; gradients in the same places.
struct ModelWeights {
  std::vector<Tensor> embed_weights, embed_biases;
  BlockLayers f2f;
  LabelWeights labels;
  template <class V>
  void each(V& v) {
    v.weight("embed_weights", embed_weights), v.weight("embed_biases", embed_biases), v.record("f2f_", f2f);
    labels.each(v);
  }
};

struct JointLoss {
  std::vector<Tensor> xs;
  Tensor targets, label_weights;
  TowerBatch batch;
  ModelWeights weights;
  DropoutInput dropout;
  std::vector<int64_t> attention_sites, update_sites;  // of F2F, by layer
  double intermediate_weight;
  int64_t chunk_bytes;
  template <class V>
  void each(V& v) {
    v.features("xs", xs), v.data("targets", targets), v.data("label_weights", label_weights), batch.each(v);
    weights.each(v), dropout.each(v), v.data("attention_sites", attention_sites), v.data("update_sites", update_sites);
    v.data("intermediate_weight", intermediate_weight), v.data("chunk_bytes", chunk_bytes);
  }
};

struct JointLossResult {
  Tensor loss, logits;
  ModelWeights d;
  template <class V>
  void each(V& v) {
    v.exact("loss", loss), v.exact("logits", logits);
    As<V, Kind::kept> kept(v);
    kept.record("d_", d);
  }
};

struct Batch {
  int64_t samples() const { return tower.samples(); }
  int64_t modalities() const { return int64_t(xs.size()); }

  std::vector<Tensor> xs;
  const JointLoss& in;
  std::vector<BlockWeights> f2f;  // by layer
  TowerInputs tower;
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
    T *q, *w, *s, *h;
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
    d_z = a.take<T>(n * d);
    d_tail = a.take<T>(in.dropout.on ? n * d : 0);
    d_h_sums = a.take<Acc<T>>(B * d);
    states = a.take<T>(in.steps * tower_kinds(in.has_l2l()) * cap * d);
    fused = a.take<T>(in.steps * B * L * d);
    queries = a.take<T>((L + (in.steps - 1) * B * L) * d);
    probs = a.take<Acc<T>>(in.steps * n * L);
    label_probs = a.take<Acc<T>>(in.steps * cap * L);
    alpha = a.take<Acc<T>>(in.steps * cap);
    buffers = a.base + a.bytes;
    bytes = a.bytes + TowerBuffers<T>(nullptr, in, *part.plan).bytes;
  }
  std::vector<T*> nodes;  // the embeddings, then each layer's result; its gradient takes the result's place
  std::vector<Layer> layers;
  T *d_z, *d_tail, *states, *fused, *queries;
  Acc<T>*d_h_sums, *probs, *label_probs, *alpha;
  char* buffers;
  int64_t bytes;
};

// Chunks of nearly equal memory, at most `budget` bytes each where a sample's own is not more.
template <class T>
std::vector<Part> parts_of(const Batch& all, int64_t budget) {
  const TowerInputs& in = all.tower;
  const int64_t M = all.modalities(), B = all.samples(), layers = int64_t(all.f2f.size());
  const int32_t* offsets = in.offsets.const_data_ptr<int32_t>();
  std::vector<double> size(size_t(B) + 1, 0);
  const double rows = double(M * in.labels() * (in.steps * (tower_kinds(in.has_l2l()) + 1) + kTowerGrads + 2));
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

}  // namespace
}  // namespace hhmpn
