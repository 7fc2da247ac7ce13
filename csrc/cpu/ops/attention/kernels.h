// attention: s[g, r] = sum_j a_rj x_j,  a_rj = softmax_j(q_r . x_j),  j over key segment g * S + (i mod S)
//
//   q (R, d)   x (N, d)   q_offsets (Q+1)   x_offsets (K+1), K = G * S   mask (L, L) or null
//   context (G, R, d)   lse (G, R)   dq (R, d)   dx (N, d)
// "Sample" b owns query segments b, b + S, ... and key segments b, S + b, ...; samples share nothing.
#pragma once
#include "base/unit.h"

namespace hhmpn {

template <class T>
struct AttentionArgs {
  const T *q, *x;
  int64_t ldq, ldx, d, rows, groups, samples, queries;  // queries = Q, rows = R
  const int32_t *q_offsets, *x_offsets;
  const bool* mask;
  int64_t ldmask;
  Dropout dropout;
  uint32_t site;
  T* context;
  Acc<T>* lse;
  // backward only; d_lse may be null
  const T* d_context;
  const Acc<T>* d_lse;
  T *dq, *dx;
};

constexpr int64_t kQueryRows = 96;  // rows of a block: their scores against kKeyBlock keys stay in the L2 cache
constexpr int64_t kKeyBlock = 512;

template <class T>
struct AttentionKernels {
  int64_t (*forward_scratch)(int64_t d, int64_t longest);
  // Rows [begin, end) of the sample's query rows, its segments one after another.
  void (*forward)(const AttentionArgs<T>& args, int64_t sample, int64_t begin, int64_t end, char* scratch);
  int64_t (*backward_scratch)(int64_t d, int64_t longest, int64_t rows);
  void (*backward)(const AttentionArgs<T>& args, int64_t sample, char* scratch);
};

}  // namespace hhmpn

HHMPN_DECLARE_UNITS(attention, AttentionKernels)
