// update: from contexts s to the next state, one residual block a row; weights are (out, in), y = x W^T, D is dropout.
//
//   labels     g = u + s Wv^T                 out = g + D(relu(g Wr^T + b1) Wb^T + b2)
//   features   g = v + (sum_m s^m) Wv^T       out = g + D(relu(sum_m s^m C_m^T + b1) Wb^T + b2)
//
//   state u (state_rows, d), row r reads r mod state_rows   context (M, rows, d) features, (rows, d) labels
//   Wv (d, d)   Wr (h, d) or C (M, h, d)   b1 (h)   Wb (d, h)   b2 (d)   out (rows, d)
// Saved for backward: `mixed` (rows, d), g for labels and sum_m s^m for features, and `hidden` (rows, h) after the ReLU.
// Backward rows write dt = D o d_out, dh, dg and d_context; weight gradients are products over all rows (reduce.h).
#pragma once
#include "unit.h"

namespace hhmpn {

template <class T>
struct UpdateArgs {
  int64_t rows, state_rows, d, h, modalities;  // modalities == 0: labels
  const T *state, *context;
  const void *wv, *wr, *wb;  // packed; wr holds modalities of them, wr_bytes apart
  int64_t wr_bytes;
  const T *b1, *b2;
  Dropout dropout;
  uint32_t site;
  T *out, *mixed, *hidden;  // mixed and hidden may be null in inference
  const T* d_out;
  T *dt, *dh, *dg, *d_context;  // dt is null without dropout, dg is null for features (it is d_out)
};

constexpr int64_t kUpdateRows = 96;

template <class T>
struct UpdateKernels {
  int64_t (*scratch)(int64_t d, int64_t h);
  void (*forward)(const UpdateArgs<T>& args, int64_t begin, int64_t rows, char* scratch);  // rows <= kUpdateRows
  void (*backward)(const UpdateArgs<T>& args, int64_t begin, int64_t rows, char* scratch);
};

}  // namespace hhmpn

HHMPN_DECLARE_UNITS(update, UpdateKernels)
