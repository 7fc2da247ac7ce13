// Philox-4x32-10: the dropout mask of an element from its place alone.
//
//   key = (seed low, seed high)   counter = (column / 4, row, site, step)   kept iff output[column % 4] >= threshold
#pragma once
#include "base/device.cuh"
#include "base/params.h"

namespace hh {
#define HH_DROPOUT(F)                                            \
  F(InOrNull, long long, rng, "2")                               \
  F(Size, unsigned, threshold, "the smallest word that is kept") \
  F(Real, float, scale, "1 / (1 - p)")
HH_RECORD(Dropout, Nothing, HH_DROPOUT)  // rng: [seed, step], null without dropout

// Dropout at one site of the model.
struct SiteDropout : Dropout {
  unsigned site;
};
HH_DEV SiteDropout at_site(const Dropout& d, unsigned site) {
  SiteDropout here;
  static_cast<Dropout&>(here) = d;
  here.site = site;
  return here;
}

struct Words {
  unsigned w[4];
};

HH_DEV Words philox(unsigned c0, unsigned c1, unsigned c2, unsigned c3, unsigned k0, unsigned k1) {
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const unsigned h0 = __umulhi(0xD2511F53u, c0), l0 = 0xD2511F53u * c0;
    const unsigned h1 = __umulhi(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;
    c0 = h1 ^ c1 ^ k0, c1 = l1, c2 = h0 ^ c3 ^ k1, c3 = l0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The factors 0 or 1 / (1 - p) of four neighbouring columns, the first a multiple of 4.
HH_DEV void keep4(const SiteDropout& d, unsigned row, unsigned column, float (&factor)[4]) {
  const unsigned long long seed = d.rng[0];
  const Words x = philox(column >> 2, row, d.site, unsigned(d.rng[1]), unsigned(seed), unsigned(seed >> 32));
#pragma unroll
  for (int i = 0; i < 4; i++) factor[i] = x.w[i] >= d.threshold ? d.scale : 0.f;
}

HH_DEV float keep1(const SiteDropout& d, unsigned row, unsigned column) {
  float factor[4];
  keep4(d, row, column & ~3u, factor);
  const int i = column & 3;
  return i < 2 ? (i == 0 ? factor[0] : factor[1]) : (i == 2 ? factor[2] : factor[3]);
}
}  // namespace hh
