// Dense building blocks that every host file may use: packed weights, y = x B + b over rows, and weight gradients.
//
//   x (m, k)   B packed from (k, n) or from its transpose (n, k)   y (m, n)
//   `_wide`: from weights held as accumulators, which is what autocast keeps beside bf16 rows
//   weight gradient: C[m, n] += sum over k rows of a[., m] b[., n], in ascending row order whatever the thread
#pragma once
#include "base/unit.h"

namespace hhmpn {

// Rows of a weight gradient's two sides: a (rows, m), b (rows, n).
template <class T>
struct OuterBlock {
  int64_t rows = 0, m = 0, n = 0;
  const T* a = nullptr;
  int64_t lda = 0;
  const T* b = nullptr;
  int64_t ldb = 0;
};

template <class T>
struct DenseKernels {
  int64_t panel;  // columns that are packed together
  int64_t (*packed_bytes)(int64_t k, int64_t n);
  int64_t (*packed_at)(int64_t k, int64_t column);  // where the panel of a column begins, in bytes
  void (*pack)(int64_t k, int64_t n, const T* b, int64_t ld, bool transposed, void* packed);
  void (*pack_wide)(int64_t k, int64_t n, const Acc<T>* b, int64_t ld, bool transposed, void* packed);
  // y = x B (+ bias); scratch: linear_scratch(k, n)
  int64_t (*linear_scratch)(int64_t k, int64_t n);
  void (*linear)(int64_t m, int64_t k, int64_t n, const T* x, int64_t ldx, const void* packed, const Acc<T>* bias, T* y,
                 int64_t ldy, char* scratch);
  // One block of rows of a weight gradient, while `next` comes up from memory; `sums` (m) += column sums of a where not null.
  int64_t (*outer_scratch)(int64_t m, int64_t n, int64_t k);
  void (*outer)(const OuterBlock<T>& block, const OuterBlock<T>& next, Acc<T>* c, int64_t ldc, bool accumulate,
                Acc<T>* sums, char* scratch);
  // c (m, n) = scale * a b, each of a (m, k) and b (k, n) as it lies or transposed in memory.
  int64_t (*product_scratch)(int64_t m, int64_t n, int64_t k);
  void (*product)(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, bool a_transposed, const T* b, int64_t ldb,
                  bool b_transposed, double scale, T* c, int64_t ldc, char* scratch);
  void (*product_wide)(int64_t m, int64_t n, int64_t k, const Acc<T>* a, int64_t lda, bool a_transposed,
                       const Acc<T>* b, int64_t ldb, bool b_transposed, double scale, Acc<T>* c, int64_t ldc,
                       char* scratch);
};

constexpr int64_t kLinearRows = 96;  // rows of x that one task takes: 96 x 256 floats and a panel of B fit the L2 cache
constexpr int64_t kOuterRows = 256;  // rows that one outer step sums at most

}  // namespace hhmpn

HHMPN_DECLARE_UNITS(dense, DenseKernels)
