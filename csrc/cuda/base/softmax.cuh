// A tile of scores, 32 queries by 32 keys, and the online softmax of its rows.
//
// Scores go through shared memory, so that eight neighbouring threads own four keys each of one query row: that is one
// Philox call a thread, and a row's maximum and sum are three shuffles.
//
//   shared memory   shape     dtype
//   scores          32 x 32   fp32, rows kScores apart
//   probs           32 x 32   T
#pragma once
#include "base/rows.cuh"

namespace hh {
constexpr int kQ = 32, kK = 32;              // queries and keys of a tile
constexpr int kScores = kStride<float, kK>;  // row stride of the scores

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
  if constexpr (sizeof(T) == 2) store2(dst, x[0], x[1]), store2(dst + 2, x[2], x[3]);
  else *reinterpret_cast<float4*>(dst) = make_float4(x[0], x[1], x[2], x[3]);
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

}  // namespace hh
