// C[M,N] (+)= A[M,K] B[K,N] from register tiles: A as it lies, B packed in panels of 2 registers of columns.
//
//   operand   layout                                                      made by
//   A         rows [M][lda]; transposed form [K][lda] (gemm_tn)           as_rows, as_columns
//   B         panels [N / 2W][K][2W], a last panel of W if that suffices   pack.h; or rows as they lie (direct_b)
//   C         rows [M][ldc] of Acc<T>
//
// Op<T> is what the multiplier eats: bf16 where the unit has the bf16 dot product (two steps of K in one 32-bit Word, an odd K
// padded by zeros), else Acc<T>. Every element sums over K in ascending order in one register: no split, same bits always.
#pragma once
#include "simd/vec.h"

namespace {

#if defined(__AVX512BF16__)
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
#endif

template <class T>
struct Operand {
  using op = Acc<T>;
  using word = Acc<T>;  // what is broadcast
  static constexpr int64_t pair = 1;
};
#if defined(__AVX512BF16__)
template <>
struct Operand<bf16> {
  using op = bf16;
  using word = uint32_t;
  static constexpr int64_t pair = 2;
};
#endif
template <class T>
using Op = typename Operand<T>::op;
template <class T>
using Word = typename Operand<T>::word;
template <class T>
constexpr int64_t kPair = Operand<T>::pair;
// Columns of a full panel and rows of the tallest tile: with 16 registers 6 x 2, with 32 registers 12 x 2.
template <class T>
constexpr int64_t kPanel = 2 * kLanes<T>;
#if defined(__AVX512F__)
constexpr int kTileRows = 12;
#else
constexpr int kTileRows = 6;
#endif

// Elements of Op<T> that a packed B takes, and that one row of an A operand must have.
template <class T>
constexpr int64_t packed_size(int64_t k, int64_t n) {
  return round_up(k, kPair<T>) * round_up(n, kLanes<T>);
}
template <class T>
constexpr int64_t operand_width(int64_t k) {
  return round_up(k, kPair<T>);
}

// B: packed panels (ld == 0), or rows as they lie, ld words apart: then whole registers of every row must be readable.
template <class T>
struct BOperand {
  BOperand(const Op<T>* packed) : at(packed) {}
  BOperand(const Op<T>* rows, int64_t row_words) : at(rows), ld(row_words) {}
  const Op<T>* at;
  int64_t ld = 0;
};

// What happens to a tile before it is stored, in this order.
template <class A>
struct Epilogue {
  bool accumulate = false;  // + C
  const A* bias = nullptr;  // + bias[column]
  bool relu = false;
  const A* add = nullptr;  // + add[row, column], rows of ld_add
  int64_t ld_add = 0;
  const A* gate = nullptr;  // 0 where gate[row, column] <= 0: the gradient of a relu, rows of ld_gate
  int64_t ld_gate = 0;
};

HHMPN_INLINE void multiply_add(Vec<float>& acc, Vec<float> a, Vec<float> b) { acc += a * b; }
HHMPN_INLINE void multiply_add(Vec<double>& acc, Vec<double> a, Vec<double> b) { acc += a * b; }
#if defined(__AVX512BF16__)
HHMPN_INLINE void multiply_add(Vec<float>& acc, Vec<uint32_t> a, Vec<uint32_t> b) {
  acc = (Vec<float>)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
}
#endif

// Lines that a later tile reads, `step` bytes apart.
struct Ahead {
  const void* at = nullptr;
  int64_t step = 0, lines = 0;
};

// One tile of MR rows and NV registers; n of its columns are real. k counts words. What the epilogue touches and what a later
// tile reads is prefetched a few lines at a time: a core waits for some twenty lines at once, and a burst of them from memory
// would hold up the tile's own loads from the second cache.
template <class T, int MR, int NV, bool kTransposed>
void tile(int64_t k, const Word<T>* a, int64_t lda, const Word<T>* b, int64_t ldb, const Ahead& ahead, Acc<T>* c,
          int64_t ldc, int64_t n, const Epilogue<Acc<T>>& after) {
  constexpr int lanes = kLanes<T>;
  Vec<Acc<T>> acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
    for (int j = 0; j < NV; j++) acc[i][j] = Vec<Acc<T>>{};
  const int64_t stretch = k / (MR + 4) + 1, lines = (ahead.lines + MR) / (MR + 1);
  const char* line = (const char*)ahead.at;
  for (int64_t p = 0, row = 0; p < k; row++) {
    if (row < MR)
#pragma GCC unroll 2
      for (int j = 0; j < NV; j++) {
        __builtin_prefetch(c + row * ldc + j * lanes, 1);
        if (after.add) __builtin_prefetch(after.add + row * after.ld_add + j * lanes);
        if (after.gate) __builtin_prefetch(after.gate + row * after.ld_gate + j * lanes);
      }
    for (int64_t i = 0; i < lines; i++, line += ahead.step) __builtin_prefetch(line);
    for (const int64_t end = min_of(p + stretch, k); p < end; p++) {
      Vec<Word<T>> bv[NV];
#pragma GCC unroll 2
      for (int j = 0; j < NV; j++) bv[j] = *(const typename VecType<Word<T>>::unaligned*)(b + j * lanes);
#pragma GCC unroll 16
      for (int i = 0; i < MR; i++) {
        const Vec<Word<T>> av = splat<Word<T>>(kTransposed ? a[i] : a[i * lda]);
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++) multiply_add(acc[i][j], av, bv[j]);
      }
      b += ldb;
      a += kTransposed ? lda : 1;
    }
  }
  if (n == NV * lanes) {  // a question a stage, not one a register
    const auto each = [&](auto stage) __attribute__((always_inline)) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++) acc[i][j] = stage(acc[i][j], i, j * lanes);
    };
    using V = Vec<Acc<T>>;
    if (after.accumulate)
      each([&](V x, int64_t i, int64_t j) __attribute__((always_inline)) { return x + load(c + i * ldc + j); });
    if (after.bias)
      each([&](V x, int64_t, int64_t j) __attribute__((always_inline)) { return x + load(after.bias + j); });
    if (after.relu) each([&](V x, int64_t, int64_t) __attribute__((always_inline)) { return relu(x); });
    if (after.add)
      each([&](V x, int64_t i, int64_t j)
               __attribute__((always_inline)) { return x + load(after.add + i * after.ld_add + j); });
    if (after.gate)
      each([&](V x, int64_t i, int64_t j)
               __attribute__((always_inline)) { return load(after.gate + i * after.ld_gate + j) > 0 ? x : V{}; });
    each([&](V x, int64_t i, int64_t j) __attribute__((always_inline)) {
      store(c + i * ldc + j, x);
      return x;
    });
    return;
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
    for (int j = 0; j < NV; j++) {
      const int64_t left = n - j * lanes;
      if (left <= 0) continue;
      Acc<T>* to = c + i * ldc + j * lanes;
      Vec<Acc<T>> x = acc[i][j];
      const int64_t count = left < lanes ? left : lanes;
      if (after.accumulate) x += load_n(to, count);
      if (after.bias) x += load_n(after.bias + j * lanes, count);
      if (after.relu) x = relu(x);
      if (after.add) x += load_n(after.add + i * after.ld_add + j * lanes, count);
      if (after.gate) x = load_n(after.gate + i * after.ld_gate + j * lanes, count) > 0 ? x : Vec<Acc<T>>{};
      store_n(to, x, count);
    }
}

template <class T>
using TileFn = void (*)(int64_t, const Word<T>*, int64_t, const Word<T>*, int64_t, const Ahead&, Acc<T>*, int64_t,
                        int64_t, const Epilogue<Acc<T>>&);

template <class T, int NV, bool kTransposed>
TileFn<T> tile_of(int64_t rows) {
#if defined(__AVX512F__)
  static constexpr TileFn<T> table[] = {
      tile<T, 1, NV, kTransposed>,  tile<T, 2, NV, kTransposed>,  tile<T, 3, NV, kTransposed>,
      tile<T, 4, NV, kTransposed>,  tile<T, 5, NV, kTransposed>,  tile<T, 6, NV, kTransposed>,
      tile<T, 7, NV, kTransposed>,  tile<T, 8, NV, kTransposed>,  tile<T, 9, NV, kTransposed>,
      tile<T, 10, NV, kTransposed>, tile<T, 11, NV, kTransposed>, tile<T, 12, NV, kTransposed>};
#else
  static constexpr TileFn<T> table[] = {tile<T, 1, NV, kTransposed>, tile<T, 2, NV, kTransposed>,
                                        tile<T, 3, NV, kTransposed>, tile<T, 4, NV, kTransposed>,
                                        tile<T, 5, NV, kTransposed>, tile<T, 6, NV, kTransposed>};
#endif
  return table[rows - 1];
}

// Tile t's share, of `tiles`, of a block of `rows` rows of `width` elements, ld apart: part of one column of lines.
template <class E>
HHMPN_INLINE Ahead share_of(int64_t t, int64_t tiles, const E* block, int64_t rows, int64_t ld, int64_t width) {
  constexpr int64_t line = 64 / int64_t(sizeof(E));
  const int64_t columns = (width + line - 1) / line;
  if (columns == 0) return {};
  const int64_t parts = max_of(tiles / columns, 1), column = t / parts, part = t % parts;
  if (column >= columns) return {};
  const int64_t from = part * rows / parts;
  return {block + column * line + from * ld, ld * int64_t(sizeof(E)), (part + 1) * rows / parts - from};
}

template <class T, bool kTransposed>
void gemm_tiles(int64_t m, int64_t n, int64_t k, const Op<T>* a_op, int64_t lda, BOperand<T> b_op, Acc<T>* c,
                int64_t ldc, Epilogue<Acc<T>> after) {
  constexpr int64_t pair = kPair<T>, panel = kPanel<T>, lanes = kLanes<T>;
  if (m <= 0 || n <= 0) return;
  const Word<T>* a = (const Word<T>*)a_op;
  const Word<T>* b = (const Word<T>*)b_op.at;
  const int64_t words = (k + pair - 1) / pair, step = kTransposed ? lda : lda / pair;
  // tiles of nearly equal height: 13 rows are 7 + 6, not 12 + 1
  const int64_t tiles = (m + kTileRows - 1) / kTileRows, height = m / tiles, taller = m % tiles;
  const Epilogue<Acc<T>> whole = after;
  for (int64_t j = 0; j < n; j += panel) {
    const int64_t columns = min_of(panel, n - j);
    const bool wide = columns > lanes;
    const TileFn<T> low = wide ? tile_of<T, 2, kTransposed>(height) : tile_of<T, 1, kTransposed>(height);
    const TileFn<T> tall = !taller ? low
                           : wide  ? tile_of<T, 2, kTransposed>(height + 1)
                                   : tile_of<T, 1, kTransposed>(height + 1);
    if (whole.bias) after.bias = whole.bias + j;
    const int64_t width = wide ? panel : lanes, ldb = b_op.ld ? b_op.ld : width;
    const bool last = j + panel >= n;
    const Word<T>* next = b + (b_op.ld ? width : words * width);
    int64_t i = 0;
    for (int64_t t = 0; t < tiles; t++) {
      const int64_t rows = height + (t < taller);
      if (whole.add) after.add = whole.add + i * whole.ld_add + j;
      if (whole.gate) after.gate = whole.gate + i * whole.ld_gate + j;
      const Ahead ahead = last ? Ahead{} : share_of<Word<T>>(t, tiles, next, words, b_op.ld ? ldb : width, width);
      (t < taller ? tall : low)(words, kTransposed ? a + i : a + i * step, step, b, ldb, ahead, c + i * ldc + j, ldc,
                                columns, after);
      i += rows;
    }
    b += b_op.ld ? width : words * width;
  }
}

// C (+)= A B: A rows [m][lda], lda even where operands are pairs.
template <class T>
void gemm(int64_t m, int64_t n, int64_t k, const Op<T>* a, int64_t lda, BOperand<T> b, Acc<T>* c, int64_t ldc,
          Epilogue<Acc<T>> after = {}) {
  gemm_tiles<T, false>(m, n, k, a, lda, b, c, ldc, after);
}

// C (+)= A^T B: A is k rows of m columns; where operands are pairs, words [k/2][lda] as pack_columns writes them.
template <class T>
void gemm_tn(int64_t m, int64_t n, int64_t k, const Op<T>* a, int64_t lda, BOperand<T> b, Acc<T>* c, int64_t ldc,
             Epilogue<Acc<T>> after = {}) {
  gemm_tiles<T, true>(m, n, k, a, lda, b, c, ldc, after);
}

}  // namespace
