// Weight gradients of several layers in one launch, without atomics: dW = dY^T X, db = sum_r dY_r.
//
//   name                  shape                       block: a 64 x 64 tile of one job's dW over one split of its rows
//   d_out dY, inputs X    (rows_j, d)  T              job j
//   parts, bias_parts     (splits, jobs, d, d) fp32   summed by a second kernel in the order of the splits; (.., d)
//   d_weight dW           (d, d)  fp32                of each job
//   d_bias db             (d,)  fp32                  of each job
#include "base/rows.cuh"
#include "weight_gradients/params.h"

namespace hh {
constexpr int kEdge = 64, kSlice = 32;

template <class T>
struct GradientSmem {
  T d_out[2][kSlice * kStride<T, kEdge>], inputs[2][kSlice * kStride<T, kEdge>];
};

template <class T, int D>
__global__ void __launch_bounds__(kThreads) weight_gradient_kernel(const WeightGradients p) {
  extern __shared__ __align__(16) unsigned char smem[];
  auto& s = *reinterpret_cast<GradientSmem<T>*>(smem);
  const int i0 = blockIdx.x / (D / kEdge) * kEdge, j0 = blockIdx.x % (D / kEdge) * kEdge;
  const int split = blockIdx.y, job = blockIdx.z, rows = p.rows.at[job];
  const int share = (rows + p.splits * kSlice - 1) / (p.splits * kSlice) * kSlice;
  const int from = min(split * share, rows), to = min(from + share, rows);
  const T *d_out = static_cast<const T*>(p.d_out.at[job]) + i0, *inputs = static_cast<const T*>(p.inputs.at[job]) + j0;
  auto fetch = [&](int r, int stage) {
    load_rows<T, kEdge, kSlice>(s.d_out[stage], d_out + int64_t(r) * D, to - r, D);
    load_rows<T, kEdge, kSlice>(s.inputs[stage], inputs + int64_t(r) * D, to - r, D);
    cp_async_commit();
  };
  Tile<T, kEdge, kEdge> acc;
  acc.zero();
  float bias = 0.f;
  if (from < to) fetch(from, 0);
  for (int r = from, stage = 0; r < to; r += kSlice, stage ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // this slice is there, the other stage has been read
    if (r + kSlice < to) fetch(r + kSlice, stage ^ 1);
    acc.template mac<kSlice, true, false>(s.d_out[stage], kStride<T, kEdge>, s.inputs[stage], kStride<T, kEdge>);
    if (j0 == 0 && threadIdx.x < kEdge)
      for (int k = 0; k < kSlice; k++) bias += to_float(s.d_out[stage][k * kStride<T, kEdge> + threadIdx.x]);
  }
  const int64_t part = int64_t(split) * p.rows.count + job;
  acc.each([&](int r, int c, float& v) { p.parts[(part * D + i0 + r) * D + j0 + c] = v; });
  if (j0 == 0 && threadIdx.x < kEdge) p.bias_parts[part * D + i0 + threadIdx.x] = bias;
}

// The splits' parts summed in their order: dW's elements, then db's.
template <class T, int D>
__global__ void __launch_bounds__(kThreads) sum_parts_kernel(const WeightGradients p) {
  const int64_t weights = int64_t(p.rows.count) * D * D, biases = int64_t(p.rows.count) * D;
  int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= weights + biases) return;
  const bool bias = i >= weights;
  if (bias) i -= weights;
  float total = 0.f;
  for (int s = 0; s < p.splits; s++) total += bias ? p.bias_parts[s * biases + i] : p.parts[s * weights + i];
  const int64_t size = bias ? D : D * D;  // of a job
  (bias ? p.d_bias : p.d_weight).at[i / size][i % size] = total;
}

template <class T, int D>
int start(Form<T, D>, const WeightGradients& p, void* stream) {
  const dim3 tiles((D / kEdge) * (D / kEdge), p.splits, p.rows.count),
      sums((p.rows.count * D * (D + 1) + kThreads - 1) / kThreads);
  const int e = launch(weight_gradient_kernel<T, D>, tiles, kThreads, sizeof(GradientSmem<T>), stream, p);
  return e ? e : launch(sum_parts_kernel<T, D>, sums, kThreads, 0, stream, p);
}
}  // namespace hh

HH_KERNEL(weight_gradients, WeightGradients)
