// Operands for gemm.h from tensors (T) or scratch (Acc<T>): packed B from B or from its transpose, rows and columns of A.
#pragma once
#include "simd/gemm.h"

namespace {

#if defined(__AVX512BF16__)
// n elements as bf16, zeros behind them.
HHMPN_INLINE HalfWords halves(const bf16* p, int64_t n) {
  if (n >= kLanes<bf16>) return *(const HalfWordsU*)p;
  alignas(kVecBytes) bf16 part[kLanes<bf16>] = {};
  for (int64_t i = 0; i < n; i++) part[i] = p[i];
  return *(const HalfWords*)part;
}
HHMPN_INLINE Vec<uint32_t> half_pair(const bf16* low, int64_t n_low, const bf16* high, int64_t n_high) {
  return join(halves(low, n_low), halves(high, n_high));
}
HHMPN_INLINE Vec<uint32_t> half_pair(const float* low, int64_t n_low, const float* high, int64_t n_high) {
  return narrow_both(load_n(low, n_low), n_high > 0 ? load_n(high, n_high) : Vec<float>{});
}
#endif

// W words of K-row p (and p + 1 where operands are pairs) of a row-major source; `second` is false at an odd end.
template <class T, class S>
HHMPN_INLINE Vec<Word<T>> words_across(const S* row, int64_t ld, bool second, int64_t n) {
#if defined(__AVX512BF16__)
  if constexpr (kPair<T> == 2) return weave(half_pair(row, n, row + ld, second ? n : 0));
#endif
  if constexpr (kPair<T> == 1) return load_n(row, n);
}

// W words along one row of the source, starting at its element p; only `n` elements are real.
template <class T, class S>
HHMPN_INLINE Vec<Word<T>> words_along(const S* p, int64_t n) {
  constexpr int64_t lanes = kLanes<T>;
#if defined(__AVX512BF16__)
  if constexpr (kPair<T> == 2) return half_pair(p, min_of(n, lanes), p + lanes, min_of(n - lanes, lanes));
#endif
  if constexpr (kPair<T> == 1) return n >= lanes ? load(p) : load_part(p, n);
}

template <class E>
HHMPN_INLINE Vec<E> shuffled(Vec<E> a, Vec<E> b, const int* from) {
  constexpr int lanes = kVecBytes / int(sizeof(E));
  if constexpr (sizeof(E) == 8) {
    Vec<int64_t> index;
#pragma GCC unroll 16
    for (int i = 0; i < lanes; i++) index[i] = from[i];
    return __builtin_shuffle(a, b, index);
  } else {
    Vec<int32_t> index;
#pragma GCC unroll 16
    for (int i = 0; i < lanes; i++) index[i] = from[i];
    return __builtin_shuffle(a, b, index);
  }
}

// Transposes a W x W block held in registers by log2 W rounds of pairwise exchanges.
template <class E>
HHMPN_INLINE void transpose_block(Vec<E>* r) {
  constexpr int lanes = kVecBytes / int(sizeof(E));
#pragma GCC unroll 4
  for (int half = lanes / 2; half; half /= 2) {
    int low[lanes], high[lanes];
#pragma GCC unroll 16
    for (int j = 0; j < lanes; j++) {
      low[j] = j & half ? lanes + j - half : j;
      high[j] = j & half ? lanes + j : j + half;
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; i++) {
      if (i & half) continue;
      const Vec<E> a = r[i], b = r[i + half];
      r[i] = shuffled<E>(a, b, low);
      r[i + half] = shuffled<E>(a, b, high);
    }
  }
}

// B (k, n) as it lies, rows of ld elements.
template <class T, class S>
void pack_b(int64_t k, int64_t n, const S* b, int64_t ld, Op<T>* to_op) {
  constexpr int64_t lanes = kLanes<T>, pair = kPair<T>;
  Word<T>* to = (Word<T>*)to_op;
  for (int64_t j = 0; j < n; j += kPanel<T>) {
    const int64_t columns = min_of(kPanel<T>, n - j), registers = columns > lanes ? 2 : 1;
    for (int64_t p = 0; p < k; p += pair)
      for (int64_t q = 0; q < registers; q++, to += lanes)
        *(Vec<Word<T>>*)to =
            words_across<T>(b + p * ld + j + q * lanes, ld, p + 1 < k, min_of(lanes, columns - q * lanes));
  }
}

template <class T, class S>
constexpr bool kReadsRows = kSameType<S, Op<T>> && kPair<T> == 1;

// B (k, n) for one product: the source itself where whole registers of its rows can be read, else packed into `scratch`.
template <class T, class S>
BOperand<T> as_b(int64_t k, int64_t n, const S* b, int64_t ld, Op<T>* scratch) {
  if constexpr (kReadsRows<T, S>)
    if (n % kLanes<T> == 0) return {b, ld};
  pack_b<T>(k, n, b, ld, scratch);
  return scratch;
}

// B (k, n) whose transpose (n, k) lies in memory, rows of ld elements: nn.Linear's weight, or nodes as keys.
template <class T, class S>
void pack_bt(int64_t k, int64_t n, const S* b, int64_t ld, Op<T>* to_op) {
  constexpr int64_t lanes = kLanes<T>, pair = kPair<T>;
  Word<T>* to = (Word<T>*)to_op;
  const int64_t words = (k + pair - 1) / pair;
  for (int64_t j = 0; j < n; j += kPanel<T>) {
    const int64_t registers = n - j > lanes ? 2 : 1, width = registers * lanes;
    for (int64_t q = 0; q < registers; q++)
      for (int64_t p = 0; p < words; p += lanes) {
        const int64_t columns = min_of(lanes, n - j - q * lanes), depth = min_of(lanes, words - p);
        Vec<Word<T>> block[lanes];
        if (columns == lanes && k - p * pair >= lanes * pair) {
#pragma GCC unroll 16
          for (int64_t i = 0; i < lanes; i++)
            block[i] = words_along<T>(b + (j + q * lanes + i) * ld + p * pair, lanes * pair);
        } else {
          for (int64_t i = 0; i < lanes; i++)
            block[i] =
                i < columns ? words_along<T>(b + (j + q * lanes + i) * ld + p * pair, k - p * pair) : Vec<Word<T>>{};
        }
        transpose_block<Word<T>>(block);
        if (depth == lanes) {
#pragma GCC unroll 16
          for (int64_t i = 0; i < lanes; i++) *(Vec<Word<T>>*)(to + (p + i) * width + q * lanes) = block[i];
        } else {
          for (int64_t i = 0; i < depth; i++) *(Vec<Word<T>>*)(to + (p + i) * width + q * lanes) = block[i];
        }
      }
    to += words * width;
  }
}

// Rows of A as an operand: the source itself where it fits, else a copy in `scratch` (m * operand_width(k)); sets `lda`.
template <class T, class S>
const Op<T>* as_rows(int64_t m, int64_t k, const S* a, int64_t ld, Op<T>* scratch, int64_t* lda) {
  if constexpr (kSameType<S, Op<T>>) {
    if (k % kPair<T> == 0 && ld % kPair<T> == 0) {
      *lda = ld;
      return a;
    }
  }
  const int64_t width = operand_width<T>(k);
  *lda = width;
  for (int64_t i = 0; i < m; i++) {
    over_lanes<T>(k, [&](int64_t j, int64_t n) { store_n(scratch + i * width + j, load_n(a + i * ld + j, n), n); });
    for (int64_t j = k; j < width; j++) scratch[i * width + j] = Op<T>{};
  }
  return scratch;
}

// Columns of A (k rows of m) for gemm_tn: the source itself where it fits, else `scratch` (operand_width(k) * round_up(m, W)).
template <class T, class S>
const Op<T>* as_columns(int64_t m, int64_t k, const S* a, int64_t ld, Op<T>* scratch, int64_t* lda) {
  if constexpr (kReadsRows<T, S>) {
    *lda = ld;
    return a;
  } else {
    const int64_t width = round_up(m, kLanes<T>);
    *lda = width;
    Word<T>* to = (Word<T>*)scratch;
    for (int64_t p = 0; p < k; p += kPair<T>, to += width)
      over_lanes<T>(m, [&](int64_t j, int64_t n) {
        *(Vec<Word<T>>*)(to + j) = words_across<T>(a + p * ld + j, ld, p + 1 < k, n);
      });
    return scratch;
  }
}

}  // namespace
