// toy: y_r = x_r * w   d_x_r = d_y_r * w   d_w = sum_r d_y_r * x_r      x, y (rows, d)   w (d)
#pragma once
#include "base/unit.h"

namespace hhmpn {

template <class T>
struct ToyArgs {
  int64_t rows, dim;
  const T *x, *w;
  T* y;
  const T* d_y;  // backward
  T* d_x;
};

template <class T>
struct ToyKernels {
  void (*forward)(const ToyArgs<T>& args, int64_t row);
  void (*backward)(const ToyArgs<T>& args, int64_t row, Acc<T>* d_w);  // d_w (d) += the row's
};

constexpr int64_t kToyRows = 64;  // rows whose d_w one task sums

}  // namespace hhmpn

HHMPN_DECLARE_UNITS(toy, ToyKernels)
