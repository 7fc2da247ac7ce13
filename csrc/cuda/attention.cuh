// What the attention kernels share: s_r = sum_j softmax_j(q_r . x_j) x_j over a tile of 32 queries and tiles of 32
// keys.
//
//   shared memory   shape                 dtype
//   q, dO           32 x d                T
//   x               32 x d, two stages    T       key and value at once
//   scores          32 x 32               fp32
//   weights         32 x 32               T
//
// Scores go through shared memory, so that eight neighbouring threads own four keys each of one query row: that is one
// Philox call a thread, and a row's maximum and sum are three shuffles.
#pragma once
#include "philox.cuh"
#include "rows.cuh"

namespace hh {
constexpr int kQ = 32, kK = 32;              // queries and keys of a tile
constexpr int kScores = kStride<float, kK>;  // row stride of the scores

struct Attention {
  const void *q, *x;
  const int *q_offsets, *x_offsets;
  const unsigned char* mask;  // (rows of a segment, mask_columns), null: every key may be read
  int rows, nodes, q_segments, x_segments, groups, mask_columns, exclude_self;
  Dropout dropout;
  void *context, *dcontext, *dq, *dx;
  float *lse, *dlse, *delta;
};

// The four keys `column`.. of row `row` that this thread owns in the softmax.
HH_DEV int owned_row() { return threadIdx.x / 8; }
HH_DEV int owned_column() { return threadIdx.x % 8 * 4; }

HH_DEV float row_max(float x) {
#pragma unroll
  for (int o = 4; o; o >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, o));
  return x;
}
HH_DEV float row_sum(float x) {
#pragma unroll
  for (int o = 4; o; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o);
  return x;
}

// Whether query row `row` of segment `query` may read key `key` (of `keys`) of segment `source`; places inside the
// segments.
HH_DEV bool may_read(const Attention& p, int query, int row, int source, int key, int keys) {
  if (key >= keys) return false;
  if (p.mask && !p.mask[int64_t(row) * p.mask_columns + key]) return false;
  return !(p.exclude_self && query == source && row == key);
}

// Online softmax of the owned row: maximum and sum so far, in registers of its eight threads.
struct RowSoftmax {
  float max = -INFINITY, sum = 0.f;

  // Scores (-inf: not read) to exp(score - maximum) in place; returns the factor for what was summed so far.
  HH_DEV float add(float (&s)[4]) {
    const float m = fmaxf(max, row_max(fmaxf(fmaxf(s[0], s[1]), fmaxf(s[2], s[3]))));
    const float base = m == -INFINITY ? 0.f : m, factor = expf(max - base);
    float t = 0.f;
#pragma unroll
    for (int i = 0; i < 4; i++) s[i] = expf(s[i] - base), t += s[i];
    sum = sum * factor + row_sum(t);
    max = m;
    return factor;
  }
  // A sum that is NaN must stay NaN: only the row that reads nothing is cleared.
  HH_DEV float inverse() const { return sum == 0.f ? 0.f : 1.f / sum; }
  HH_DEV float lse() const { return sum == 0.f ? -INFINITY : max + logf(sum); }
};

template <class T>
HH_DEV void store4(T* dst, const float (&x)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) dst[i] = from_float<T>(x[i]);
}
template <>
HH_DEV void store4<float>(float* dst, const float (&x)[4]) {
  *reinterpret_cast<float4*>(dst) = make_float4(x[0], x[1], x[2], x[3]);
}
template <>
HH_DEV void store4<bf16>(bf16* dst, const float (&x)[4]) {
  reinterpret_cast<__nv_bfloat162*>(dst)[0] = __floats2bfloat162_rn(x[0], x[1]);
  reinterpret_cast<__nv_bfloat162*>(dst)[1] = __floats2bfloat162_rn(x[2], x[3]);
}

HH_DEV void load4(float (&x)[4], const float* src) {
  const float4 y = *reinterpret_cast<const float4*>(src);
  x[0] = y.x, x[1] = y.y, x[2] = y.z, x[3] = y.w;
}

// The dot product of two rows of D elements, shared by the eight threads that own a row; every one of them gets it.
template <class T, int D>
HH_DEV float row_dot(const T* a, const T* b) {
  float t = 0.f;
#pragma unroll 2
  for (int c = threadIdx.x % 8 * kVec<T>; c < D; c += 8 * kVec<T>) {
    const uint4 u = *reinterpret_cast<const uint4*>(a + c), w = *reinterpret_cast<const uint4*>(b + c);
    const T *x = reinterpret_cast<const T*>(&u), *y = reinterpret_cast<const T*>(&w);
#pragma unroll
    for (int i = 0; i < kVec<T>; i++) t = fmaf(to_float(x[i]), to_float(y[i]), t);
  }
  return row_sum(t);
}

inline Attention attention_args(void* const* t, const long long* n, const double* f) {
  Attention p{};
  p.q = t[0], p.x = t[1];
  p.q_offsets = static_cast<const int*>(t[2]), p.x_offsets = static_cast<const int*>(t[3]);
  p.mask = static_cast<const unsigned char*>(t[4]);
  p.dropout = {static_cast<const long long*>(t[5]), unsigned(n[9]), unsigned(n[10]), float(f[0])};
  p.rows = int(n[2]), p.nodes = int(n[3]), p.q_segments = int(n[4]), p.x_segments = int(n[5]), p.groups = int(n[6]);
  p.mask_columns = int(n[7]), p.exclude_self = int(n[8]);
  return p;
}
}  // namespace hh
