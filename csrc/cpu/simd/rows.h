// Element-wise work on rows of scratch (Acc<T>) and of tensors (T).
#pragma once
#include "simd/gemm.h"

namespace {

template <class S, class D>
HHMPN_INLINE void copy_row(int64_t n, const S* from, D* to) {
  over_lanes<S>(n, [&](int64_t j, int64_t w) { store_n(to + j, load_n(from + j, w), w); });
}

template <class S, class R>
HHMPN_INLINE Acc<S> dot_row(int64_t n, const S* x, const R* y) {
  Vec<Acc<S>> sum{};
  over_lanes<S>(n, [&](int64_t j, int64_t w) { sum += load_n(x + j, w) * load_n(y + j, w); });
  return sum_lanes(sum);
}

// sums[j] += sum over rows of x[., j], by blocks of rows, so that rounding grows with the blocks and not with the rows.
template <class S>
void add_column_sums(int64_t rows, int64_t n, View<S> x, Acc<S>* sums) {
  constexpr int64_t kBlock = 16;
  over_lanes<S>(n, [&](int64_t j, int64_t w) {
    Vec<Acc<S>> total{};
    for (int64_t i = 0; i < rows; i += kBlock) {
      Vec<Acc<S>> part{};
      for (int64_t r = i; r < min_of(rows, i + kBlock); r++) part += load_n(x.at + r * x.ld + j, w);
      total += part;
    }
    store_n(sums + j, load_n(sums + j, w) + total, w);
  });
}

// Product straight into a tensor where it holds accumulators, else through `wide` (m * n).
template <class T>
void gemm_to(const Shape& shape, View<Op<T>> a, BOperand<T> b, Target<T> c, Acc<T>* wide, Epilogue<Acc<T>> after = {}) {
  if constexpr (kSameType<T, Acc<T>>) {
    gemm<T>(shape, a, b, c, after);
  } else {
    gemm<T>(shape, a, b, {wide, shape.n}, after);
    for (int64_t i = 0; i < shape.m; i++) copy_row(shape.n, wide + i * shape.n, c.at + i * c.ld);
  }
}

}  // namespace
