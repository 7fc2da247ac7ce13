// update: from contexts s to the next state, one residual block a row; weights are (out, in), y = x W^T, D is dropout.
//
//   labels     g = u + s value^T                 out = g + D(relu(g hidden^T + b1) output^T + b2)
//   features   g = v + (sum_m s^m) value^T       out = g + D(relu(sum_m s^m hidden_m^T + b1) output^T + b2)
//
//   state u (state_rows, d), row r reads r mod state_rows   context (M, rows, d) features, (rows, d) labels
//   value (d, d)   hidden (h, d) or C (M, h, d)   b1 (h)   output (d, h)   b2 (d)   out (rows, d)
// Kept for backward: `g` (rows, d), for features sum_m s^m in its place, and `h` (rows, h) after the ReLU.
// Backward rows write d_tail = D o d_out, d_h, d_g and d_context; weight gradients are products over all rows
// (host/weight_gradients.h).
#pragma once
#include "base/unit.h"

namespace hhmpn {

template <class T>
struct UpdateArgs {
  int64_t rows, state_rows, d, width, modalities;  // modalities == 0: labels
  const T *state, *context;
  const void *value, *hidden, *output;  // packed; hidden holds modalities of them, hidden_bytes apart
  int64_t hidden_bytes;
  const T *b1, *b2;
  Dropout dropout;
  uint32_t site;
  T *out, *g, *h;  // g and h may be null in inference
  const T* d_out;
  T *d_tail, *d_h, *d_g, *d_context;  // d_tail is null without dropout, d_g for features (it is d_out)
};

constexpr int64_t kUpdateRows = 96;

template <class T>
struct UpdateKernels {
  int64_t (*scratch)(int64_t d, int64_t width);
  void (*forward)(const UpdateArgs<T>& args, int64_t begin, int64_t rows, char* scratch);  // rows <= kUpdateRows
  void (*backward)(const UpdateArgs<T>& args, int64_t begin, int64_t rows, char* scratch);
};

}  // namespace hhmpn

HHMPN_DECLARE_UNITS(update, UpdateKernels)
