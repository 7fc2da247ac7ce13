// Philox-4x32-10 by position: key = (seed low, seed high), counter = (column >> 2, row, site, step), and the element uses
// output word `column & 3`. The mask depends on nothing else, so any tiling and any thread draws the same.
#pragma once
#include "simd/vec.h"

namespace {

typedef uint64_t Wide
    __attribute__((vector_size(kVecBytes)));  // one counter in each 64-bit lane, its word in the low half

HHMPN_INLINE Wide mul_low_words(Wide a, uint64_t m) {  // full 64-bit products of the low halves
#if defined(__AVX512F__)
  return (Wide)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64((long long)m));
#elif defined(__AVX2__)
  return (Wide)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x((long long)m));
#elif defined(__SSE2__)
  return (Wide)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x((long long)m));
#else
  return (a & 0xffffffffu) * m;
#endif
}

constexpr int kPhiloxColumns = kVecBytes / 2;  // columns that one call of philox_words covers

// words[0 .. kPhiloxColumns) for columns column .. column + kPhiloxColumns; column must be a multiple of 4.
HHMPN_INLINE void philox_words(const Dropout& d, uint32_t row, uint32_t site, int64_t column, uint32_t* words) {
  constexpr int lanes = kVecBytes / 8;
  Wide x0;
#pragma GCC unroll 8
  for (int i = 0; i < lanes; i++) x0[i] = uint64_t(column >> 2) + i;
  Wide x1 = Wide{} + row, x2 = Wide{} + site, x3 = Wide{} + d.step;
  uint32_t k0 = d.seed_lo, k1 = d.seed_hi;
#pragma GCC unroll 10
  for (int round = 0; round < 10; round++) {
    const Wide p0 = mul_low_words(x0, 0xD2511F53u), p1 = mul_low_words(x2, 0xCD9E8D57u);
    x0 = (p1 >> 32) ^ x1 ^ uint64_t(k0);
    x2 = (p0 >> 32) ^ x3 ^ uint64_t(k1);
    x1 = p1;  // only low halves count
    x3 = p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const Wide low = Wide{} + 0xffffffffu;
  const Wide a = (x0 & low) | (x1 << 32), b = (x2 & low) | (x3 << 32);
  alignas(kVecBytes) uint64_t out[2 * lanes];
#if defined(__AVX512F__)
  const __m512i first = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0),
                second = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
  _mm512_store_si512(out, _mm512_permutex2var_epi64((__m512i)a, first, (__m512i)b));
  _mm512_store_si512(out + lanes, _mm512_permutex2var_epi64((__m512i)a, second, (__m512i)b));
#else
#pragma GCC unroll 8
  for (int i = 0; i < lanes; i++) {
    out[2 * i] = a[i];
    out[2 * i + 1] = b[i];
  }
#endif
  memcpy(words, out, sizeof out);
}

// keep[j] = scale if element (row, column + j) of `site` is kept, else 0, for j < count; column is a multiple of 4 and `keep`
// holds round_up(count, kPhiloxColumns).
template <class E>
inline void dropout_row(const Dropout& d, uint32_t row, uint32_t site, int64_t column, int64_t count, E* keep) {
  alignas(kVecBytes) uint32_t words[kPhiloxColumns];
  const E scale = E(d.scale);
  for (int64_t j = 0; j < count; j += kPhiloxColumns) {
    philox_words(d, row, site, column + j, words);
#pragma GCC ivdep
    for (int i = 0; i < kPhiloxColumns; i++) keep[j + i] = words[i] >= d.threshold ? scale : E(0);
  }
}

}  // namespace
