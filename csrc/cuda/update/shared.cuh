// What the update kernels share: a block holds kUpdateRows<T> rows of states and streams the weights past them.
#pragma once
#include "base/weights.cuh"
#include "update/params.h"

namespace hh {
template <class T>
constexpr int kUpdateRows = sizeof(T) == 2 ? 64 : 32;

template <class T, int D>
struct UpdateSmem {
  T x[kUpdateRows<T> * kStride<T, D>], y[kUpdateRows<T> * kStride<T, D>];
  WeightStages<T, D, 32> weights;
};

// y = D(x) for a tile of rows, `first` the packed row of the first one.
template <class T, int D, int kRows>
HH_DEV void drop_rows(T* y, const T* x, const SiteDropout& d, int first) {
  for (int i = threadIdx.x; i < kRows * (D / 4); i += kThreads) {
    const int row = i / (D / 4), c = i % (D / 4) * 4;
    float keep[4];
    keep4(d, first + row, c, keep);
#pragma unroll
    for (int j = 0; j < 4; j++)
      y[row * kStride<T, D> + c + j] = from_float<T>(to_float(x[row * kStride<T, D> + c + j]) * keep[j]);
  }
}
}  // namespace hh
