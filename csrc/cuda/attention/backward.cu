// attention, backward, from context and row log-sum-exp; probs a_rj = exp(q_r . x_j - lse_r) are computed again.
//
//   dP_rj   = D(dO_r . x_j)                      D: elements kept by dropout, scaled
//   delta_r = sum_j a_rj dP_rj - dlse_r          (G, R), written by the first kernel for the second
//   dS_rj   = a_rj (dP_rj - delta_r)
//   dq_r    = sum_gj dS_rj x_j                   one block: 32 query rows, all groups
//   dx_j    = sum_r dS_rj q_r + D(a_rj) dO_r     one block: 32 keys, every query row that reads them
//
// The first kernel begins with delta_r = dO_r . O_r - dlse_r, which is the same sum in another order. Where one key has
// all the weight its rounding would be all of dS; so what sum_j dS_rj misses of dlse_r is taken off at the end, from
// delta_r and, times sum_j a_rj x_j, from dq_r. With dropout the latter sum is (1 - rate) O_r where one key has the
// weight, and elsewhere what is missed is no more than a rounding of dP.
#include "attention/params.h"
#include "base/softmax.cuh"

namespace hh {
template <class T, int D>
struct QuerySmem {
  T q[kQ * kStride<T, D>], d_context[kQ * kStride<T, D>], x[2][kK * kStride<T, D>], d_score[kQ * kStride<T, kK>];
  float scores[kQ * kScores], d_probs[kQ * kScores], missed[kQ];
  int segment;
};

// Of four owned elements: probs a and score gradients ds, from scores s and the probs' gradients dp; -inf lse: nothing
// was read.
HH_DEV void gradient4(const bool (&read)[4], float lse, float delta, const float (&keep)[4], float (&s)[4],
                      float (&dp)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    s[i] = read[i] && lse != -INFINITY ? expf(s[i] - lse) : 0.f;
    dp[i] = read[i] && lse != -INFINITY ? s[i] * (dp[i] * keep[i] - delta) : 0.f;
    s[i] *= keep[i];
  }
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads, 2) attention_backward_q_kernel(const AttentionBackward p) {
  extern __shared__ __align__(16) unsigned char smem[];
  auto& s = *reinterpret_cast<QuerySmem<T, D>*>(smem);
  const Span q = find_span<kQ>(p.q_offsets, p.q_segments, p.rows, blockIdx.x, &s.segment);
  if (q.count <= 0) return;
  const int samples = p.x_segments / p.groups, row = owned_row(), column = owned_column(),
            place = q.first - q.begin + row;
  load_rows<T, D, kQ>(s.q, static_cast<const T*>(p.q) + int64_t(q.first) * D, q.count);
  cp_async_commit();
  Tile<T, kQ, D> d_q;
  d_q.zero();
  for (int group = 0; group < p.groups; group++) {
    const int source = group * samples + q.segment % samples, begin = p.x_offsets[source];
    const int keys = q.segment < p.q_segments ? p.x_offsets[source + 1] - begin : 0;
    const int64_t first = int64_t(group) * p.rows + q.first;
    const T *x = static_cast<const T*>(p.x) + int64_t(begin) * D,
            *grad = static_cast<const T*>(p.d_context) + first * D;
    if (keys == 0) continue;
    const T* context = static_cast<const T*>(p.context) + first * D;
    const int last = min(row, q.count - 1);
    const float lse = row < q.count ? p.lse[first + row] : -INFINITY;
    float delta = row_dot<T, D>(grad + last * D, context + last * D), missed = 0.f;
    if (p.d_lse) delta -= p.d_lse[first + last];
    __syncthreads();  // the group before has read its tiles
    load_rows<T, D, kQ>(s.d_context, grad, q.count);
    load_rows<T, D, kK>(s.x[0], x, keys);
    cp_async_commit();
    for (int k0 = 0, stage = 0; k0 < keys; k0 += kK, stage ^= 1) {
      cp_async_wait<0>();
      __syncthreads();  // this tile is there, the other stage has been read
      if (k0 + kK < keys) load_rows<T, D, kK>(s.x[stage ^ 1], x + int64_t(k0 + kK) * D, keys - k0 - kK);
      cp_async_commit();
      Tile<T, kQ, kK> score, d_prob;
      score.zero(), d_prob.zero();
      score.template mac<D, false, true>(s.q, kStride<T, D>, s.x[stage], kStride<T, D>);
      d_prob.template mac<D, false, true>(s.d_context, kStride<T, D>, s.x[stage], kStride<T, D>);
      score.each([&](int r, int c, float& v) { s.scores[r * kScores + c] = v; });
      d_prob.each([&](int r, int c, float& v) { s.d_probs[r * kScores + c] = v; });
      __syncthreads();  // scores are there
      float a[4], ds[4], keep[4] = {1.f, 1.f, 1.f, 1.f};
      bool read[4];
      load4(a, s.scores + row * kScores + column);
      load4(ds, s.d_probs + row * kScores + column);
      if (p.dropout.rng) keep4(at_site(p.dropout, p.site + group), q.begin + place, k0 + column, keep);
#pragma unroll
      for (int i = 0; i < 4; i++)
        read[i] = row < q.count && may_read(p, q.segment, place, source, k0 + column + i, keys);
      gradient4(read, lse, delta, keep, a, ds);
      missed += ds[0] + ds[1] + ds[2] + ds[3];
      store4(s.d_score + row * kStride<T, kK> + column, ds);
      __syncthreads();  // score gradients are there
      d_q.template mac<kK, false, false>(s.d_score, kStride<T, kK>, s.x[stage], kStride<T, D>);
    }
    missed = row_sum(missed);
    if (p.d_lse && lse != -INFINITY) missed -= p.d_lse[first + row];
    if (column == 0) {
      if (row < q.count) p.delta[first + row] = delta + missed;
      s.missed[row] = missed / p.dropout.scale;
    }
    __syncthreads();  // what the rows missed is there
    d_q.each([&](int r, int c, float& v) { v -= s.missed[r] * to_float(context[min(r, q.count - 1) * D + c]); });
  }
  cp_async_wait<0>();
  __syncthreads();  // the queries are there, and were read
  d_q.store(s.q, kStride<T, D>);
  __syncthreads();  // d_q is there
  store_rows<T, D>(static_cast<T*>(p.d_q) + int64_t(q.first) * D, s.q, q.count);
}

template <class T, int D>
struct KeySmem {
  T x[kK * kStride<T, D>], q[kQ * kStride<T, D>], d_context[kQ * kStride<T, D>];
  T probs[kQ * kStride<T, kK>], d_score[kQ * kStride<T, kK>];
  float scores[kQ * kScores], d_probs[kQ * kScores];
  int segment;
};

template <class T, int D>
__global__ void __launch_bounds__(kThreads, 2) attention_backward_x_kernel(const AttentionBackward p) {
  extern __shared__ __align__(16) unsigned char smem[];
  auto& s = *reinterpret_cast<KeySmem<T, D>*>(smem);
  const Span x = find_span<kK>(p.x_offsets, p.x_segments, p.nodes, blockIdx.x, &s.segment);
  if (x.count <= 0) return;
  const int samples = p.x_segments / p.groups, group = x.segment / samples, row = owned_row(), column = owned_column();
  const int first_key = x.first - x.begin, keys = first_key + x.count;
  load_rows<T, D, kK>(s.x, static_cast<const T*>(p.x) + int64_t(x.first) * D, x.count);
  cp_async_commit();
  Tile<T, kK, D> d_x;
  d_x.zero();
  // Nobody reads the nodes behind the last segment.
  const int reader = x.segment < p.x_segments ? x.segment % samples : p.q_segments;
  for (int segment = reader; segment < p.q_segments; segment += samples) {
    const int begin = p.q_offsets[segment], rows = p.q_offsets[segment + 1] - begin;
    for (int r0 = 0; r0 < rows; r0 += kQ) {
      const int64_t first = int64_t(group) * p.rows + begin + r0;
      __syncthreads();  // the tile before has been read
      load_rows<T, D, kQ>(s.q, static_cast<const T*>(p.q) + int64_t(begin + r0) * D, rows - r0);
      load_rows<T, D, kQ>(s.d_context, static_cast<const T*>(p.d_context) + first * D, rows - r0);
      cp_async_commit();
      float lse = -INFINITY, delta = 0.f;
      if (r0 + row < rows) lse = p.lse[first + row], delta = p.delta[first + row];
      cp_async_wait<0>();
      __syncthreads();  // this tile is there
      Tile<T, kQ, kK> score, d_prob;
      score.zero(), d_prob.zero();
      score.template mac<D, false, true>(s.q, kStride<T, D>, s.x, kStride<T, D>);
      d_prob.template mac<D, false, true>(s.d_context, kStride<T, D>, s.x, kStride<T, D>);
      score.each([&](int r, int c, float& v) { s.scores[r * kScores + c] = v; });
      d_prob.each([&](int r, int c, float& v) { s.d_probs[r * kScores + c] = v; });
      __syncthreads();  // scores are there
      float a[4], ds[4], keep[4] = {1.f, 1.f, 1.f, 1.f};
      bool read[4];
      load4(a, s.scores + row * kScores + column);
      load4(ds, s.d_probs + row * kScores + column);
      if (p.dropout.rng) keep4(at_site(p.dropout, p.site + group), begin + r0 + row, first_key + column, keep);
#pragma unroll
      for (int i = 0; i < 4; i++)
        read[i] = r0 + row < rows && may_read(p, segment, r0 + row, x.segment, first_key + column + i, keys);
      gradient4(read, lse, delta, keep, a, ds);
      store4(s.probs + row * kStride<T, kK> + column, a);
      store4(s.d_score + row * kStride<T, kK> + column, ds);
      __syncthreads();  // probs and score gradients are there
      d_x.template mac<kQ, true, false>(s.probs, kStride<T, kK>, s.d_context, kStride<T, D>);
      d_x.template mac<kQ, true, false>(s.d_score, kStride<T, kK>, s.q, kStride<T, D>);
    }
  }
  cp_async_wait<0>();
  __syncthreads();  // the keys are there, and were read
  d_x.store(s.x, kStride<T, D>);
  __syncthreads();  // d_x is there
  store_rows<T, D>(static_cast<T*>(p.d_x) + int64_t(x.first) * D, s.x, x.count);
}

template <class T, int D>
int start(Form<T, D>, const AttentionBackward& p, void* stream) {
  const dim3 queries(span_tiles(p.rows, p.q_segments, kQ)), keys(span_tiles(p.nodes, p.x_segments, kK));
  const int e = launch(attention_backward_q_kernel<T, D>, queries, kThreads, sizeof(QuerySmem<T, D>), stream, p);
  if (e) return e;
  return launch(attention_backward_x_kernel<T, D>, keys, kThreads, sizeof(KeySmem<T, D>), stream, p);
}
}  // namespace hh

HH_KERNEL(attention_backward, AttentionBackward)
