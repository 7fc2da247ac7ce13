// Rows of scores to weights: online softmax pieces for one row of S (Acc<T>), n real columns.
#pragma once
#include "simd/exp.h"
#include "simd/philox.h"
#include "simd/rows.h"

namespace {

// Scores the mask forbids become -inf.
template <class A>
HHMPN_INLINE void mask_row(int64_t n, A* s, const bool* allowed) {
  for (int64_t j = 0; j < n; j++)
    if (!allowed[j]) s[j] = -__builtin_inff();
}

template <class A>
HHMPN_INLINE A max_row(int64_t n, const A* s) {
  Vec<A> m = splat<A>(-A(__builtin_inff()));
  over_lanes<A>(n, [&](int64_t j, int64_t w) {
    const Vec<A> x = load_n(s + j, w, -A(__builtin_inff()));
    m = x > m ? x : m;
  });
  return max_lanes(m);
}

// s = exp(s - pivot); returns the sum.
template <class A>
HHMPN_INLINE A exp_row(int64_t n, A* s, A pivot) {
  Vec<A> sum{};
  over_lanes<A>(n, [&](int64_t j, int64_t w) {
    const Vec<A> e = exp_of(load_n(s + j, w, -A(__builtin_inff())) - pivot);
    sum += e;
    store_n(s + j, e, w);
  });
  return sum_lanes(sum);
}

template <class A>
HHMPN_INLINE void scale_row(int64_t n, A* s, A factor) {
  over_lanes<A>(n, [&](int64_t j, int64_t w) { store_n(s + j, load_n(s + j, w) * factor, w); });
}

template <class A>
HHMPN_INLINE void multiply_row(int64_t n, A* s, const A* by) {
  over_lanes<A>(n, [&](int64_t j, int64_t w) { store_n(s + j, load_n(s + j, w) * load_n(by + j, w), w); });
}

template <class S, class R>
HHMPN_INLINE Acc<S> dot_row(int64_t n, const S* x, const R* y) {
  Vec<Acc<S>> sum{};
  over_lanes<S>(n, [&](int64_t j, int64_t w) { sum += load_n(x + j, w) * load_n(y + j, w); });
  return sum_lanes(sum);
}

HHMPN_INLINE float log_of(float x) { return __builtin_logf(x); }
HHMPN_INLINE double log_of(double x) { return __builtin_log(x); }

}  // namespace
