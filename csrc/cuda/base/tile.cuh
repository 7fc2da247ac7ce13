// A block's matrix product C (M x N) += A B from shared memory, in registers of 8 warps; the same interface for bf16
// and fp16 (ldmatrix and mma.sync) and fp32 (fused multiply-adds), so that a kernel is written once.
//
//   operand   as stored        chosen by   row stride
//   A         M x K or K x M   kTransA     lda = columns + kPad<T>: no bank conflict for ldmatrix and float4 loads
//   B         K x N or N x K   kTransB     ldb, likewise; N x K is a weight (out, in) as it lies
//   C         M x N, in registers: warp w owns 16 rows (w / WN) and N / WN columns (w % WN)
#pragma once
#include "base/device.cuh"

namespace hh {
constexpr int kThreads = 256, kWarps = 8;
template <class T>
constexpr int kPad = 16 / int(sizeof(T));
constexpr int kAllRows = 1 << 30;
// Row i, or the last one of `rows`; no instruction where all rows are there.
HH_DEV int clip(int i, int rows) { return rows == kAllRows ? i : min(i, rows - 1); }
template <class T>
constexpr int kVec = 16 / int(sizeof(T));  // elements of a 16-byte access
// Row stride in shared memory of rows of n elements.
template <class T, int n>
constexpr int kStride = n + kPad<T>;

HH_DEV float to_float(float x) { return x; }
HH_DEV float to_float(bf16 x) { return __bfloat162float(x); }
HH_DEV float to_float(fp16 x) { return __half2float(x); }
template <class T>
HH_DEV T from_float(float x) {
  if constexpr (std::is_same_v<T, bf16>) return __float2bfloat16_rn(x);
  else if constexpr (std::is_same_v<T, fp16>) return __float2half_rn(x);
  else return x;
}
// Two neighbours, rounded, in one store.
HH_DEV void store2(bf16* dst, float x, float y) {
  *reinterpret_cast<__nv_bfloat162*>(dst) = __floats2bfloat162_rn(x, y);
}
HH_DEV void store2(fp16* dst, float x, float y) { *reinterpret_cast<__half2*>(dst) = __floats2half2_rn(x, y); }

template <class T, int M, int N>
struct Tile {
  static constexpr int WM = M / 16, WN = kWarps / WM, NT = N / WN / 8;
  static_assert(M % 16 == 0 && kWarps % WM == 0 && N % (8 * WN) == 0 && (NT == 1 || NT % 2 == 0));
  float v[NT][4];

  HH_DEV static int warp_row() { return int(threadIdx.x) / 32 / WN * 16; }
  HH_DEV static int warp_column() { return int(threadIdx.x) / 32 % WN * (NT * 8); }

  HH_DEV void zero() {
#pragma unroll
    for (int j = 0; j < NT; j++) v[j][0] = v[j][1] = v[j][2] = v[j][3] = 0.f;
  }

  // f(row, column, value&) for every element this thread holds.
  template <class F>
  HH_DEV void each(F&& f) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if constexpr (sizeof(T) == 2)
          f(warp_row() + lane / 4 + i / 2 * 8, warp_column() + j * 8 + lane % 4 * 2 + i % 2, v[j][i]);
        else f(warp_row() + lane / 8 + i * 4, warp_column() + j * 8 + lane % 8, v[j][i]);
      }
  }

  // Rounded to T into shared memory, row stride ld.
  HH_DEV void store(T* dst, int ld) {
    if constexpr (sizeof(T) == 2) {
      const int lane = threadIdx.x & 31;
#pragma unroll
      for (int j = 0; j < NT; j++)
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          const int row = warp_row() + lane / 4 + i / 2 * 8, column = warp_column() + j * 8 + lane % 4 * 2;
          store2(dst + row * ld + column, v[j][i], v[j][i + 1]);
        }
    } else {
      each([&](int r, int c, float& x) { dst[r * ld + c] = x; });
    }
  }

  // C += A B over K. Stored rows from `rows` of A (not transposed) and from `b_rows` of B on are read as the last one:
  // their results are not used, or they meet zeros.
  template <int K, bool kTransA, bool kTransB>
  HH_DEV void mac(const T* a, int lda, const T* b, int ldb, int rows = kAllRows, int b_rows = kAllRows) {
    if constexpr (sizeof(T) == 2) mac_mma<K, kTransA, kTransB>(a, lda, b, ldb, rows, b_rows);
    else mac_fma<K, kTransA, kTransB>(a, lda, b, ldb, rows, b_rows);
  }

 private:
  template <int K, bool kTransA, bool kTransB>
  HH_DEV void mac_mma(const T* a, int lda, const T* b, int ldb, int rows, int b_rows) {
    constexpr int kStep = NT == 1 ? 32 : 16;
    static_assert(K % kStep == 0);
    const int lane = threadIdx.x & 31;
    const T* pa = kTransA ? a + (lane % 8 + lane / 16 * 8) * lda + warp_row() + lane / 8 % 2 * 8
                          : a + clip(warp_row() + lane % 16, rows) * lda + lane / 16 * 8;
#pragma unroll 4
    for (int k = 0; k < K; k += kStep) {
      uint32_t fa[kStep / 16][4];
#pragma unroll
      for (int s = 0; s < kStep / 16; s++) {
        if constexpr (kTransA) ldmatrix_x4_trans(fa[s], pa + (k + 16 * s) * lda);
        else ldmatrix_x4(fa[s], pa + k + 16 * s);
      }
      if constexpr (NT == 1) {
        uint32_t fb[4];
        if constexpr (kTransB) ldmatrix_x4(fb, b + clip(warp_column() + lane % 8, b_rows) * ldb + k + lane / 8 * 8);
        else ldmatrix_x4_trans(fb, b + clip(k + lane, b_rows) * ldb + warp_column());
        mma_16816<T>(v[0], fa[0], fb[0], fb[1]);
        mma_16816<T>(v[0], fa[1], fb[2], fb[3]);
      } else {
#pragma unroll
        for (int j = 0; j < NT; j += 2) {
          const int n = warp_column() + j * 8;
          uint32_t fb[4];
          if constexpr (kTransB)
            ldmatrix_x4(fb, b + clip(n + lane / 16 * 8 + lane % 8, b_rows) * ldb + k + lane / 8 % 2 * 8);
          else ldmatrix_x4_trans(fb, b + clip(k + lane % 16, b_rows) * ldb + n + lane / 16 * 8);
          mma_16816<T>(v[j], fa[0], fb[0], fb[1]);
          mma_16816<T>(v[j + 1], fa[0], fb[2], fb[3]);
        }
      }
    }
  }

  template <int K, bool kTransA, bool kTransB>
  HH_DEV void mac_fma(const T* a, int lda, const T* b, int ldb, int rows, int b_rows) {
    const int lane = threadIdx.x & 31, column = warp_column() + lane % 8;
#pragma unroll 1
    for (int k = 0; k < K; k += 4) {
      float fa[4][4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int row = warp_row() + lane / 8 + i * 4;
        if constexpr (kTransA) {
#pragma unroll
          for (int s = 0; s < 4; s++) fa[i][s] = a[(k + s) * lda + row];
        } else {
          const float4 x = *reinterpret_cast<const float4*>(a + clip(row, rows) * lda + k);
          fa[i][0] = x.x, fa[i][1] = x.y, fa[i][2] = x.z, fa[i][3] = x.w;
        }
      }
#pragma unroll
      for (int j = 0; j < NT; j++) {
        float fb[4];
        if constexpr (kTransB) {
          const float4 x = *reinterpret_cast<const float4*>(b + clip(column + j * 8, b_rows) * ldb + k);
          fb[0] = x.x, fb[1] = x.y, fb[2] = x.z, fb[3] = x.w;
        } else {
#pragma unroll
          for (int s = 0; s < 4; s++) fb[s] = b[clip(k + s, b_rows) * ldb + column + j * 8];
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
          for (int s = 0; s < 4; s++) v[j][i] = fmaf(fa[i][s], fb[s], v[j][i]);
      }
    }
  }
};
}  // namespace hh
