// What the ops of F2F and the joint step share: a batch as tasks over samples, packed weights, weight gradients.
#pragma once
#include <vector>

#include "ops/f2f/kernels.h"
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

// Matrices as they are, biases in accumulators.
struct F2fWeights {
  // Checked for rows of `dtype` and width d.
  F2fWeights(const char* op, int64_t d, at::ScalarType dtype, const at::Tensor& a, const at::Tensor& c,
             const at::Tensor& wv, const at::Tensor& b1, const at::Tensor& wb, const at::Tensor& b2);
  at::Tensor a, c, wv, b1, wb, b2;
};

template <class T>
struct F2fPacks {
  F2fPacks(const F2fWeights& weights, bool forward, bool keep = false);
  void give(F2fArgs<T>& args) const;

 private:
  PackedWeights<T> packed_;
  at::Tensor b1_, b2_;
  int64_t a_, wv_, wb_, c_;
};

// In accumulators: dA, dC, dWv, db1, dWb, db2, as the weights are listed.
struct F2fGradients {
  F2fGradients(int64_t d, int64_t modalities, at::TensorOptions wide);
  at::Tensor a, c, wv, b1, wb, b2;
  std::vector<at::Tensor> all(at::ScalarType dtype) const;
};

template <class T>
F2fArgs<T> f2f_args(const F2fBatch& batch, const Dropout& dropout, int64_t attention_site, int64_t update_site);

// Every sample, on all threads.
template <class T>
void f2f_forward_samples(const F2fBatch& batch, const F2fArgs<T>& args);
template <class T>
void f2f_backward_samples(const F2fBatch& batch, const F2fArgs<T>& args);

// What the weights' gradients are summed from once every sample's are there; db1 is summed here. `add`: to what they hold.
template <class T>
void f2f_weight_jobs(const F2fBatch& batch, const F2fArgs<T>& args, const F2fGradients& to, bool add,
                     std::vector<OuterJob<T>>& jobs);

}  // namespace hhmpn
