// Weight gradients of several layers in one launch, without atomics: dW = dY^T X, db = sum_r dY_r.
//
//   name     shape                       block: a 64 x 64 tile of one job's dW over one split of its rows
//   dY, X    (rows_j, d)  T              job j
//   parts    (splits, jobs, d, d) fp32   summed by a second kernel in the order of the splits
//   dW, db   (jobs, d, d), (jobs, d)  T
#include "api.h"
#include "rows.cuh"

namespace hh {
constexpr int kMaxJobs = 48, kEdge = 64, kSlice = 32;

struct Jobs {
  const void *dy[kMaxJobs], *x[kMaxJobs];
  int rows[kMaxJobs];
  int count, splits;
  float *parts, *bias_parts;
  void *dw, *db;
};

template <class T>
struct GradientSmem {
  T dy[2][kSlice * kStride<T, kEdge>], x[2][kSlice * kStride<T, kEdge>];
};

template <class T, int D>
__global__ void __launch_bounds__(kThreads) weight_gradient_kernel(const Jobs p) {
  extern __shared__ __align__(16) unsigned char smem[];
  auto& s = *reinterpret_cast<GradientSmem<T>*>(smem);
  const int i0 = blockIdx.x / (D / kEdge) * kEdge, j0 = blockIdx.x % (D / kEdge) * kEdge;
  const int split = blockIdx.y, job = blockIdx.z, rows = p.rows[job];
  const int share = (rows + p.splits * kSlice - 1) / (p.splits * kSlice) * kSlice;
  const int from = min(split * share, rows), to = min(from + share, rows);
  const T *dy = static_cast<const T*>(p.dy[job]) + i0, *x = static_cast<const T*>(p.x[job]) + j0;
  auto fetch = [&](int r, int stage) {
    load_rows<T, kEdge, kSlice>(s.dy[stage], dy + int64_t(r) * D, to - r, D);
    load_rows<T, kEdge, kSlice>(s.x[stage], x + int64_t(r) * D, to - r, D);
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
    acc.template mac<kSlice, true, false>(s.dy[stage], kStride<T, kEdge>, s.x[stage], kStride<T, kEdge>);
    if (j0 == 0 && threadIdx.x < kEdge)
      for (int k = 0; k < kSlice; k++) bias += to_float(s.dy[stage][k * kStride<T, kEdge> + threadIdx.x]);
  }
  const int64_t part = int64_t(split) * p.count + job;
  acc.each([&](int r, int c, float& v) { p.parts[(part * D + i0 + r) * D + j0 + c] = v; });
  if (j0 == 0 && threadIdx.x < kEdge) p.bias_parts[part * D + i0 + threadIdx.x] = bias;
}

// The splits' parts summed in their order: dW's elements, then db's.
template <class T, int D>
__global__ void __launch_bounds__(kThreads) sum_parts_kernel(const Jobs p) {
  const int64_t weights = int64_t(p.count) * D * D, biases = int64_t(p.count) * D;
  int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= weights + biases) return;
  const bool bias = i >= weights;
  if (bias) i -= weights;
  float total = 0.f;
  for (int s = 0; s < p.splits; s++) total += bias ? p.bias_parts[s * biases + i] : p.parts[s * weights + i];
  static_cast<T*>(bias ? p.db : p.dw)[i] = from_float<T>(total);
}

struct WeightGradients {
  template <class T, int D>
  static int run(const Jobs& p, void* stream) {
    const dim3 tiles((D / kEdge) * (D / kEdge), p.splits, p.count),
        sums((p.count * D * (D + 1) + kThreads - 1) / kThreads);
    const int e = launch(weight_gradient_kernel<T, D>, tiles, kThreads, sizeof(GradientSmem<T>), stream, p);
    return e ? e : launch(sum_parts_kernel<T, D>, sums, kThreads, 0, stream, p);
  }
};
}  // namespace hh

int hh_weight_gradients(void* const* t, const long long* n, const double*, void* stream) {
  hh::Jobs p{};
  p.splits = int(n[2]), p.count = int(n[3]);
  if (p.count > hh::kMaxJobs) return hh::kUnsupported;
  for (int j = 0; j < p.count; j++) p.dy[j] = t[2 * j], p.x[j] = t[2 * j + 1], p.rows[j] = int(n[4 + j]);
  void* const* out = t + 2 * p.count;
  p.dw = out[0], p.db = out[1], p.parts = static_cast<float*>(out[2]), p.bias_parts = static_cast<float*>(out[3]);
  return hh::dispatch<hh::WeightGradients>(n, p, stream);
}
