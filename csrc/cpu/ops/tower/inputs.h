// What the tower's forward and backward passes share on the host: the checked inputs, the plan of blocks, packed weights.
#pragma once
#include <vector>

#include "host/block_weights.h"
#include "host/dropout.h"
#include "host/packed_weights.h"
#include "host/tensors.h"
#include "ops/tower/kernels.h"

namespace hhmpn {

// The weights of the label side. f2l, l2l: S = 1 or T sets in front of each field; no l2l.value: no label-to-label messages;
// no wl: the plain sum over the modalities present.
struct LabelWeights {
  at::Tensor label_embedding, wl, wo;
  BlockWeights f2l, l2l;
  template <class V>
  void each(V& v) {
    v.weight("label_embedding", label_embedding), v.weight("wl", wl), v.weight("wo", wo);
    v.record("f2l_", f2l), v.record("l2l_", l2l);
  }
};

// Which samples there are, and how often their labels step.
struct TowerBatch {
  at::Tensor offsets, present, mask;
  int64_t steps;
  template <class V>
  void each(V& v) {
    v.data("offsets", offsets), v.data("present", present), v.data("mask", mask), v.data("steps", steps);
  }
};

// What the nodes z (N, d) are, without what they hold.
struct TowerNodes {
  int64_t count, dim;
  at::TensorOptions options;
  at::ScalarType dtype() const { return at::typeMetaToScalarType(options.dtype()); }
};

// z as rows one after another, and what it is.
at::Tensor tower_rows(const char* op, const at::Tensor& z);
inline TowerNodes tower_nodes(const at::Tensor& z) { return {z.size(0), z.size(1), z.options()}; }

struct TowerInputs {
  // Without weights but for the readout's.
  TowerInputs(const char* op, const TowerNodes& nodes, const TowerBatch& batch, const LabelWeights& readout);
  TowerInputs(const char* op, const TowerNodes& nodes, const TowerBatch& batch, const LabelWeights& weights,
              const DropoutInput& dropout);
  int64_t samples() const { return present.size(1); }
  int64_t labels() const { return label_embedding.size(0); }
  int64_t cap() const { return present.numel() * labels(); }
  int64_t dim() const { return nodes.dim; }
  bool has_query() const { return f2l.query.defined(); }
  bool has_l2l() const { return l2l.value.defined(); }
  at::ScalarType dtype() const { return nodes.dtype(); }
  at::TensorOptions wide() const { return nodes.options.dtype(accumulate_dtype(dtype())); }
  at::ScalarType weight_dtype() const { return f2l.value.scalar_type(); }  // the nodes' or their accumulators'
  int64_t set(int64_t step) const { return sets == 1 ? 0 : step; }

  TowerNodes nodes;
  at::Tensor offsets, present, mask, label_embedding, wl, wo;
  BlockWeights f2l, l2l;
  int64_t steps, sets;
  Dropout dropout;
};

// Pairs (m, b) with rows, sample-major, and blocks of samples of nearly equal cost; from the shapes and `present` alone.
struct TowerPlan {
  explicit TowerPlan(const TowerInputs& in);
  std::vector<int32_t> pair_at, pair_modality;
  std::vector<TowerBlock> blocks;
  int64_t longest = 0;
  bool skips_nodes = false;  // an absent pair has nodes: nobody reads them
  int64_t pairs_of(const TowerBlock& b) const { return pair_at[b.end] - pair_at[b.begin]; }
};

// Packed weights of every set, in call_scratch or where `keep` is set in memory of their own, and where each step finds its own.
template <class T>
struct TowerPacks {
  TowerPacks(const TowerInputs& in, bool forward, bool keep = false);
  std::vector<TowerWeights> f2l, l2l;

 private:
  at::Tensor kept_;
};

template <class T>
TowerCall<T> tower_call(const TowerInputs& in, const TowerPlan& plan, const T* z);

// Every block of the plan, on all threads.
template <class T>
void tower_forward_blocks(const TowerPlan& plan, const TowerCall<T>& call);

// On weights that `pack` packed, biases in accumulators. packed: matrices packed, S or T sets of each; the readout's as they are -> logits (T, B, L)
at::Tensor tower_packed(const at::Tensor& z, const TowerBatch& batch, const LabelWeights& packed);

}  // namespace hhmpn
