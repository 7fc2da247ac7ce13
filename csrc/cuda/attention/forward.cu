// attention, forward: s[g, r] = sum_j D(a_rj) x_j,  a_rj = softmax_j(q_r . x_j),  j over key segment g * S + (i mod S).
//
//   name      shape      dtype       block (tile of 32 rows of a query segment, group g)
//   q         (R, d)     T           32 rows, loaded once
//   x         (N, d)     T           tiles of 32 rows, each loaded once as key and value
//   context   (G, R, d)  T           lse  (G, R)  fp32
#include "attention/params.h"
#include "base/softmax.cuh"

namespace hh {
template <class T, int D>
struct ForwardSmem {
  T q[kQ * kStride<T, D>], x[2][kK * kStride<T, D>], probs[kQ * kStride<T, kK>];
  float scores[kQ * kScores], factor[kQ];
  int segment;
};

template <class T, int D>
__global__ void __launch_bounds__(kThreads) attention_forward_kernel(const AttentionForward p) {
  extern __shared__ __align__(16) unsigned char smem[];
  auto& s = *reinterpret_cast<ForwardSmem<T, D>*>(smem);
  const Span q = find_span<kQ>(p.q_offsets, p.q_segments, p.rows, blockIdx.x, &s.segment);
  if (q.count <= 0) return;
  const int samples = p.x_segments / p.groups, group = blockIdx.y, source = group * samples + q.segment % samples;
  const int begin = p.x_offsets[source], keys = q.segment < p.q_segments ? p.x_offsets[source + 1] - begin : 0;
  const T* x = static_cast<const T*>(p.x) + int64_t(begin) * D;
  const int row = owned_row(), column = owned_column(), place = q.first - q.begin + row;

  if (keys > 0) {
    load_rows<T, D, kQ>(s.q, static_cast<const T*>(p.q) + int64_t(q.first) * D, q.count);
    load_rows<T, D, kK>(s.x[0], x, keys);
  }
  cp_async_commit();
  Tile<T, kQ, D> out;
  out.zero();
  RowSoftmax softmax;
  for (int k0 = 0, stage = 0; k0 < keys; k0 += kK, stage ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // this tile is there, the other stage has been read
    if (k0 + kK < keys) load_rows<T, D, kK>(s.x[stage ^ 1], x + int64_t(k0 + kK) * D, keys - k0 - kK);
    cp_async_commit();

    Tile<T, kQ, kK> score;
    score.zero();
    score.template mac<D, false, true>(s.q, kStride<T, D>, s.x[stage], kStride<T, D>);
    score.each([&](int r, int c, float& v) { s.scores[r * kScores + c] = v; });
    __syncthreads();  // scores are there

    float a[4];
    load4(a, s.scores + row * kScores + column);
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (row >= q.count || !may_read(p, q.segment, place, source, k0 + column + i, keys)) a[i] = -INFINITY;
    const float factor = softmax.add(a);
    if (column == 0) s.factor[row] = factor;
    if (p.dropout.rng) {
      float keep[4];
      keep4(at_site(p.dropout, p.site + group), q.begin + place, k0 + column, keep);
#pragma unroll
      for (int i = 0; i < 4; i++) a[i] *= keep[i];
    }
    store4(s.probs + row * kStride<T, kK> + column, a);
    __syncthreads();  // probs are there
    out.each([&](int r, int, float& v) { v *= s.factor[r]; });
    out.template mac<kK, false, false>(s.probs, kStride<T, kK>, s.x[stage], kStride<T, D>);
  }
  __syncthreads();  // the queries and factors have been read
  if (column == 0) {
    s.factor[row] = softmax.inverse();
    if (row < q.count) p.lse[int64_t(group) * p.rows + q.first + row] = softmax.lse();
  }
  __syncthreads();  // the rows' inverse sums are there
  out.each([&](int r, int, float& v) { v *= s.factor[r]; });
  out.store(s.q, kStride<T, D>);
  __syncthreads();  // the context is there
  store_rows<T, D>(static_cast<T*>(p.context) + (int64_t(group) * p.rows + q.first) * D, s.q, q.count);
}

template <class T, int D>
int start(Form<T, D>, const AttentionForward& p, void* stream) {
  const dim3 grid(span_tiles(p.rows, p.q_segments, kQ), p.groups);
  return launch(attention_forward_kernel<T, D>, grid, kThreads, sizeof(ForwardSmem<T, D>), stream, p);
}
}  // namespace hh

HH_KERNEL(attention_forward, AttentionForward)
