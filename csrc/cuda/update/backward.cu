// update, backward of the rows; weight_gradients/ makes the weights' gradients from what is left here.
//
//   d_tail = D(d_out)     d_h = (d_tail W^b) [h > 0]
//   labels     d_g = d_out + d_h W^r     d_s = d_g W^v               d_u = d_g
//   features   d_s^m = d_out W^v + d_h C_m                           d_v = d_out
//
//   all (rows, d) but d_s, the contexts' gradient, (M, rows, d) for features; d_tail is written under dropout only,
//   else it is d_out
#include "update/shared.cuh"

namespace hh {
template <class T, int D, bool kFeatures>
__global__ void __launch_bounds__(kThreads) update_backward_kernel(const UpdateBackward p) {
  constexpr int kRows = kUpdateRows<T>, kLd = kStride<T, D>;
  extern __shared__ __align__(16) unsigned char smem[];
  auto& s = *reinterpret_cast<UpdateSmem<T, D>*>(smem);
  // Addresses are made where they are used: one that lives through the products costs fp32 at d = 128 a spilled register.
  const int first = blockIdx.x * kRows, count = min(kRows, p.rows - first);

  load_rows<T, D, kRows>(s.x, static_cast<const T*>(p.d_out) + int64_t(first) * D, count);
  s.weights.template fetch<false>(p.output);
  if (p.dropout.rng) {
    cp_async_wait<0>();
    __syncthreads();  // d_out is there
    drop_rows<T, D, kRows>(s.y, s.x, at_site(p.dropout, p.site), first);
  }
  Tile<T, kRows, D> acc;
  acc.zero();
  s.weights.template multiply<false>(acc, p.dropout.rng ? s.y : s.x, p.output);
  s.weights.template fetch<false>(kFeatures ? p.value : p.hidden);
  if (p.dropout.rng) store_rows<T, D>(static_cast<T*>(p.d_tail) + int64_t(first) * D, s.y, count);
  acc.each([&](int r, int c, float& v) {
    if (r < count && to_float(static_cast<const T*>(p.h)[int64_t(first + r) * D + c]) <= 0.f) v = 0.f;
  });
  __syncthreads();      // d_tail has been read
  acc.store(s.y, kLd);  // d_h

  acc.zero();
  if constexpr (kFeatures) {
    s.weights.template multiply<false>(acc, s.x, p.value);
    store_rows<T, D>(static_cast<T*>(p.d_h) + int64_t(first) * D, s.y, count);
    for (int m = 0; m < p.modalities; m++) {
      const T* hidden = static_cast<const T*>(p.hidden) + int64_t(m) * D * D;
      s.weights.template fetch<false>(hidden);
      Tile<T, kRows, D> d_s = acc;
      s.weights.template multiply<false>(d_s, s.y, hidden);
      d_s.store(s.x, kLd);
      __syncthreads();  // d_s is there
      store_rows<T, D>(static_cast<T*>(p.d_context) + (int64_t(m) * p.rows + first) * D, s.x, count);
    }
  } else {
    s.weights.template multiply<false>(acc, s.y, p.hidden);
    s.weights.template fetch<false>(p.value);
    store_rows<T, D>(static_cast<T*>(p.d_h) + int64_t(first) * D, s.y, count);
    acc.each([&](int r, int c, float& v) { v += to_float(s.x[r * kLd + c]); });
    acc.store(s.x, kLd);  // d_g

    acc.zero();
    s.weights.template multiply<false>(acc, s.x, p.value);
    store_rows<T, D>(static_cast<T*>(p.d_g) + int64_t(first) * D, s.x, count);
    acc.store(s.y, kLd);  // d_s
    __syncthreads();      // d_s is there
    store_rows<T, D>(static_cast<T*>(p.d_context) + int64_t(first) * D, s.y, count);
  }
}

template <class T, int D>
int start(Form<T, D>, const UpdateBackward& p, void* stream) {
  const dim3 grid((p.rows + kUpdateRows<T> - 1) / kUpdateRows<T>);
  const size_t smem = sizeof(UpdateSmem<T, D>);
  if (p.modalities) return launch(update_backward_kernel<T, D, true>, grid, kThreads, smem, stream, p);
  return launch(update_backward_kernel<T, D, false>, grid, kThreads, smem, stream, p);
}
}  // namespace hh

HH_KERNEL(update_backward, UpdateBackward)
