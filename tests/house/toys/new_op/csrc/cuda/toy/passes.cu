// toy, both passes: y_r = x_r * w   d_x_r = d_y_r * w   d_w = sum_r d_y_r * x_r
//
//   x, y (rows, d), w (d); their gradients likewise. A block a row forward; backward one block, a thread a column, so
//   that d_w is summed in the order of the rows.
#include "base/rows.cuh"
#include "toy/params.h"

namespace hh {
template <class T, int D>
__global__ void __launch_bounds__(kThreads) toy_forward_kernel(const ToyForward p) {
  const int64_t row = int64_t(blockIdx.x) * D;
  const T *x = static_cast<const T*>(p.x) + row, *w = static_cast<const T*>(p.w);
  T* y = static_cast<T*>(p.y) + row;
  for (int c = threadIdx.x; c < D; c += kThreads) y[c] = from_float<T>(to_float(x[c]) * to_float(w[c]));
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads) toy_backward_kernel(const ToyBackward p) {
  const T *x = static_cast<const T*>(p.x), *w = static_cast<const T*>(p.w), *d_y = static_cast<const T*>(p.d_y);
  T *d_x = static_cast<T*>(p.d_x), *d_w = static_cast<T*>(p.d_w);
  for (int c = threadIdx.x; c < D; c += kThreads) {
    float sum = 0.f;
    for (int64_t at = c; at < int64_t(p.rows) * D; at += D) {
      d_x[at] = from_float<T>(to_float(d_y[at]) * to_float(w[c]));
      sum += to_float(d_y[at]) * to_float(x[at]);
    }
    d_w[c] = from_float<T>(sum);
  }
}

template <class T, int D>
int start(Form<T, D>, const ToyForward& p, void* stream) {
  return launch(toy_forward_kernel<T, D>, dim3(p.rows), kThreads, 0, stream, p);
}
template <class T, int D>
int start(Form<T, D>, const ToyBackward& p, void* stream) {
  return launch(toy_backward_kernel<T, D>, dim3(1), kThreads, 0, stream, p);
}
}  // namespace hh

HH_KERNEL(toy_forward, ToyForward)
HH_KERNEL(toy_backward, ToyBackward)
