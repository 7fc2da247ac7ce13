// Per-ISA side of dense.h.
#include "base/dense.h"

#include "base/arena.h"
#include "simd/operands.h"
#include "simd/rows.h"

namespace {

using hhmpn::OuterBlock;

template <class T>
int64_t packed_bytes(int64_t k, int64_t n) {
  return round_up(packed_size<T>(k, n) * int64_t(sizeof(Op<T>)), 64) + 64;
}

template <class T>
int64_t packed_at(int64_t k, int64_t column) {
  return packed_size<T>(k, column) * int64_t(sizeof(Op<T>));
}

template <class T, class S>
void pack(int64_t k, int64_t n, const S* b, int64_t ld, bool transposed, void* packed) {
  transposed ? pack_bt<T>(k, n, b, ld, (Op<T>*)packed) : pack_b<T>(k, n, b, ld, (Op<T>*)packed);
}

template <class T>
struct LinearScratch {
  LinearScratch(Arena a, int64_t k, int64_t n)
      : x(a.take<Op<T>>(hhmpn::kLinearRows * operand_width<T>(k))),
        y(a.take<Acc<T>>(hhmpn::kLinearRows * n)),
        bytes(a.bytes) {}
  Op<T>* x;
  Acc<T>* y;
  int64_t bytes;
};

template <class T>
int64_t linear_scratch(int64_t k, int64_t n) {
  return LinearScratch<T>(Arena(nullptr), k, n).bytes;
}

template <class T>
void linear(int64_t m, int64_t k, int64_t n, const T* x, int64_t ldx, const void* packed, const Acc<T>* bias, T* y,
            int64_t ldy, char* scratch) {
  const LinearScratch<T> s(Arena(scratch), k, n);
  Epilogue<Acc<T>> after;
  after.bias = bias;
  for (int64_t i = 0; i < m; i += hhmpn::kLinearRows) {
    const int64_t rows = min_of(hhmpn::kLinearRows, m - i);
    int64_t lda;
    const Op<T>* a = as_rows<T>(rows, k, x + i * ldx, ldx, s.x, &lda);
    gemm_to<T>(rows, n, k, a, lda, (const Op<T>*)packed, y + i * ldy, ldy, s.y, after);
  }
}

template <class T>
struct OuterScratch {
  OuterScratch(Arena a, int64_t m, int64_t n, int64_t k)
      : columns(a.take<Op<T>>(operand_width<T>(k) * round_up(m, kLanes<T>))),
        packed(a.take<Op<T>>(packed_size<T>(k, n))),
        bytes(a.bytes) {}
  Op<T>*columns, *packed;
  int64_t bytes;
};

template <class T>
int64_t outer_scratch(int64_t m, int64_t n, int64_t k) {
  return OuterScratch<T>(Arena(nullptr), m, n, k).bytes;
}

// C (+)= A^T B as gemm_tn does it, while the tiles prefetch the rows that come next: a batch's rows come from memory once, columns
// at a time, in an order that no hardware prefetcher sees.
template <class T>
void gemm_tn_streaming(int64_t m, int64_t n, int64_t k, const Op<T>* a_op, int64_t lda, BOperand<T> b_op, Acc<T>* c,
                       int64_t ldc, bool accumulate, const OuterBlock<T>& next) {
  constexpr int64_t lanes = kLanes<T>, panel = kPanel<T>, pair = kPair<T>, line = 64 / int64_t(sizeof(T));
  const Word<T>*a = (const Word<T>*)a_op, *b = (const Word<T>*)b_op.at;
  const int64_t words = (k + pair - 1) / pair, tiles = (m + kTileRows - 1) / kTileRows, height = m / tiles,
                taller = m % tiles;
  const int64_t lines_a = (next.m + line - 1) / line, lines_b = (next.n + line - 1) / line;
  const int64_t all = tiles * ((n + panel - 1) / panel), first = all * lines_a / max_of(lines_a + lines_b, 1);
  Epilogue<Acc<T>> after;
  after.accumulate = accumulate;
  int64_t done = 0;
  for (int64_t j = 0; j < n; j += panel) {
    const int64_t columns = min_of(panel, n - j), width = columns > lanes ? panel : lanes,
                  ldb = b_op.ld ? b_op.ld : width;
    for (int64_t t = 0, i = 0; t < tiles; t++, done++) {
      const int64_t rows = height + (t < taller);
      const TileFn<T> run = columns > lanes ? tile_of<T, 2, true>(rows) : tile_of<T, 1, true>(rows);
      const Ahead ahead = done < first ? share_of(done, first, next.a, next.rows, next.lda, next.m)
                                       : share_of(done - first, all - first, next.b, next.rows, next.ldb, next.n);
      run(words, a + i, lda, b, ldb, ahead, c + i * ldc + j, ldc, columns, after);
      i += rows;
    }
    b += b_op.ld ? width : words * width;
  }
}

template <class T>
void outer(const OuterBlock<T>& now, const OuterBlock<T>& next, Acc<T>* c, int64_t ldc, bool accumulate, Acc<T>* sums,
           char* scratch) {
  const OuterScratch<T> s(Arena(scratch), now.m, now.n, now.rows);
  int64_t lda;
  const Op<T>* a = as_columns<T>(now.m, now.rows, now.a, now.lda, s.columns, &lda);
  gemm_tn_streaming<T>(now.m, now.n, now.rows, a, lda, as_b<T>(now.rows, now.n, now.b, now.ldb, s.packed), c, ldc,
                       accumulate, next);
  if (sums) add_column_sums(now.rows, now.m, now.a, now.lda, sums);
}

constexpr int64_t kProductChain = 128;

template <class T>
struct ProductScratch {
  ProductScratch(Arena a, int64_t m, int64_t n, int64_t k)
      : a(a.take<Op<T>>(operand_width<T>(min_of(k, kProductChain)) * round_up(m, kLanes<T>))),
        b(a.take<Op<T>>(packed_size<T>(min_of(k, kProductChain), n))),
        c(a.take<Acc<T>>(kSameType<T, Acc<T>> ? 0 : m * n)),
        bytes(a.bytes) {}
  Op<T>*a, *b;
  Acc<T>* c;
  int64_t bytes;
};

template <class T>
int64_t product_scratch(int64_t m, int64_t n, int64_t k) {
  return ProductScratch<T>(Arena(nullptr), m, n, k).bytes;
}

template <class T, class S>
void product(int64_t m, int64_t n, int64_t k, const S* a, int64_t lda, bool a_transposed, const S* b, int64_t ldb,
             bool b_transposed, double scale, S* c, int64_t ldc, char* scratch) {
  const ProductScratch<T> s(Arena(scratch), m, n, k);
  constexpr bool kDirect = kSameType<S, Acc<T>>;
  Acc<T>* sum = kDirect ? (Acc<T>*)c : s.c;
  const int64_t ld_sum = kDirect ? ldc : n;
  Epilogue<Acc<T>> after;
  // Chains of at most 128: the rounding of a product of weights is in every row that meets it.
  for (int64_t p = 0; p == 0 || p < k; p += kProductChain) {
    const int64_t depth = min_of(kProductChain, k - p);
    b_transposed ? pack_bt<T>(depth, n, b + p, ldb, s.b) : pack_b<T>(depth, n, b + p * ldb, ldb, s.b);
    after.accumulate = p > 0;
    int64_t ld;
    if (a_transposed) {
      const Op<T>* at = as_columns<T>(m, depth, a + p * lda, lda, s.a, &ld);
      gemm_tn<T>(m, n, depth, at, ld, s.b, sum, ld_sum, after);
    } else {
      const Op<T>* rows = as_rows<T>(m, depth, a + p, lda, s.a, &ld);
      gemm<T>(m, n, depth, rows, ld, s.b, sum, ld_sum, after);
    }
  }
  if (kDirect && scale == 1) return;
  for (int64_t i = 0; i < m; i++)
    over_lanes<T>(
        n, [&](int64_t j, int64_t w) { store_n(c + i * ldc + j, load_n(sum + i * ld_sum + j, w) * Acc<T>(scale), w); });
}

template <class T>
constexpr hhmpn::DenseKernels<T> make_kernels() {
  return {kPanel<T>, packed_bytes<T>,  packed_at<T>, pack<T, T>,         pack<T, Acc<T>>, linear_scratch<T>,
          linear<T>, outer_scratch<T>, outer<T>,     product_scratch<T>, product<T, T>,   product<T, Acc<T>>};
}

}  // namespace

HHMPN_EXPORT_UNIT(dense, DenseKernels, make_kernels)
