// What the ISA units and the baseline host code agree on: storage types, matrices in memory and the dropout key. No
// torch, no std templates.
#pragma once
#include <cstdint>

namespace hhmpn {

// bfloat16 as stored; arithmetic on it happens in float.
struct bf16 {
  uint16_t bits;
};

// Accumulator (and scratch) type of a storage type.
template <class T>
struct AccOf {
  using type = T;
};
template <>
struct AccOf<bf16> {
  using type = float;
};
template <class T>
using Acc = typename AccOf<T>::type;

// Rows of a matrix to read: row i begins at `at + i * ld`. Passed by value, in two registers.
template <class E>
struct View {
  View() = default;
  View(const E* at, int64_t ld) : at(at), ld(ld) {}
  const E* at = nullptr;
  int64_t ld = 0;
};

// Rows of a matrix to write.
template <class E>
struct Target {
  E* at = nullptr;
  int64_t ld = 0;
};

// Sizes of a product: C (m, n) = A (m, k) B (k, n).
struct Shape {
  int64_t m, n, k;
};

// One call's dropout: an element is kept iff its Philox word >= threshold, and then scaled. p == 0 draws nothing.
struct Dropout {
  uint32_t seed_lo, seed_hi, step, threshold;
  double scale;  // 1 / (1 - p)
  bool on;
};

}  // namespace hhmpn
