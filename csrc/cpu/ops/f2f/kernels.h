// f2f: every node of a sample reads every modality of it, then updates itself (Eqs 3-5, 9-10), in the form that projects
// each node once through its own modality's block instead of M contexts:
//
//   q = v query    w_j = hidden_m(j) v_j    a_ij = softmax over the keys j of one modality of (q_i . v_j)
//   s_i = sum_j a_ij v_j    h_i = relu(sum_j a_ij w_j + b1)    z_i = v_i + s_i value^T + D(h_i output^T + b2)
//
//   v, z, q, w, s, h (N, d)   offsets (M*B+1)   hidden (M, d, d): C   lse (N, M)   weights (out, in), query as in v A
// q, w, s, h and lse are what backward needs; probabilities are recomputed. Samples share nothing.
#pragma once
#include "base/team.h"
#include "base/unit.h"

namespace hhmpn {

template <class T>
struct F2fArgs {
  int64_t nodes, d, modalities, samples;
  const int32_t* offsets;
  const T* v;
  const void *query, *value, *hidden, *output;  // packed: for y = x W^T (query: v A) forward, the others backward
  int64_t hidden_bytes;                         // from one modality's to the next
  const Acc<T>*b1, *b2;
  Dropout dropout;
  uint32_t attention_site, update_site;
  const int32_t* row_shift;  // (M) from a node of modality m to its row of the dropout masks; null: the node itself
  T *z, *q, *w, *s, *h;      // all but z may be null in inference
  Acc<T>* lse;
  // backward; d_tail = D o d_out is null without dropout, d_h_sums (B, d) are the sums of d_h over a sample's nodes; d_q may
  // be q, d_w may be w
  const T* d_out;
  T *d_tail, *d_q, *d_w, *d_v;
  Acc<T>* d_h_sums;
};

template <class T>
struct F2fKernels {
  int64_t (*forward_scratch)(int64_t d, int64_t longest);
  // Rows [begin, end) of the sample's nodes, its modalities one after another.
  void (*forward)(const F2fArgs<T>& args, int64_t sample, int64_t begin, int64_t end, char* scratch);
  // The same for all rows by a team, in scratch that it shares.
  int64_t (*team_scratch)(int64_t d, int64_t longest, int64_t members);
  void (*forward_team)(const F2fArgs<T>& args, int64_t sample, const Team& team, char* scratch);
  int64_t (*backward_scratch)(int64_t d, int64_t longest);
  void (*backward)(const F2fArgs<T>& args, int64_t sample, char* scratch);
};

}  // namespace hhmpn

HHMPN_DECLARE_UNITS(f2f, F2fKernels)
