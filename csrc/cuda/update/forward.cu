// update, forward.
//
//   labels     g = u + s W^v^T                  out = g + D(relu(g W^r^T + b1) W^b^T + b2)
//   features   r = v + (sum_m s^m) W^v^T        out = r + D(relu(sum_m s^m C_m^T + b1) W^b^T + b2)
//
//   name       shape                        saved for backward
//   u          (rows or rows / M, d)        g     (rows, d)   labels g, features sum_m s^m
//   s          (rows, d), (M, rows, d)      h     (rows, d)   relu(...)
//   W^v W^b    (d, d)                       W^r   (d, d), C (M, d, d)
#include "update/shared.cuh"

namespace hh {
template <class T, int D>
__global__ void __launch_bounds__(kThreads) update_labels_kernel(const UpdateForward p) {
  constexpr int kRows = kUpdateRows<T>, kLd = kStride<T, D>;
  extern __shared__ __align__(16) unsigned char smem[];
  auto& s = *reinterpret_cast<UpdateSmem<T, D>*>(smem);
  const int first = blockIdx.x * kRows, count = min(kRows, p.rows - first);
  const T *b1 = static_cast<const T*>(p.b1), *b2 = static_cast<const T*>(p.b2), *u = static_cast<const T*>(p.state);

  load_rows<T, D, kRows>(s.x, static_cast<const T*>(p.context) + int64_t(first) * D, count);
  for (int i = threadIdx.x; i < kRows * (D / kVec<T>); i += kThreads) {
    const int row = i / (D / kVec<T>), c = i % (D / kVec<T>)*kVec<T>;
    cp_async16(s.y + row * kLd + c, u + int64_t((first + min(row, count - 1)) % p.state_rows) * D + c, row < count);
  }
  s.weights.template fetch<true>(p.value);
  Tile<T, kRows, D> acc;
  acc.zero();
  s.weights.template multiply<true>(acc, s.x, p.value);
  s.weights.template fetch<true>(p.hidden);
  __syncthreads();  // the context has been read
  acc.each([&](int r, int c, float& v) { v += to_float(s.y[r * kLd + c]); });
  acc.store(s.x, kLd);  // g

  acc.zero();
  s.weights.template multiply<true>(acc, s.x, p.hidden);
  s.weights.template fetch<true>(p.output);
  if (p.g) store_rows<T, D>(static_cast<T*>(p.g) + int64_t(first) * D, s.x, count);
  acc.each([&](int, int c, float& v) { v = relu(v + to_float(b1[c])); });
  acc.store(s.y, kLd);  // h

  acc.zero();
  s.weights.template multiply<true>(acc, s.y, p.output);
  if (p.h) store_rows<T, D>(static_cast<T*>(p.h) + int64_t(first) * D, s.y, count);
  acc.each([&](int r, int c, float& v) {
    v += to_float(b2[c]);
    if (p.dropout.rng) v *= keep1(at_site(p.dropout, p.site), first + r, c);
    v += to_float(s.x[r * kLd + c]);
  });
  acc.store(s.x, kLd);
  __syncthreads();  // the new states are there
  store_rows<T, D>(static_cast<T*>(p.out) + int64_t(first) * D, s.x, count);
}

// y = sum_m s^m, summed in fp32, for a tile of rows; rows from `count` on are not touched.
template <class T, int D>
HH_DEV void sum_contexts(T* y, const UpdateForward& p, int first, int count) {
  for (int i = threadIdx.x; i < count * (D / kVec<T>); i += kThreads) {
    const int row = i / (D / kVec<T>), c = i % (D / kVec<T>)*kVec<T>;
    float total[kVec<T>] = {};
    for (int m = 0; m < p.modalities; m++) {
      const T* at = static_cast<const T*>(p.context) + (int64_t(m) * p.rows + first + row) * D + c;
      const uint4 piece = *reinterpret_cast<const uint4*>(at);
#pragma unroll
      for (int j = 0; j < kVec<T>; j++) total[j] += to_float(reinterpret_cast<const T*>(&piece)[j]);
    }
#pragma unroll
    for (int j = 0; j < kVec<T>; j++) y[row * kStride<T, D> + c + j] = from_float<T>(total[j]);
  }
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads) update_features_kernel(const UpdateForward p) {
  constexpr int kRows = kUpdateRows<T>, kLd = kStride<T, D>;
  extern __shared__ __align__(16) unsigned char smem[];
  auto& s = *reinterpret_cast<UpdateSmem<T, D>*>(smem);
  const int first = blockIdx.x * kRows, count = min(kRows, p.rows - first);
  const T *b1 = static_cast<const T*>(p.b1), *b2 = static_cast<const T*>(p.b2), *c0 = static_cast<const T*>(p.hidden);

  s.weights.template fetch<true>(c0);
  Tile<T, kRows, D> acc;
  acc.zero();
  for (int m = 0; m < p.modalities; m++) {
    __syncthreads();  // the context before has been read
    load_rows<T, D, kRows>(s.x, static_cast<const T*>(p.context) + (int64_t(m) * p.rows + first) * D, count);
    cp_async_commit();
    s.weights.template multiply<true>(acc, s.x, c0 + int64_t(m) * D * D);
    if (m + 1 < p.modalities) s.weights.template fetch<true>(c0 + int64_t(m + 1) * D * D);
  }
  s.weights.template fetch<true>(p.output);
  acc.each([&](int, int c, float& v) { v = relu(v + to_float(b1[c])); });
  acc.store(s.y, kLd);  // h

  acc.zero();
  s.weights.template multiply<true>(acc, s.y, p.output);
  s.weights.template fetch<true>(p.value);
  if (p.h) store_rows<T, D>(static_cast<T*>(p.h) + int64_t(first) * D, s.y, count);
  acc.each([&](int r, int c, float& v) {
    v += to_float(b2[c]);
    if (p.dropout.rng) v *= keep1(at_site(p.dropout, p.site), first + r, c);
  });
  sum_contexts<T, D>(s.x, p, first, count);
  s.weights.template multiply<true>(acc, s.x, p.value);
  if (p.g) store_rows<T, D>(static_cast<T*>(p.g) + int64_t(first) * D, s.x, count);
  load_rows<T, D, kRows>(s.y, static_cast<const T*>(p.state) + int64_t(first) * D, count);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();  // the nodes are there, the sums have been read
  acc.each([&](int r, int c, float& v) { v += to_float(s.y[r * kLd + c]); });
  acc.store(s.x, kLd);
  __syncthreads();  // the new states are there
  store_rows<T, D>(static_cast<T*>(p.out) + int64_t(first) * D, s.x, count);
}

template <class T, int D>
int start(Form<T, D>, const UpdateForward& p, void* stream) {
  const dim3 grid((p.rows + kUpdateRows<T> - 1) / kUpdateRows<T>);
  const size_t smem = sizeof(UpdateSmem<T, D>);
  if (p.modalities) return launch(update_features_kernel<T, D>, grid, kThreads, smem, stream, p);
  return launch(update_labels_kernel<T, D>, grid, kThreads, smem, stream, p);
}
}  // namespace hh

HH_KERNEL(update_forward, UpdateForward)
