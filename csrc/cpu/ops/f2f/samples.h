// What the ops of F2F and the joint step share: a batch as tasks over samples, packed weights, weight gradients.
#pragma once
#include <vector>

#include "ops/f2f/kernels.h"
#include "host/block_weights.h"
#include "host/packed_weights.h"
#include "host/weight_gradients.h"
#include "host/tensors.h"

namespace hhmpn {

// Segments of modalities and samples, and what a sample costs.
struct F2fBatch {
  F2fBatch(int64_t nodes, int64_t d, int64_t modalities, int64_t samples, const int32_t* offsets);
  int64_t cost(int64_t sample) const { return counts[sample] * (counts[sample] + d); }

  int64_t nodes, d, modalities, samples, longest = 0, total = 0;  // total cost
  const int32_t* offsets;
  std::vector<int64_t> counts, order;  // nodes of a sample; samples, costliest first
};

// Checked for rows of `dtype` and width d; matrices as they are, biases in accumulators.
BlockWeights f2f_weights(const char* op, int64_t d, at::ScalarType dtype, const BlockWeights& weights);

template <class T>
struct F2fPacks {
  F2fPacks(const BlockWeights& weights, bool forward, bool keep = false);
  void give(F2fArgs<T>& args) const;

 private:
  PackedWeights<T> packed_;
  at::Tensor b1_, b2_;
  int64_t query_, value_, hidden_, output_;
};

// What the weights' gradients are summed in, in accumulators; `f2f_finish` rounds them to the weights' dtype.
BlockWeights f2f_gradients(int64_t d, int64_t modalities, at::TensorOptions wide);
BlockWeights f2f_finish(const BlockWeights& gradients, at::ScalarType dtype);

// Dropout sites of one layer.
struct F2fSites {
  int64_t attention, update;
};

template <class T>
F2fArgs<T> f2f_args(const F2fBatch& batch, const Dropout& dropout, const F2fSites& sites);

// Every sample, on all threads.
template <class T>
void f2f_forward_samples(const F2fBatch& batch, const F2fArgs<T>& args);
template <class T>
void f2f_backward_samples(const F2fBatch& batch, const F2fArgs<T>& args);

// What the weights' gradients are summed from once every sample's are there; that of b1 is summed here. `add`: to what they hold.
template <class T>
void f2f_weight_jobs(const F2fBatch& batch, const F2fArgs<T>& args, const BlockWeights& to, bool add,
                     std::vector<OuterJob<T>>& jobs);

// On weights that `pack` packed, biases in accumulators. packed: one layer, `hidden` of M matrices -> z (N, d)
at::Tensor f2f_packed(const at::Tensor& v, const at::Tensor& offsets, int64_t modalities, const BlockWeights& packed);

}  // namespace hhmpn
