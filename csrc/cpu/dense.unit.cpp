// Per-ISA side of dense.h.
#include "dense.h"

#include "arena.h"
#include "pack.h"
#include "rows.h"

namespace {

template <class T>
int64_t packed_bytes(int64_t k, int64_t n) {
  return round_up(packed_size<T>(k, n) * int64_t(sizeof(Op<T>)), 64) + 64;
}

template <class T>
void pack(int64_t k, int64_t n, const T* b, int64_t ld, bool transposed, void* packed) {
  transposed ? pack_bt<T>(k, n, b, ld, (Op<T>*)packed) : pack_b<T>(k, n, b, ld, (Op<T>*)packed);
}

template <class T>
struct LinearScratch {
  LinearScratch(Arena a, int64_t k, int64_t n)
      : x(a.take<Op<T>>(hhmpn::kLinearRows * operand_width<T>(k))),
        y(a.take<Acc<T>>(hhmpn::kLinearRows * n)),
        bias(a.take<Acc<T>>(n)),
        bytes(a.bytes) {}
  Op<T>* x;
  Acc<T>*y, *bias;
  int64_t bytes;
};

template <class T>
int64_t linear_scratch(int64_t k, int64_t n) {
  return LinearScratch<T>(Arena(nullptr), k, n).bytes;
}

template <class T>
void linear(int64_t m, int64_t k, int64_t n, const T* x, int64_t ldx, const void* packed, const T* bias, T* y, int64_t ldy,
            char* scratch) {
  const LinearScratch<T> s(Arena(scratch), k, n);
  Epilogue<Acc<T>> after;
  if (bias) {
    copy_row(n, bias, s.bias);
    after.bias = s.bias;
  }
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
      : columns(a.take<Op<T>>(operand_width<T>(k) * round_up(m, kLanes<T>))), packed(a.take<Op<T>>(packed_size<T>(k, n))), bytes(a.bytes) {}
  Op<T>*columns, *packed;
  int64_t bytes;
};

template <class T>
int64_t outer_scratch(int64_t m, int64_t n, int64_t k) {
  return OuterScratch<T>(Arena(nullptr), m, n, k).bytes;
}

template <class T>
void outer(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, Acc<T>* c, int64_t ldc,
           bool accumulate, Acc<T>* sums, char* scratch) {
  const OuterScratch<T> s(Arena(scratch), m, n, k);
  int64_t ldt;
  const Op<T>* at = as_columns<T>(m, k, a, lda, s.columns, &ldt);
  Epilogue<Acc<T>> after;
  after.accumulate = accumulate;
  gemm_tn<T>(m, n, k, at, ldt, as_b<T>(k, n, b, ldb, s.packed), c, ldc, after);
  if (sums) add_column_sums(k, m, a, lda, sums);
}

template <class T>
struct ProductScratch {
  ProductScratch(Arena a, int64_t m, int64_t n, int64_t k)
      : a(a.take<Op<T>>(operand_width<T>(k) * round_up(m, kLanes<T>))),
        b(a.take<Op<T>>(packed_size<T>(k, n))),
        c(a.take<Acc<T>>(m * n)),
        bytes(a.bytes) {}
  Op<T>*a, *b;
  Acc<T>* c;
  int64_t bytes;
};

template <class T>
int64_t product_scratch(int64_t m, int64_t n, int64_t k) {
  return ProductScratch<T>(Arena(nullptr), m, n, k).bytes;
}

template <class T>
void product(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, bool a_transposed, const T* b, int64_t ldb,
             bool b_transposed, double scale, T* c, int64_t ldc, char* scratch) {
  const ProductScratch<T> s(Arena(scratch), m, n, k);
  b_transposed ? pack_bt<T>(k, n, b, ldb, s.b) : pack_b<T>(k, n, b, ldb, s.b);
  int64_t ld;
  if (a_transposed) {
    const Op<T>* at = as_columns<T>(m, k, a, lda, s.a, &ld);
    gemm_tn<T>(m, n, k, at, ld, s.b, s.c, n);
  } else {
    const Op<T>* rows = as_rows<T>(m, k, a, lda, s.a, &ld);
    gemm<T>(m, n, k, rows, ld, s.b, s.c, n);
  }
  for (int64_t i = 0; i < m; i++)
    over_lanes<T>(n, [&](int64_t j, int64_t w) { store_n(c + i * ldc + j, load_n(s.c + i * n + j, w) * Acc<T>(scale), w); });
}

template <class T>
void narrow_to(int64_t count, const Acc<T>* from, T* to) {
  copy_row(count, from, to);
}

template <class T>
constexpr hhmpn::DenseKernels<T> make_kernels() {
  return {packed_bytes<T>, pack<T>, linear_scratch<T>, linear<T>, outer_scratch<T>, outer<T>,
          product_scratch<T>, product<T>, narrow_to<T>};
}

}  // namespace

HHMPN_EXPORT_UNIT(dense, DenseKernels, make_kernels)
