// One vector register of the unit's ISA: loads, stores and reductions for float, double and bf16 storage.
// GCC vector extensions, so that AVX-512, AVX2 and portable units share every line; all in an anonymous namespace, so that
// no symbol compiled for an ISA can be picked by the linker for code that runs elsewhere.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include "base/types.h"

#define HHMPN_INLINE inline __attribute__((always_inline))

namespace {
using hhmpn::Acc;
using hhmpn::bf16;
using hhmpn::Dropout;

#if defined(__AVX512F__)
constexpr int kVecBytes = 64;
#elif defined(__AVX2__)
constexpr int kVecBytes = 32;
#else
constexpr int kVecBytes = 16;
#endif

template <class E>
struct VecType {
  typedef E type __attribute__((vector_size(kVecBytes)));
  typedef E unaligned __attribute__((vector_size(kVecBytes), aligned(alignof(E)), may_alias));
};
template <class E>
using Vec = typename VecType<E>::type;
// Lanes of a register whose elements are the accumulator of T.
template <class T>
constexpr int kLanes = kVecBytes / int(sizeof(Acc<T>));

typedef uint16_t HalfWords __attribute__((vector_size(kVecBytes / 2)));
typedef uint16_t HalfWordsU __attribute__((vector_size(kVecBytes / 2), aligned(2), may_alias));

template <class A, class B>
constexpr bool kSameType = false;
template <class A>
constexpr bool kSameType<A, A> = true;

constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t round_up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }

template <class E>
HHMPN_INLINE Vec<E> splat(E x) {
  return x - Vec<E>{};  // 0 + x would turn -0 into 0, so the compiler would really add before every broadcast
}

HHMPN_INLINE Vec<float> widen(HalfWords h) { return (Vec<float>)(__builtin_convertvector(h, Vec<uint32_t>) << 16); }

// Round to nearest even; a NaN stays a NaN.
HHMPN_INLINE HalfWords narrow(Vec<float> x) {
#if defined(__AVX512BF16__)
  return (HalfWords)_mm512_cvtneps_pbh((__m512)x);
#else
  const Vec<uint32_t> u = (Vec<uint32_t>)x;
  const Vec<uint32_t> rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const Vec<uint32_t> quiet = (u >> 16) | 0x40u;
  return __builtin_convertvector(x == x ? rounded : quiet, HalfWords);
#endif
}

#if defined(__AVX512BF16__)
// Both registers as bf16, `low` in the low half.
HHMPN_INLINE Vec<uint32_t> narrow_both(Vec<float> low, Vec<float> high) {
  return (Vec<uint32_t>)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}
HHMPN_INLINE Vec<uint32_t> join(HalfWords low, HalfWords high) {
  return (Vec<uint32_t>)_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)low), (__m256i)high, 1);
}
// 16-bit lanes 2j and 2j + 1 of the result are lane j of the low half and lane j of the high half.
HHMPN_INLINE Vec<uint32_t> weave(Vec<uint32_t> halves) {
  typedef uint16_t Lanes __attribute__((vector_size(kVecBytes)));
  const Lanes from = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return (Vec<uint32_t>)_mm512_permutexvar_epi16((__m512i)from, (__m512i)halves);
}
#endif

template <class T>
HHMPN_INLINE Vec<Acc<T>> load(const T* p) {
  if constexpr (sizeof(T) == 2) {
    return widen(*(const HalfWordsU*)p);
  } else {
    return *(const typename VecType<T>::unaligned*)p;
  }
}
template <class T>
HHMPN_INLINE void store(T* p, Vec<Acc<T>> x) {
  if constexpr (sizeof(T) == 2) {
    *(HalfWordsU*)p = narrow(x);
  } else {
    *(typename VecType<T>::unaligned*)p = x;
  }
}

// The first n lanes (0 < n < lanes); the other lanes read as `fill` and are not written.
template <class T>
HHMPN_INLINE Vec<Acc<T>> load_part(const T* p, int64_t n, Acc<T> fill = 0) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vec<float>)_mm512_mask_loadu_ps((__m512)splat<float>(fill), (1u << n) - 1, p);
#endif
  alignas(kVecBytes) T lanes[kLanes<T>] = {};
  for (int64_t i = 0; i < n; i++) lanes[i] = p[i];
  Vec<Acc<T>> x = load(lanes);
  for (int64_t i = n; i < kLanes<T>; i++) x[i] = fill;
  return x;
}
template <class T>
HHMPN_INLINE void store_part(T* p, Vec<Acc<T>> x, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_ps(p, (1u << n) - 1, (__m512)x);
#endif
  alignas(kVecBytes) T lanes[kLanes<T>];
  store(lanes, x);
  for (int64_t i = 0; i < n; i++) p[i] = lanes[i];
}

// body(j, n) for j = 0, W, 2W, ...: n == W lanes but for the last.
template <class T, class F>
HHMPN_INLINE void over_lanes(int64_t count, F body) {
  constexpr int64_t lanes = kLanes<T>;
  int64_t j = 0;
  for (; j + lanes <= count; j += lanes) body(j, lanes);
  if (j < count) body(j, count - j);
}
template <class T>
HHMPN_INLINE Vec<Acc<T>> load_n(const T* p, int64_t n, Acc<T> fill = 0) {
  return n == kLanes<T> ? load(p) : load_part(p, n, fill);
}
template <class T>
HHMPN_INLINE void store_n(T* p, Vec<Acc<T>> x, int64_t n) {
  n == kLanes<T> ? store(p, x) : store_part(p, x, n);
}

template <class V>
HHMPN_INLINE V relu(V x) {
  return x < 0 ? V{} : x;  // a NaN compares false and stays
}

// Lane sums and maxima always fold in the same order.
template <class V>
HHMPN_INLINE auto sum_lanes(V x) {
  constexpr int lanes = sizeof(V) / sizeof(x[0]);
#pragma GCC unroll 4
  for (int half = lanes / 2; half; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; i++) x[i] += x[i + half];
  return x[0] + 0;
}
template <class V>
HHMPN_INLINE auto max_lanes(V x) {  // a NaN in any lane may be lost: for pivots only
  constexpr int lanes = sizeof(V) / sizeof(x[0]);
#pragma GCC unroll 4
  for (int half = lanes / 2; half; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; i++) x[i] = x[i] > x[i + half] ? x[i] : x[i + half];
  return x[0] + 0;
}

}  // namespace
