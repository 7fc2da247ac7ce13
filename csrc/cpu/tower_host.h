// What the tower's forward and backward host files share: the checked inputs, the plan of blocks, packed weights.
#pragma once
#include <vector>

#include "dense.h"
#include "parallel.h"
#include "torch_util.h"
#include "tower.h"

namespace hhmpn {

// f2l: [query,] wv, wr, b1, wb, b2, each with S = 1 or T sets in front   l2l: the same six or none   readout: u0, wo[, wl]
struct TowerInputs {
  TowerInputs(const char* op, const at::Tensor& z, const at::Tensor& offsets, const at::Tensor& present, at::TensorList readout,
              const std::optional<at::Tensor>& mask, int64_t steps);  // without weights
  TowerInputs(const char* op, const at::Tensor& z, const at::Tensor& offsets, const at::Tensor& present, at::TensorList f2l,
              at::TensorList l2l, at::TensorList readout, const std::optional<at::Tensor>& mask,
              const std::optional<at::Tensor>& rng, int64_t steps, double dropout);
  int64_t samples() const { return present.size(1); }
  int64_t labels() const { return label_embedding.size(0); }
  int64_t cap() const { return present.numel() * labels(); }
  int64_t dim() const { return z.size(1); }
  at::ScalarType weight_dtype() const { return f2l[0].scalar_type(); }  // z's or its accumulators'
  int64_t set(int64_t step) const { return sets == 1 ? 0 : step; }

  at::Tensor z, offsets, present, f2l_query, l2l_query, label_embedding, wo, wl, mask;
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

// Packed weights of every set in call_scratch, and where each step finds its own.
template <class T>
struct TowerPacks {
  TowerPacks(const TowerInputs& in, bool forward);
  std::vector<TowerWeights> f2l, label;
};

template <class T>
TowerCall<T> tower_call(const TowerInputs& in, const TowerPlan& plan);

}  // namespace hhmpn
