// What the tower's forward and backward host files share: the checked inputs, the plan of blocks, packed weights.
#pragma once
#include <vector>

#include "host/packed_weights.h"
#include "host/tensors.h"
#include "ops/tower/kernels.h"

namespace hhmpn {

// What the nodes z (N, d) are, without what they hold.
struct TowerNodes {
  int64_t count, dim;
  at::TensorOptions options;
  at::ScalarType dtype() const { return at::typeMetaToScalarType(options.dtype()); }
};

// z as rows one after another, and what it is.
at::Tensor tower_rows(const char* op, const at::Tensor& z);
inline TowerNodes tower_nodes(const at::Tensor& z) { return {z.size(0), z.size(1), z.options()}; }

// f2l: [query,] wv, wr, b1, wb, b2, each with S = 1 or T sets in front   l2l: the same six or none   readout: u0, wo[, wl]
struct TowerInputs {
  TowerInputs(const char* op, const TowerNodes& nodes, const at::Tensor& offsets, const at::Tensor& present,
              at::TensorList readout, const std::optional<at::Tensor>& mask, int64_t steps);  // without weights
  TowerInputs(const char* op, const TowerNodes& nodes, const at::Tensor& offsets, const at::Tensor& present,
              at::TensorList f2l, at::TensorList l2l, at::TensorList readout, const std::optional<at::Tensor>& mask,
              const std::optional<at::Tensor>& rng, int64_t steps, double dropout);
  int64_t samples() const { return present.size(1); }
  int64_t labels() const { return label_embedding.size(0); }
  int64_t cap() const { return present.numel() * labels(); }
  int64_t dim() const { return nodes.dim; }
  at::ScalarType dtype() const { return nodes.dtype(); }
  at::TensorOptions wide() const { return nodes.options.dtype(accumulate_dtype(dtype())); }
  at::ScalarType weight_dtype() const { return f2l[0].scalar_type(); }  // the nodes' or their accumulators'
  int64_t set(int64_t step) const { return sets == 1 ? 0 : step; }

  TowerNodes nodes;
  at::Tensor offsets, present, f2l_query, l2l_query, label_embedding, wo, wl, mask;
  std::vector<at::Tensor> f2l, l2l;  // wv, wr, b1, wb, b2; l2l may be empty
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
  std::vector<TowerWeights> f2l, label;

 private:
  at::Tensor kept_;
};

template <class T>
TowerCall<T> tower_call(const TowerInputs& in, const TowerPlan& plan, const T* z);

// Every block of the plan, on all threads.
template <class T>
void tower_forward_blocks(const TowerPlan& plan, const TowerCall<T>& call);

// What one backward pass over the call's samples needs beside the saved states, in one block of memory.
template <class T>
struct TowerBuffers {
  TowerBuffers(void* block, const TowerInputs& in, const TowerPlan& plan);
  TowerGrads<T> grads{};  // without packs, logits and z
  int64_t bytes;          // what a null block would have to be
};

// Gradients of the weights, in accumulators, of the passes that were given them.
template <class T>
struct TowerGradients {
  explicit TowerGradients(const TowerInputs& in);
  // After the last pass: u0, wo, wl (empty without it), then F2L's and L2L's as the forward op lists them, in the weights' dtype.
  std::vector<at::Tensor> finish(const TowerInputs& in, const TowerPacks<T>& packs);

  at::Tensor sums;                   // (1 + 3 L, d): wl, wo (L), u^0 (L), q^0 (L)
  std::vector<at::Tensor> f2l, l2l;  // (sets, ...): [query,] wv, wr, b1, wb, b2
};

// Step after step from the last: all blocks' data gradients, then the step's weight gradients; at the end the nodes', into
// grads.d_z unless null. `first`: the pass is the first that `to` is given.
template <class T>
void tower_backward_pass(const TowerInputs& in, const TowerPlan& plan, const TowerCall<T>& call,
                         const TowerGrads<T>& grads, TowerGradients<T>& to, bool first);

}  // namespace hhmpn
