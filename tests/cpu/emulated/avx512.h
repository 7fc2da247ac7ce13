// AVX-512 and its bfloat16 products in terms of AVX2: the same numbers lane by lane, far slower. The compiler (cxx)
// includes it before every unit; 64-byte vector types need nothing, GCC splits them in two.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulated {

typedef uint16_t Halves __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint64_t Wide __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(64)));

inline __m512 mask_loadu_ps(__m512 other, uint32_t mask, const void* from) {
  for (int i = 0; i < 16; i++)
    if (mask >> i & 1) memcpy((float*)&other + i, (const float*)from + i, sizeof(float));
  return other;
}
inline void mask_storeu_ps(void* to, uint32_t mask, __m512 x) {
  for (int i = 0; i < 16; i++)
    if (mask >> i & 1) memcpy((float*)to + i, (const float*)&x + i, sizeof(float));
}
inline __m512i set1_epi64(long long x) { return (__m512i)(Wide{} + uint64_t(x)); }
inline __m512i set_epi64(long long h, long long g, long long f, long long e, long long d, long long c, long long b,
                         long long a) {
  return __m512i{a, b, c, d, e, f, g, h};
}
inline __m512i mul_epu32(__m512i a, __m512i b) { return (__m512i)(((Wide)a & 0xffffffffu) * ((Wide)b & 0xffffffffu)); }
inline __m512i permutex2var_epi64(__m512i a, __m512i from, __m512i b) {
  return (__m512i)__builtin_shuffle((Wide)a, (Wide)b, (Wide)from);
}
inline __m512i permutexvar_epi16(__m512i from, __m512i a) {
  return (__m512i)__builtin_shuffle((Halves)a, (Halves)from);
}
inline __m512i castsi256_si512(__m256i low) {
  __m512i out{};
  memcpy(&out, &low, sizeof low);
  return out;
}
inline __m512i inserti64x4(__m512i x, __m256i half, int at) {
  memcpy((char*)&x + 32 * at, &half, sizeof half);
  return x;
}
inline void store_si512(void* to, __m512i x) { memcpy(to, &x, sizeof x); }

// The bfloat16 instructions read denormals as zeros, write none and round to nearest even, whatever the control word.
inline Words flushed(Words x) { return (x & 0x7f800000u) == 0 ? x & 0x80000000u : x; }
inline Words rounded(__m512 x) {  // in the low half of each word
  const Words u = flushed((Words)x);
  return (Words)((Floats)u == (Floats)u ? (u + 0x7fffu + ((u >> 16) & 1u)) >> 16 : (u >> 16) | 0x40u);
}
inline __m256bh cvtneps_pbh(__m512 x) {
  typedef uint16_t Low __attribute__((vector_size(32)));
  return (__m256bh) __builtin_convertvector(rounded(x), Low);
}
inline __m512bh cvtne2ps_pbh(__m512 high, __m512 low) {
  return (__m512bh)inserti64x4(castsi256_si512((__m256i)cvtneps_pbh(low)), (__m256i)cvtneps_pbh(high), 1);
}
inline __m512 dpbf16_ps(__m512 acc, __m512bh a, __m512bh b) {
  const Words x = (Words)a, y = (Words)b;
  const auto add = [&acc](Words left, Words right) {
    const Floats l = (Floats)flushed(left), r = (Floats)flushed(right);
    Floats sum = (Floats)flushed((Words)acc);
    for (int i = 0; i < 16; i++) sum[i] = std::fma(l[i], r[i], sum[i]);
    acc = (__m512)flushed((Words)sum);
  };
  add(x & 0xffff0000u, y & 0xffff0000u);  // the odd element first
  add(x << 16, y << 16);
  return acc;
}

}  // namespace emulated

#define _mm512_mask_loadu_ps emulated::mask_loadu_ps
#define _mm512_mask_storeu_ps emulated::mask_storeu_ps
#define _mm512_set1_epi64 emulated::set1_epi64
#define _mm512_set_epi64 emulated::set_epi64
#define _mm512_mul_epu32 emulated::mul_epu32
#define _mm512_permutex2var_epi64 emulated::permutex2var_epi64
#define _mm512_permutexvar_epi16 emulated::permutexvar_epi16
#define _mm512_castsi256_si512 emulated::castsi256_si512
#define _mm512_inserti64x4 emulated::inserti64x4
#define _mm512_store_si512 emulated::store_si512
#define _mm512_cvtneps_pbh emulated::cvtneps_pbh
#define _mm512_cvtne2ps_pbh emulated::cvtne2ps_pbh
#define _mm512_dpbf16_ps emulated::dpbf16_ps

#define __AVX512F__ 1
#if defined(EMULATED_BF16)
#define __AVX512BF16__ 1
#endif
