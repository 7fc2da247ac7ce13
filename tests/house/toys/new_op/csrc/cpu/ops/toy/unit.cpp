// Per-ISA side of kernels.h: one row at a time.
#include "ops/toy/kernels.h"

#include "simd/rows.h"

namespace {

using hhmpn::ToyArgs;

template <class T>
void toy_forward(const ToyArgs<T>& a, int64_t r) {
  over_lanes<T>(a.dim, [&](int64_t j, int64_t n) {
    store_n(a.y + r * a.dim + j, load_n(a.x + r * a.dim + j, n) * load_n(a.w + j, n), n);
  });
}

template <class T>
void toy_backward(const ToyArgs<T>& a, int64_t r, Acc<T>* d_w) {
  over_lanes<T>(a.dim, [&](int64_t j, int64_t n) {
    const Vec<Acc<T>> d_y = load_n(a.d_y + r * a.dim + j, n);
    store_n(a.d_x + r * a.dim + j, d_y * load_n(a.w + j, n), n);
    store_n(d_w + j, load_n(d_w + j, n) + d_y * load_n(a.x + r * a.dim + j, n), n);
  });
}

template <class T>
constexpr hhmpn::ToyKernels<T> make_kernels() {
  return {toy_forward<T>, toy_backward<T>};
}

}  // namespace

HHMPN_EXPORT_UNIT(toy, ToyKernels, make_kernels)
