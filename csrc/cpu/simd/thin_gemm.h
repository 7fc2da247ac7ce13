// Products of few rows (the labels of one sample) with many (the nodes of a segment), both as they lie in memory.
//
//   dots   s[i, j] = a_i . x_j              a (L, d)   x (n, d)   s (L, n)   registers run along d and fold at the end
//   mix    c[i, :] (+)= sum_j p[i, j] x_j   p (L, n) or, by its strides, p^T   x (n, d)   c (L, d)
//
// A packed product would waste the lanes beyond L and copy every node; here a node is read once a product.
#pragma once
#include "simd/operands.h"

namespace {

template <class T>
constexpr int64_t kRowStep = kLanes<T> * kPair<T>;  // elements of a row in one register of words

template <class T>
HHMPN_INLINE Vec<Word<T>> row_words(const T* p, int64_t n) {
  if constexpr (kPair<T> == 2) {
    if (n >= kRowStep<T>) return *(const typename VecType<uint32_t>::unaligned*)p;
    alignas(kVecBytes) T words[kRowStep<T>] = {};
    memcpy(words, p, size_t(n) * sizeof(T));
    return *(const Vec<uint32_t>*)words;
  } else {
    return n >= kLanes<T> ? load(p) : load_part(p, n);
  }
}

// Lane i of the result is the sum of r[i]'s lanes.
template <class E>
HHMPN_INLINE Vec<E> fold_block(Vec<E>* r) {
  constexpr int lanes = kVecBytes / int(sizeof(E));
#pragma GCC unroll 4
  for (int half = lanes / 2; half; half /= 2) {
    int low[lanes], high[lanes];
#pragma GCC unroll 16
    for (int j = 0; j < lanes; j++) {
      low[j] = j & half ? lanes + j - half : j;
      high[j] = j & half ? lanes + j : j + half;
    }
#pragma GCC unroll 8
    for (int i = 0; i < half; i++) r[i] = shuffled<E>(r[i], r[i + half], low) + shuffled<E>(r[i], r[i + half], high);
  }
  return r[0];
}

// ML rows of a against W / ML rows of x, of which `nodes` are real.
template <class T, int ML, bool kFull>
void dots_tile(int64_t d, View<T> a, View<T> x, int64_t nodes, Target<Acc<T>> s) {
  constexpr int lanes = kLanes<T>, NX = lanes / ML;
  Vec<Acc<T>> acc[lanes];
#pragma GCC unroll 16
  for (int i = 0; i < lanes; i++) acc[i] = Vec<Acc<T>>{};
  const T* rows[NX];
#pragma GCC unroll 16
  for (int j = 0; j < NX; j++) rows[j] = x.at + (kFull ? j : min_of(j, nodes - 1)) * x.ld;
  const auto step = [&](int64_t p, int64_t n) __attribute__((always_inline)) {
    Vec<Word<T>> av[ML];
#pragma GCC unroll 2
    for (int l = 0; l < ML; l++) av[l] = row_words(a.at + l * a.ld + p, n);
#pragma GCC unroll 16
    for (int j = 0; j < NX; j++) {
      const Vec<Word<T>> xv = row_words(rows[j] + p, n);
#pragma GCC unroll 2
      for (int l = 0; l < ML; l++) multiply_add(acc[l * NX + j], av[l], xv);
    }
  };
  int64_t p = 0;
  for (; p + kRowStep<T> <= d; p += kRowStep<T>) step(p, kRowStep<T>);
  if (p < d) step(p, d - p);
  alignas(kVecBytes) Acc<T> sums[lanes];
  store(sums, fold_block<Acc<T>>(acc));
#pragma GCC unroll 2
  for (int l = 0; l < ML; l++)
    for (int j = 0; j < (kFull ? NX : int(nodes)); j++) s.at[l * s.ld + j] = sums[l * NX + j];
}

template <class T, int ML>
void dots_rows(int64_t n, int64_t d, View<T> a, View<T> x, Target<Acc<T>> s) {
  constexpr int64_t NX = kLanes<T> / ML;
  int64_t j = 0;
  for (; j + NX <= n; j += NX) dots_tile<T, ML, true>(d, a, {x.at + j * x.ld, x.ld}, NX, {s.at + j, s.ld});
  if (j < n) dots_tile<T, ML, false>(d, a, {x.at + j * x.ld, x.ld}, n - j, {s.at + j, s.ld});
}

// s (m, n) = a (m, k) x^T
template <class T>
void dots(const Shape& shape, View<T> a, View<T> x, Target<Acc<T>> s) {
  constexpr int64_t kBlock = 32;  // nodes that stay in the first cache while every row of a passes
  const int64_t m = shape.m, n = shape.n, d = shape.k;
  for (int64_t j = 0; j < n; j += kBlock) {
    const int64_t count = min_of(kBlock, n - j);
    const View<T> nodes(x.at + j * x.ld, x.ld);
    int64_t i = 0;
    for (; i + 2 <= m; i += 2) dots_rows<T, 2>(count, d, {a.at + i * a.ld, a.ld}, nodes, {s.at + i * s.ld + j, s.ld});
    if (i < m) dots_rows<T, 1>(count, d, {a.at + i * a.ld, a.ld}, nodes, {s.at + i * s.ld + j, s.ld});
  }
}

#if defined(__AVX512F__)
constexpr int kMixRegisters = 4;
#else
constexpr int kMixRegisters = 2;
#endif
constexpr int kMixRows = 6;

// Element (i, j) at `at[i * row + j * column]`: a matrix or its transpose.
template <class E>
struct Strided {
  const E* at;
  int64_t row, column;
};

// MR rows of c and NV registers of its columns, `count` of them real.
template <class S, int MR, int NV>
void mix_tile(int64_t n, Strided<Acc<S>> p, View<S> x, Target<Acc<S>> c, int64_t count, bool accumulate) {
  constexpr int64_t lanes = kLanes<S>;
  Vec<Acc<S>> acc[MR][NV];
#pragma GCC unroll 6
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++)
      acc[i][v] =
          accumulate ? (NV > 1 ? load(c.at + i * c.ld + v * lanes) : load_n(c.at + i * c.ld, count)) : Vec<Acc<S>>{};
  for (int64_t j = 0; j < n; j++) {
    Vec<Acc<S>> xv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) xv[v] = NV > 1 ? load(x.at + j * x.ld + v * lanes) : load_n(x.at + j * x.ld, count);
#pragma GCC unroll 6
    for (int i = 0; i < MR; i++) {
      const Vec<Acc<S>> pv = splat<Acc<S>>(p.at[i * p.row + j * p.column]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) acc[i][v] += pv * xv[v];
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++)
      NV > 1 ? store(c.at + i * c.ld + v * lanes, acc[i][v]) : store_n(c.at + i * c.ld, acc[i][v], count);
}

template <class S, int MR>
void mix_rows(int64_t n, int64_t d, Strided<Acc<S>> p, View<S> x, Target<Acc<S>> c, bool accumulate) {
  constexpr int64_t lanes = kLanes<S>, wide = kMixRegisters * lanes;
  int64_t k = 0;
  for (; k + wide <= d; k += wide)
    mix_tile<S, MR, kMixRegisters>(n, p, {x.at + k, x.ld}, {c.at + k, c.ld}, lanes, accumulate);
  for (; k < d; k += lanes)
    mix_tile<S, MR, 1>(n, p, {x.at + k, x.ld}, {c.at + k, c.ld}, min_of(lanes, d - k), accumulate);
}

// c (m, n) (+)= p (m, k) x
template <class S>
void mix(const Shape& shape, Strided<Acc<S>> p, View<S> x, Target<Acc<S>> c, bool accumulate = false) {
  using MixRows = void (*)(int64_t, int64_t, Strided<Acc<S>>, View<S>, Target<Acc<S>>, bool);
  static constexpr MixRows table[] = {mix_rows<S, 1>, mix_rows<S, 2>, mix_rows<S, 3>,
                                      mix_rows<S, 4>, mix_rows<S, 5>, mix_rows<S, 6>};
  const int64_t m = shape.m, tiles = (m + kMixRows - 1) / kMixRows;
  for (int64_t t = 0, i = 0; t < tiles; t++) {
    const int64_t rows = m / tiles + (t < m % tiles);
    table[rows - 1](shape.k, shape.n, {p.at + i * p.row, p.row, p.column}, x, {c.at + i * c.ld, c.ld}, accumulate);
    i += rows;
  }
}

}  // namespace
