// exp of a register: 2^n * p(r) with x = n ln 2 + r, |r| <= ln 2 / 2. Below the smallest normal the result is 0, NaN stays.
#pragma once
#include "simd/vec.h"

namespace {

HHMPN_INLINE Vec<float> exp_of(Vec<float> x) {
  const Vec<float> magic = splat<float>(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer held in the low bits
  const Vec<float> clamped = x > 88.7f ? splat<float>(88.7f) : (x < -88.f ? splat<float>(-88.f) : x);
  const Vec<float> t = clamped * 1.44269504f + magic;
  const Vec<float> n = t - magic;
  Vec<float> r = clamped - n * 0.693359375f;  // ln 2 in two parts, the first exact
  r = r + n * 2.12194440e-4f;
  Vec<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Vec<int32_t> e = (Vec<int32_t>)t - (Vec<int32_t>)magic;
  const Vec<float> scale = (Vec<float>)((e + 127) << 23);
  return x < -87.33f ? Vec<float>{} : p * scale;
}

HHMPN_INLINE Vec<double> exp_of(Vec<double> x) {
  const Vec<double> magic = splat<double>(6755399441055744.0);  // 1.5 * 2^52
  const Vec<double> clamped = x > 709.7 ? splat<double>(709.7) : (x < -709.0 ? splat<double>(-709.0) : x);
  const Vec<double> t = clamped * 1.4426950408889634 + magic;
  const Vec<double> n = t - magic;
  Vec<double> r = clamped - n * 0.6931471803691238;
  r = r - n * 1.9082149292705877e-10;
  Vec<double> p = splat<double>(1.0 / 6227020800.0);
  constexpr double inverse_factorial[] = {
      1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
      1.0 / 120,       1.0 / 24,       1.0 / 6,       0.5,          1.0,         1.0};
#pragma GCC unroll 13
  for (int i = 0; i < 13; i++) p = p * r + inverse_factorial[i];
  const Vec<int64_t> e = (Vec<int64_t>)t - (Vec<int64_t>)magic;
  const Vec<double> scale = (Vec<double>)((e + 1023) << 52);
  return x < -708.3 ? Vec<double>{} : p * scale;
}

}  // namespace
