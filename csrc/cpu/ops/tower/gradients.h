// The tower's backward pass over samples, for its own op and for the joint loss.
#pragma once
#include "ops/tower/inputs.h"

namespace hhmpn {

// What one backward pass over the call's samples needs beside the kept states, in one block of memory.
template <class T>
struct TowerBuffers {
  TowerBuffers(void* block, const TowerInputs& in, const TowerPlan& plan);
  TowerGrads<T> grads{};  // without packs, d_logits and d_z
  int64_t bytes;          // what a null block would have to be
};

// Gradients of the weights, in accumulators, of the passes that were given them.
template <class T>
struct TowerGradients {
  explicit TowerGradients(const TowerInputs& in);
  // After the last pass, in the weights' dtype.
  LabelWeights finish(const TowerInputs& in, const TowerPacks<T>& packs);

  at::Tensor sums;        // (1 + 3 L, d): wl, wo (L), u^0 (L), q^0 (L)
  BlockWeights f2l, l2l;  // (sets, ...)
};

// Step after step from the last: all blocks' data gradients, then the step's weight gradients; at the end the nodes', into
// grads.d_z unless null. `first`: the pass is the first that `to` is given.
template <class T>
void tower_backward_pass(const TowerInputs& in, const TowerPlan& plan, const TowerCall<T>& call,
                         const TowerGrads<T>& grads, TowerGradients<T>& to, bool first);

}  // namespace hhmpn
