// The label tower (paper Eqs 11-17 for every step): what the host file hands to the per-ISA kernels.
//
//   for t < T:   q = u query[t]                 u (B, L, d), shared by the modalities; at t = 0 by the batch
//                s = softmax(q z^T) z                           ragged: segment (m, b) of z
//                g = u + s value^T    h = relu(g hidden^T + b1)    x = g + D(h output^T + b2)     F2L update
//                the same with q = x query[t], keys x           over the L rows of one (m, b)  L2L attention and update
//                readout: u and logits[t] from the rows x of the modalities present
//
// Only the pairs (m, b) that `present` names have rows: `rows` = pairs * L of them, sample-major, pair after pair. An
// absent pair never reaches an output. cap = M B L, the rows there would be if every pair had some. A task of the
// forward pass is a block of samples with all its steps; its rows (`TowerBlock`) stay in the cache and every packed
// weight streams past them once a product.
//
//   kept          shape (T storage, A accumulator)      what
//   states        (T, kinds, cap, d)              T     `TowerKind`: both updates' g, h and results, the L2L query
//   fused         (T, B*L, d)                     T     u^{t+1}
//   queries       (L + (T-1)*B*L, d)              T     q: L rows of step 0, then B*L a step; none for uniform means
//   probs         (T, N*L)                        A     F2L softmax, segment (m, b) at offsets * L as (L, n)
//   label_probs   (T, cap, L)                     A     L2L softmax
//   alpha         (T, cap)                        A     modality weights of the readout
#pragma once
#include "base/team.h"
#include "base/unit.h"

namespace hhmpn {

enum TowerKind { kG, kH, kOut, kLabelQuery, kLabelG, kLabelH, kLabelOut, kTowerKinds };
enum TowerGrad { kGradG, kGradH, kGradOut, kGradLabelQuery, kGradLabelG, kGradLabelH, kGradLabelOut, kTowerGrads };
constexpr int64_t tower_kinds(bool l2l) { return l2l ? kTowerKinds : kOut + 1; }
constexpr uint32_t kF2lAttention = 2, kF2lUpdate = 3, kL2lAttention = 4, kL2lUpdate = 5;  // dropout sites within a step
constexpr uint32_t tower_site(uint32_t kind, int64_t step) { return (8 * uint32_t(step) + kind) * 256; }

// Packed weights of an F2L or L2L block at one step; forward reads y = x W^T, backward y = x W. No query: plain means.
struct TowerWeights {
  const void *query, *value, *hidden, *b1, *output, *b2;  // b1, b2: Acc<T>, forward only
};

struct TowerBlock {
  int64_t index, begin, end;  // samples
};

template <class T>
struct TowerCall {
  int64_t samples, labels, modalities, dim, steps, nodes, cap;
  int64_t batch, first_sample;  // samples that the dropout masks are numbered over, and the call's first among them
  const T* z;
  const int32_t* offsets;
  const int32_t* pair_at;              // (B + 1): first pair of every sample
  const int32_t* pair_modality;        // (pairs)
  int64_t longest;                     // nodes of the longest segment
  const T *label_embedding, *wl, *wo;  // wl null: plain sum over the modalities present
  const bool* mask;                    // (L, L) or null
  bool has_query, has_l2l;             // false: uniform means; no L2L block
  Dropout dropout;
  const TowerWeights *f2l, *l2l;  // by step
  // kept; null at inference
  T *states, *fused, *queries;
  Acc<T>*probs, *label_probs, *alpha;
  T* logits;  // (T, B, L)

  // Row of label 0 in the dropout masks: of what a sample's modalities share, and of each modality's own.
  uint32_t shared_row(int64_t sample) const { return uint32_t((first_sample + sample) * labels); }
  uint32_t own_row(int64_t modality, int64_t sample) const {
    return uint32_t(modality * batch * labels) + shared_row(sample);
  }
  int64_t query_row(int64_t step, int64_t sample) const {  // of `queries`
    return step == 0 ? 0 : labels + ((step - 1) * samples + sample) * labels;
  }
};

// Gradients, one step after another from the last; `rows` and `contexts` hold one step, then feed the weight gradients.
template <class T>
struct TowerGrads {
  const TowerWeights *f2l, *l2l;  // by step, packed for y = x W
  const T* d_logits;              // (T, B, L)
  Acc<T>* state;                  // (B*L, d): of u^{t+1} on entry of step t, of u^t on return
  T* rows;                        // (kTowerGrads, cap, d): of the outputs of the seven row products
  T* contexts;                    // (2, cap, d): the F2L and L2L contexts, recomputed from the probabilities
  T* d_q;                         // (B*L, d)
  T* d_context;                   // (T, cap, d): of the F2L contexts
  Acc<T>* factors;  // segment (m, b) at offsets * 2 L T as (T, 2, L, n): dropped probabilities, gradients of scores
  Acc<T>* sums;     // (blocks, 1 + 3 L, d): wl, wo (L), u^0 (L), q^0 (L)
  T* d_z;           // (N, d)
};

// Rows of a block's `sums`: wl, then L each of wo, u^0 and q^0.
struct TowerSums {
  int64_t labels;
  int64_t wl() const { return 0; }
  int64_t wo() const { return 1; }
  int64_t u0() const { return 1 + labels; }
  int64_t q0() const { return 1 + 2 * labels; }
  int64_t rows() const { return 1 + 3 * labels; }
};

template <class T>
struct TowerKernels {
  // `scratch` is the team's; a team of several runs without dropout only.
  int64_t (*forward_scratch)(const TowerCall<T>& call, int64_t samples, int64_t pairs, int64_t members);
  void (*forward)(const TowerCall<T>& call, const TowerBlock& block, const Team& team, char* scratch);
  int64_t (*backward_scratch)(const TowerCall<T>& call, int64_t samples, int64_t pairs);
  void (*backward)(const TowerCall<T>& call, const TowerGrads<T>& grads, const TowerBlock& block, int64_t step,
                   char* scratch);
  // Gradient of the nodes of pair `pair` of sample `sample`, after the last step: one product with K = 2 L T.
  int64_t (*nodes_scratch)(const TowerCall<T>& call);
  void (*nodes)(const TowerCall<T>& call, const TowerGrads<T>& grads, int64_t sample, int64_t pair, char* scratch);
  void (*widen)(int64_t count, const T* from, Acc<T>* to);
};

}  // namespace hhmpn

HHMPN_DECLARE_UNITS(tower, TowerKernels)
