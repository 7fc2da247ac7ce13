// Every instruction of avx512.h once on the bytes of standard input, results to standard output. Compiled with the
// header it is the emulation, with AVX-512's own flags the processor: the same bytes.
#include <immintrin.h>

#include <cstdio>
#include <vector>

template <class V>
void put(const V& value) {
  fwrite(&value, sizeof value, 1, stdout);
}

int main() {
  __m512i in[3];
  while (fread(in, sizeof in, 1, stdin) == 1) {
    const __m512 a = (__m512)in[0], b = (__m512)in[1], c = (__m512)in[2];
    std::vector<float> row(16, -1.0f);
    _mm512_mask_storeu_ps(row.data(), 0x00ffu, a);
    put(_mm512_mask_loadu_ps(b, 0x0fffu, row.data()));
    put(_mm512_mul_epu32(in[0], _mm512_set1_epi64(0xD2511F53)));
    put(_mm512_permutex2var_epi64(in[0], _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0), in[1]));
    put(_mm512_permutexvar_epi16(in[0], in[1]));
    __m256i half;
    __builtin_memcpy(&half, &in[1], sizeof half);
    alignas(64) __m512i joined;
    _mm512_store_si512(&joined, _mm512_inserti64x4(_mm512_castsi256_si512(half), half, 1));
    put(joined);
    put(_mm512_cvtneps_pbh(a));
    put(_mm512_cvtne2ps_pbh(a, b));
    put(_mm512_dpbf16_ps(c, (__m512bh)in[0], (__m512bh)in[1]));
  }
}
