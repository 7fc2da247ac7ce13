// A d x d weight streamed through shared memory in slices of K, two stages: C (M x d) += A W^T (as a layer reads it) or
// A W (as its gradient does), A in shared memory.
//
//   product   slice of W       in shared memory      kTransB
//   A W^T     all d rows, KC   d x stride(KC)        true
//   A W       KC rows, all d   KC x stride(d)        false
#pragma once
#include "base/rows.cuh"

namespace hh {
template <class T, int D, int KC>
struct WeightStages {
  static constexpr int kTall = D * kStride<T, KC>, kWide = KC * kStride<T, D>;
  T stage[2][kTall > kWide ? kTall : kWide];

  template <bool kTransB>
  HH_DEV void fetch_slice(const T* w, int slice) {
    if constexpr (kTransB) load_rows<T, KC, D>(stage[slice % 2], w + slice * KC, D, D);
    else load_rows<T, D, KC>(stage[slice % 2], w + int64_t(slice) * KC * D, KC);
    cp_async_commit();
  }

  // Starts W's first slice. Every product has an even number of slices, so its stage is free once the product before is
  // through.
  template <bool kTransB>
  HH_DEV void fetch(const void* w) {
    static_assert(D / KC % 2 == 0);
    fetch_slice<kTransB>(static_cast<const T*>(w), 0);
  }

  // C += A W^T or A W; W was fetched. All writes to A before the call are seen; A may be written after the next
  // barrier.
  template <bool kTransB, int M>
  HH_DEV void multiply(Tile<T, M, D>& c, const T* a, const void* w, int rows = kAllRows) {
    constexpr int kPitch = kTransB ? kStride<T, KC> : kStride<T, D>;
#pragma unroll 1
    for (int slice = 0; slice < D / KC; slice++) {
      cp_async_wait<0>();
      __syncthreads();  // this slice is there, the other stage has been read
      if (slice + 1 < D / KC) fetch_slice<kTransB>(static_cast<const T*>(w), slice + 1);
      c.template mac<KC, false, kTransB>(a + slice * KC, kStride<T, D>, stage[slice % 2], kPitch, rows);
    }
  }
};

// max(x, 0) that hands NaN on.
HH_DEV float relu(float x) { return x < 0.f ? 0.f : x; }
}  // namespace hh
