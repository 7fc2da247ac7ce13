// update, backward of the rows; weight_gradients.cu makes the weights' gradients from what is left here.
//
//   dz = D(dy)     dh = (dz W^b) [h > 0]
//   labels     dg = dy + dh W^r     ds = dg W^v                 du = dg
//   features   ds^m = dy W^v + dh C_m                           dv = dy
//
//   all (rows, d) but ds (M, rows, d) for features; dz is written under dropout only, else it is dy
#include "api.h"
#include "update.cuh"

namespace hh {
template <class T, int D, bool kFeatures>
__global__ void __launch_bounds__(kThreads) update_backward_kernel(const Update p) {
  constexpr int kRows = kUpdateRows<T>, kLd = kStride<T, D>;
  extern __shared__ __align__(16) unsigned char smem[];
  auto& s = *reinterpret_cast<UpdateSmem<T, D>*>(smem);
  const int first = blockIdx.x * kRows, count = min(kRows, p.rows - first);
  const int64_t at = int64_t(first) * D;
  const T *h = static_cast<const T*>(p.h) + at, *wr = static_cast<const T*>(p.wr);

  load_rows<T, D, kRows>(s.x, static_cast<const T*>(p.dy) + at, count);
  s.weights.template fetch<false>(p.wb);
  if (p.dropout.rng) {
    cp_async_wait<0>();
    __syncthreads();  // dy is there
    drop_rows<T, D, kRows>(s.y, s.x, p.dropout, first);
  }
  Tile<T, kRows, D> acc;
  acc.zero();
  s.weights.template multiply<false>(acc, p.dropout.rng ? s.y : s.x, p.wb);
  s.weights.template fetch<false>(kFeatures ? p.wv : p.wr);
  if (p.dropout.rng) store_rows<T, D>(static_cast<T*>(p.dz) + at, s.y, count);
  acc.each([&](int r, int c, float& v) {
    if (r < count && to_float(h[int64_t(r) * D + c]) <= 0.f) v = 0.f;
  });
  __syncthreads();      // dz has been read
  acc.store(s.y, kLd);  // dh

  acc.zero();
  if constexpr (kFeatures) {
    s.weights.template multiply<false>(acc, s.x, p.wv);
    store_rows<T, D>(static_cast<T*>(p.dh) + at, s.y, count);
    for (int m = 0; m < p.modalities; m++) {
      s.weights.template fetch<false>(wr + int64_t(m) * D * D);
      Tile<T, kRows, D> ds = acc;
      s.weights.template multiply<false>(ds, s.y, wr + int64_t(m) * D * D);
      ds.store(s.x, kLd);
      __syncthreads();  // ds is there
      store_rows<T, D>(static_cast<T*>(p.ds) + (int64_t(m) * p.rows + first) * D, s.x, count);
    }
  } else {
    s.weights.template multiply<false>(acc, s.y, p.wr);
    s.weights.template fetch<false>(p.wv);
    store_rows<T, D>(static_cast<T*>(p.dh) + at, s.y, count);
    acc.each([&](int r, int c, float& v) { v += to_float(s.x[r * kLd + c]); });
    acc.store(s.x, kLd);  // dg

    acc.zero();
    s.weights.template multiply<false>(acc, s.x, p.wv);
    store_rows<T, D>(static_cast<T*>(p.dg) + at, s.x, count);
    acc.store(s.y, kLd);  // ds
    __syncthreads();      // ds is there
    store_rows<T, D>(static_cast<T*>(p.ds) + at, s.y, count);
  }
}

struct UpdateBackward {
  template <class T, int D>
  static int run(const Update& p, void* stream) {
    const dim3 grid((p.rows + kUpdateRows<T> - 1) / kUpdateRows<T>);
    const size_t smem = sizeof(UpdateSmem<T, D>);
    if (p.modalities) return launch(update_backward_kernel<T, D, true>, grid, kThreads, smem, stream, p);
    return launch(update_backward_kernel<T, D, false>, grid, kThreads, smem, stream, p);
  }
};
}  // namespace hh

int hh_update_backward(void* const* t, const long long* n, const double* f, void* stream) {
  hh::Update p{};
  p.dy = t[0], p.h = t[1], p.wv = t[2], p.wr = t[3], p.wb = t[4];
  p.dropout = {static_cast<const long long*>(t[5]), unsigned(n[5]), unsigned(n[6]), float(f[0])};
  p.rows = int(n[2]), p.u_rows = int(n[3]), p.modalities = int(n[4]);
  p.dz = t[6], p.dh = t[7], p.dg = t[8], p.ds = t[9];
  return hh::dispatch<hh::UpdateBackward>(n, p, stream);
}
