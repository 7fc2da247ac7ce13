// Element-wise work on rows of scratch (Acc<T>) and of tensors (T).
#pragma once
#include "simd/gemm.h"

namespace {

template <class S, class D>
HHMPN_INLINE void copy_row(int64_t n, const S* from, D* to) {
  over_lanes<S>(n, [&](int64_t j, int64_t w) { store_n(to + j, load_n(from + j, w), w); });
}

// sums[j] += sum over rows of x[., j], by blocks of rows, so that rounding grows with the blocks and not with the rows.
template <class S>
void add_column_sums(int64_t rows, int64_t n, const S* x, int64_t ld, Acc<S>* sums) {
  constexpr int64_t kBlock = 16;
  over_lanes<S>(n, [&](int64_t j, int64_t w) {
    Vec<Acc<S>> total{};
    for (int64_t i = 0; i < rows; i += kBlock) {
      Vec<Acc<S>> part{};
      for (int64_t r = i; r < min_of(rows, i + kBlock); r++) part += load_n(x + r * ld + j, w);
      total += part;
    }
    store_n(sums + j, load_n(sums + j, w) + total, w);
  });
}

// Product straight into a tensor where it holds accumulators, else through `wide` (m * n).
template <class T>
void gemm_to(int64_t m, int64_t n, int64_t k, const Op<T>* a, int64_t lda, BOperand<T> b, T* c, int64_t ldc,
             Acc<T>* wide, Epilogue<Acc<T>> after = {}) {
  if constexpr (kSameType<T, Acc<T>>) {
    gemm<T>(m, n, k, a, lda, b, c, ldc, after);
  } else {
    gemm<T>(m, n, k, a, lda, b, wide, n, after);
    for (int64_t i = 0; i < m; i++) copy_row(n, wide + i * n, c + i * ldc);
  }
}

}  // namespace
