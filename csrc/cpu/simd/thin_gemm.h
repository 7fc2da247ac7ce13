// Products of few rows (the labels of one sample) with many (the nodes of a segment), both as they lie in memory.
//
//   dots   s[i, j] = a_i . x_j                 a (L, d)   x (n, d)   s (L, n)    registers run along d and fold at the end
//   mix    c[i, :] (+)= sum_j p[i, j] x_j      p (L, n) by its two strides, so that p^T serves too   c (L, d)
//   softmax and its backward over rows of s
//
// A packed product would waste the lanes beyond L and copy every node; here a node is read once a product.
#pragma once
#include "simd/exp.h"
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
void dots_tile(int64_t d, const T* a, int64_t lda, const T* x, int64_t ldx, int64_t nodes, Acc<T>* s, int64_t lds) {
  constexpr int lanes = kLanes<T>, NX = lanes / ML;
  Vec<Acc<T>> acc[lanes];
#pragma GCC unroll 16
  for (int i = 0; i < lanes; i++) acc[i] = Vec<Acc<T>>{};
  const T* rows[NX];
#pragma GCC unroll 16
  for (int j = 0; j < NX; j++) rows[j] = x + (kFull ? j : min_of(j, nodes - 1)) * ldx;
  const auto step = [&](int64_t p, int64_t n) __attribute__((always_inline)) {
    Vec<Word<T>> av[ML];
#pragma GCC unroll 2
    for (int l = 0; l < ML; l++) av[l] = row_words(a + l * lda + p, n);
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
    for (int j = 0; j < (kFull ? NX : int(nodes)); j++) s[l * lds + j] = sums[l * NX + j];
}

template <class T, int ML>
void dots_rows(int64_t n, int64_t d, const T* a, int64_t lda, const T* x, int64_t ldx, Acc<T>* s, int64_t lds) {
  constexpr int64_t NX = kLanes<T> / ML;
  int64_t j = 0;
  for (; j + NX <= n; j += NX) dots_tile<T, ML, true>(d, a, lda, x + j * ldx, ldx, NX, s + j, lds);
  if (j < n) dots_tile<T, ML, false>(d, a, lda, x + j * ldx, ldx, n - j, s + j, lds);
}

template <class T>
void dots(int64_t m, int64_t n, int64_t d, const T* a, int64_t lda, const T* x, int64_t ldx, Acc<T>* s, int64_t lds) {
  constexpr int64_t kBlock = 32;  // nodes that stay in the first cache while every row of a passes
  for (int64_t j = 0; j < n; j += kBlock) {
    const int64_t count = min_of(kBlock, n - j);
    int64_t i = 0;
    for (; i + 2 <= m; i += 2) dots_rows<T, 2>(count, d, a + i * lda, lda, x + j * ldx, ldx, s + i * lds + j, lds);
    if (i < m) dots_rows<T, 1>(count, d, a + i * lda, lda, x + j * ldx, ldx, s + i * lds + j, lds);
  }
}

#if defined(__AVX512F__)
constexpr int kMixRegisters = 4;
#else
constexpr int kMixRegisters = 2;
#endif
constexpr int kMixRows = 6;

template <class S, int MR, int NV>
void mix_tile(int64_t n, const Acc<S>* p, int64_t row, int64_t key, const S* x, int64_t ldx, Acc<S>* c, int64_t ldc,
              int64_t count, bool accumulate) {
  constexpr int64_t lanes = kLanes<S>;
  Vec<Acc<S>> acc[MR][NV];
#pragma GCC unroll 6
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++)
      acc[i][v] = accumulate ? (NV > 1 ? load(c + i * ldc + v * lanes) : load_n(c + i * ldc, count)) : Vec<Acc<S>>{};
  for (int64_t j = 0; j < n; j++) {
    Vec<Acc<S>> xv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) xv[v] = NV > 1 ? load(x + j * ldx + v * lanes) : load_n(x + j * ldx, count);
#pragma GCC unroll 6
    for (int i = 0; i < MR; i++) {
      const Vec<Acc<S>> pv = splat<Acc<S>>(p[i * row + j * key]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) acc[i][v] += pv * xv[v];
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++)
      NV > 1 ? store(c + i * ldc + v * lanes, acc[i][v]) : store_n(c + i * ldc, acc[i][v], count);
}

template <class S, int MR>
void mix_rows(int64_t n, int64_t d, const Acc<S>* p, int64_t row, int64_t key, const S* x, int64_t ldx, Acc<S>* c,
              int64_t ldc, bool accumulate) {
  constexpr int64_t lanes = kLanes<S>, wide = kMixRegisters * lanes;
  int64_t k = 0;
  for (; k + wide <= d; k += wide)
    mix_tile<S, MR, kMixRegisters>(n, p, row, key, x + k, ldx, c + k, ldc, lanes, accumulate);
  for (; k < d; k += lanes)
    mix_tile<S, MR, 1>(n, p, row, key, x + k, ldx, c + k, ldc, min_of(lanes, d - k), accumulate);
}

// c (m, d) (+)= p x; element (i, j) of p lies at p[i * row + j * key].
template <class S>
void mix(int64_t m, int64_t n, int64_t d, const Acc<S>* p, int64_t row, int64_t key, const S* x, int64_t ldx, Acc<S>* c,
         int64_t ldc, bool accumulate = false) {
  using Rows = void (*)(int64_t, int64_t, const Acc<S>*, int64_t, int64_t, const S*, int64_t, Acc<S>*, int64_t, bool);
  static constexpr Rows table[] = {mix_rows<S, 1>, mix_rows<S, 2>, mix_rows<S, 3>,
                                   mix_rows<S, 4>, mix_rows<S, 5>, mix_rows<S, 6>};
  const int64_t tiles = (m + kMixRows - 1) / kMixRows;
  for (int64_t t = 0, i = 0; t < tiles; t++) {
    const int64_t rows = m / tiles + (t < m % tiles);
    table[rows - 1](n, d, p + i * row, row, key, x, ldx, c + i * ldc, ldc, accumulate);
    i += rows;
  }
}

// p = softmax(p) over n; `allowed` (or null) says which entries take part, none of them gives zeros.
template <class A>
void softmax_row(int64_t n, A* p, const bool* allowed) {
  const A lowest = -__builtin_inf();
  if (allowed) {
    bool any = false;
    for (int64_t j = 0; j < n; j++) {
      any |= allowed[j];
      if (!allowed[j]) p[j] = lowest;
    }
    if (!any) {
      for (int64_t j = 0; j < n; j++) p[j] = 0;
      return;
    }
  }
  Vec<A> most = splat<A>(lowest), total{};
  over_lanes<A>(n, [&](int64_t j, int64_t w) {
    const Vec<A> x = load_n(p + j, w, lowest);
    most = x > most ? x : most;
  });
  const A pivot = max_lanes(most);
  over_lanes<A>(n, [&](int64_t j, int64_t w) {
    const Vec<A> e = exp_of(load_n(p + j, w, lowest) - pivot);
    total += e;
    store_n(p + j, e, w);
  });
  const A inverse = A(1) / sum_lanes(total);
  over_lanes<A>(n, [&](int64_t j, int64_t w) { store_n(p + j, load_n(p + j, w) * inverse, w); });
}

// g = p * (g - sum p g): from the gradient of the weights to that of the scores.
template <class A>
void softmax_row_backward(int64_t n, const A* p, A* g) {
  Vec<A> total{};
  over_lanes<A>(n, [&](int64_t j, int64_t w) { total += load_n(p + j, w) * load_n(g + j, w); });
  const A mean = sum_lanes(total);
  over_lanes<A>(n, [&](int64_t j, int64_t w) { store_n(g + j, load_n(p + j, w) * (load_n(g + j, w) - mean), w); });
}

}  // namespace
