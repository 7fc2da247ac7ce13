// The label tower, backward: all T steps in one launch, from what the forward kept. The rows' gradients stay on the
// chip; what the weights' gradients are made from is written once, and weight_gradients/ sums it in a fixed order.
//
//   readout           du^{t+1} += dlogit_l W^o_l                     a_m = exp(e_m - lse)
//                     de_m = a_m (du . (u2^m - u^{t+1}))             du2^m = a_m du + de_m w^l
//   update yy, L2L    du1 = dg2 + dS^T q2 + D(P)^T ds2 + dq2 A_yy^T  dq2 = dS u1
//   update xy, F2L    du^t = sum_m dg^m + (sum_m dq^m) A_xy^T        dz += dS^T q + D(P)^T ds
//   attention         dS = a (dP - delta)                            delta = sum_j a_j dP_j
//
// delta is taken from the products that it is subtracted from, as far as a tile holds the row; for nodes of several
// tiles it begins as dO.O, and what sum_j dS_j then is comes off dq, times sum_j a_j z_j (attention/backward.cu).
//
//   shared memory   shape                    holds
//   x, y            32 x d  T                gradients of states, of contexts and hidden layers
//   weights/tiles   two slices / 2 x 32 x d  a weight on its way, or an attention's keys and queries
//   du, next        samples * L x d  fp32    du^{t+1} and du^t in the making
#include "tower/share.cuh"

namespace hh {
template <class T, int D>
struct TowerBackwardSmem {
  static constexpr int kLd = kStride<T, D>;
  T x[kRows * kLd], y[kRows * kLd];
  union {
    WeightStages<T, D, kTowerSlice<T>> weights;
    struct {
      T keys[kK * kLd], queries[kQ * kLd];
    };
  };
  T probs[kQ * kStride<T, kK>], d_score[kQ * kStride<T, kK>];
  float scores[kQ * kScores], d_probs[kQ * kScores], alpha[kRows], d_score_row[kRows], missed[kQ];
};

template <class T, int D>
size_t tower_backward_smem(const Tower& p) {
  return sizeof(TowerBackwardSmem<T, D>) + size_t(2) * p.samples * p.labels * D * sizeof(float);
}

// Probs (after dropout) and score gradients of one tile of keys, to s.probs and s.d_score; `delta` of no use where the
// tile holds all keys. Returns the sum of the four score gradients.
template <class T, int D, class May>
HH_DEV float score_gradients(TowerBackwardSmem<T, D>& s, const T* d_context, const Pair& pair, int k0, float lse,
                             float delta, May&& may) {
  constexpr int kLd = kStride<T, D>;
  const int row = owned_row(), column = owned_column(), labels = pair.labels;
  Tile<T, kQ, kK> score, d_prob;
  score.zero(), d_prob.zero();
  score.template mac<D, false, true>(s.queries, kLd, s.keys, kLd);
  d_prob.template mac<D, false, true>(d_context, kLd, s.keys, kLd, labels);
  score.each([&](int r, int c, float& v) { s.scores[r * kScores + c] = v; });
  d_prob.each([&](int r, int c, float& v) { s.d_probs[r * kScores + c] = v; });
  __syncthreads();  // scores are there
  float a[4], ds[4], keep[4] = {1.f, 1.f, 1.f, 1.f};
  load4(a, s.scores + row * kScores + column);
  load4(ds, s.d_probs + row * kScores + column);
  if (pair.dropout.rng) keep4(pair.dropout, pair.first_row + row, k0 + column, keep);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int key = k0 + column + i;
    const bool read = row < labels && key < pair.keys && lse != -INFINITY && may(row, key);
    a[i] = read ? expf(a[i] - lse) : 0.f;
    ds[i] = read ? ds[i] * keep[i] : 0.f;
  }
  if (pair.keys <= kK) delta = row_sum(a[0] * ds[0] + a[1] * ds[1] + a[2] * ds[2] + a[3] * ds[3]);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    ds[i] = a[i] == 0.f ? 0.f : a[i] * (ds[i] - delta);
    a[i] *= keep[i];
  }
  store4(s.probs + row * kStride<T, kK> + column, a);
  store4(s.d_score + row * kStride<T, kK> + column, ds);
  __syncthreads();  // probs and score gradients are there
  return ds[0] + ds[1] + ds[2] + ds[3];
}

// From the states' gradient in x: x = d_g, y = the contexts' gradient; d_tail, d_h, d_g are kept.
template <class T, int D>
HH_DEV void update_backward_rows(TowerBackwardSmem<T, D>& s, const TowerBackward& p, const Share& b,
                                 const BlockBackward& w, int t) {
  constexpr int kLd = kStride<T, D>;
  const SiteDropout d = at_step(p, w.update_site, t);
  __syncthreads();  // d_out is there, the tiles have been read
  s.weights.template fetch<false>(w.output);
  if (d.rng) {
    for (int i = threadIdx.x; i < kRows * (D / 4); i += kThreads) {
      const int row = i / (D / 4), c = i % (D / 4) * 4;
      float keep[4];
      keep4(d, packed_row(p, b, row), c, keep);
#pragma unroll
      for (int j = 0; j < 4; j++) s.y[row * kLd + c + j] = from_float<T>(to_float(s.x[row * kLd + c + j]) * keep[j]);
    }
    __syncthreads();  // d_tail is there
  }
  const T* d_tail = d.rng ? s.y : s.x;
  keep_rows<T, D>(w.d_tail, d_tail, p, b, t);
  Tile<T, kRows, D> acc;
  acc.zero();
  s.weights.template multiply<false>(acc, d_tail, w.output);
  s.weights.template fetch<false>(w.hidden);
  const T* h = static_cast<const T*>(w.h) + int64_t(t) * p.modalities * p.batch * p.labels * D;
  acc.each([&](int r, int c, float& v) {
    if (r >= b.group_rows() || to_float(h[int64_t(packed_row(p, b, r)) * D + c]) <= 0.f) v = 0.f;
  });
  __syncthreads();      // d_tail has been read
  acc.store(s.y, kLd);  // d_h

  acc.zero();
  s.weights.template multiply<false>(acc, s.y, w.hidden);
  s.weights.template fetch<false>(w.value);
  keep_rows<T, D>(w.d_h, s.y, p, b, t);
  acc.each([&](int r, int c, float& v) { v += to_float(s.x[r * kLd + c]); });
  acc.store(s.x, kLd);  // d_g

  acc.zero();
  s.weights.template multiply<false>(acc, s.x, w.value);
  keep_rows<T, D>(w.d_g, s.x, p, b, t);
  acc.store(s.y, kLd);  // the contexts' gradient
  __syncthreads();      // it is there, the weights have been read
}

// Eqs 15-17 backward: du gets the logits' part; x = the gradient of u2 for a group's rows.
template <class T, int D>
HH_DEV void readout_backward_rows(TowerBackwardSmem<T, D>& s, const TowerBackward& p, const Share& b, const float* du,
                                  int t) {
  constexpr int kLd = kStride<T, D>;
  const int own = owned_row(), r = min(own, b.group_rows() - 1), state = r % b.rows;
  const int64_t row = int64_t(t) * p.modalities * p.batch * p.labels + packed_row(p, b, r);
  const int64_t fused = (int64_t(t) * p.batch + b.first) * p.labels + state;
  const T *u2 = static_cast<const T*>(p.l2l.states) + row * D, *u = static_cast<const T*>(p.fused) + fused * D;
  const float score = p.scores[row], alpha = score == -INFINITY ? 0.f : expf(score - p.scores_lse[fused]);
  float dot = 0.f;
  if (alpha != 0.f)
    for (int c = threadIdx.x % 8; c < D; c += 8) dot += du[state * D + c] * (to_float(u2[c]) - to_float(u[c]));
  dot = alpha * row_sum(dot);
  if (owned_column() == 0) {
    s.alpha[own] = own < b.group_rows() ? alpha : 0.f, s.d_score_row[own] = own < b.group_rows() ? dot : 0.f;
    if (own < b.group_rows()) p.d_scores[row] = dot;
  }
  __syncthreads();  // alpha and de are there
  for (int i = threadIdx.x; i < kRows * D; i += kThreads) {
    const int k = i / D, c = i % D;
    const float a = s.alpha[k];
    const float v =
        a == 0.f ? 0.f : a * du[k % b.rows * D + c] + s.d_score_row[k] * to_float(static_cast<const T*>(p.wl)[c]);
    s.x[k * kLd + c] = from_float<T>(v);
  }
}

// delta = dO . O of the row this thread shares, dO in y and O among what the forward kept.
template <class T, int D>
HH_DEV float delta_of(TowerBackwardSmem<T, D>& s, const void* contexts, int64_t first, int local, int labels) {
  const int row = min(owned_row(), labels - 1);
  return row_dot<T, D>(s.y + (local + row) * kStride<T, D>, static_cast<const T*>(contexts) + (first + row) * D);
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads, 1) tower_backward_kernel(const TowerBackward p) {
  constexpr int kLd = kStride<T, D>;
  extern __shared__ __align__(16) unsigned char smem[];
  auto& s = *reinterpret_cast<TowerBackwardSmem<T, D>*>(smem);
  Share b = share_of(p);
  float* du = reinterpret_cast<float*>(smem + sizeof(TowerBackwardSmem<T, D>));
  float* next = du + p.samples * p.labels * D;
  const int at_once = modalities_at_once(p), row = owned_row(), labels = p.labels;
  const int64_t step_rows = int64_t(p.modalities) * p.batch * labels;
  for (int i = threadIdx.x; i < b.rows * D; i += kThreads) du[i] = 0.f;

  for (int t = p.steps - 1; t >= 0; t--) {
    const int set = p.sets == 1 ? 0 : t;
    const auto f2l = at_set<T, D>(p.f2l, set);
    const auto l2l = at_set<T, D>(p.l2l, set);
    for (int i = threadIdx.x; i < b.rows * D; i += kThreads) {
      const int state = i / D;
      const float g = p.d_logits[(int64_t(t) * p.batch + b.first) * labels + state];
      du[i] += g * to_float(static_cast<const T*>(p.wo)[state % labels * D + i % D]);
      next[i] = 0.f;
    }
    for (b.m0 = 0; b.m0 < p.modalities; b.m0 += at_once) {
      b.modalities = min(at_once, p.modalities - b.m0);
      __syncthreads();  // du is there, the group before is through
      readout_backward_rows<T, D>(s, p, b, du, t);
      update_backward_rows<T, D>(s, p, b, l2l, t);

      for (int pair = 0; pair < b.modalities * b.count; pair++) {  // L2L attention: keys u1, queries q2, dO in y
        const int local = pair * labels, first = packed_row(p, b, local);
        const int64_t at = int64_t(t) * step_rows + first;
        load_rows<T, D, kK>(s.keys, static_cast<const T*>(f2l.states) + at * D, labels);
        load_rows<T, D, kQ>(s.queries, static_cast<const T*>(l2l.queries) + at * D, labels);
        cp_async_commit();
        const float lse = row < labels ? l2l.lse[at + row] : -INFINITY;
        cp_async_wait<0>();
        __syncthreads();  // keys and queries are there
        const Pair rows{labels, labels, labels, at_step(p, l2l.attention_site, t), unsigned(first)};
        score_gradients<T, D>(s, s.y + local * kLd, rows, 0, lse, 0.f,
                              [&](int r, int k) { return !p.mask || p.mask[r * labels + k]; });
        Tile<T, kK, D> d_keys, d_q;
        d_keys.zero(), d_q.zero();
        d_keys.template mac<kQ, true, false>(s.probs, kStride<T, kK>, s.y + local * kLd, kLd, kQ, labels);
        d_keys.template mac<kQ, true, false>(s.d_score, kStride<T, kK>, s.queries, kLd);
        d_q.template mac<kK, false, false>(s.d_score, kStride<T, kK>, s.keys, kLd);
        __syncthreads();  // keys, queries and dO have been read
        d_keys.each([&](int r, int c, float& v) {
          if (r < labels) s.x[(local + r) * kLd + c] = from_float<T>(to_float(s.x[(local + r) * kLd + c]) + v);
        });
        d_q.each([&](int r, int c, float& v) {
          if (r < labels) s.y[(local + r) * kLd + c] = from_float<T>(v);
        });
      }
      __syncthreads();  // dq2 and its part of du1 are there
      keep_rows<T, D>(l2l.d_queries, s.y, p, b, t);
      Tile<T, kRows, D> acc;
      acc.zero();
      s.weights.template fetch<true>(l2l.query);
      s.weights.template multiply<true>(acc, s.y, l2l.query);
      acc.each([&](int r, int c, float& v) { v += to_float(s.x[r * kLd + c]); });
      acc.store(s.x, kLd);  // du1
      update_backward_rows<T, D>(s, p, b, f2l, t);

      for (int i = threadIdx.x; i < b.rows * D; i += kThreads)
        for (int m = 0; m < b.modalities; m++) next[i] += to_float(s.x[(m * b.rows + i / D) * kLd + i % D]);
      for (int sample = 0; sample < b.count; sample++) {  // F2L attention: keys are nodes, queries q, dO in y
        const int state = (b.first + sample) * labels;
        Tile<T, kQ, D> d_q;
        d_q.zero();
        __syncthreads();  // the queries before have been read; du^t has its part of x
        load_rows<T, D, kQ>(s.queries, static_cast<const T*>(f2l.queries) + (int64_t(t) * p.batch * labels + state) * D,
                            labels);
        cp_async_commit();
        for (int m = 0; m < b.modalities; m++) {
          const int local = m * b.rows + sample * labels, segment = (b.m0 + m) * p.batch + b.first + sample;
          const int begin = p.offsets[segment], keys = p.offsets[segment + 1] - begin;
          const int64_t at = int64_t(t) * step_rows + int64_t(segment) * labels;
          const float lse = row < labels ? f2l.lse[at + row] : -INFINITY;
          const bool tiles = keys > kK;
          const float delta = tiles ? delta_of<T, D>(s, f2l.contexts, at, local, labels) : 0.f;
          float missed = 0.f;
          const Pair rows{labels, keys, kAllRows, at_step(p, f2l.attention_site + b.m0 + m, t), unsigned(state)};
          for (int k0 = 0; k0 < keys; k0 += kK) {
            __syncthreads();  // the keys before have been read
            load_rows<T, D, kK>(s.keys, static_cast<const T*>(p.z) + int64_t(begin + k0) * D, keys - k0);
            cp_async_commit();
            cp_async_wait<0>();
            __syncthreads();  // keys and queries are there
            missed += score_gradients<T, D>(s, s.y + local * kLd, rows, k0, lse, delta, [](int, int) { return true; });
            Tile<T, kK, D> d_keys;
            d_keys.zero();
            d_keys.template mac<kQ, true, false>(s.probs, kStride<T, kK>, s.y + local * kLd, kLd, kQ, labels);
            d_keys.template mac<kQ, true, false>(s.d_score, kStride<T, kK>, s.queries, kLd);
            d_q.template mac<kK, false, false>(s.d_score, kStride<T, kK>, s.keys, kLd);
            d_keys.each([&](int r, int c, float& v) {
              if (k0 + r < keys) p.d_z[int64_t(begin + k0 + r) * D + c] += v;
            });
          }
          if (!tiles) continue;
          missed = row_sum(missed) / p.dropout.scale;
          if (owned_column() == 0) s.missed[row] = missed;
          __syncthreads();  // what the rows missed is there
          const T* contexts = static_cast<const T*>(f2l.contexts) + at * D;
          d_q.each([&](int r, int c, float& v) {
            if (r < labels) v -= s.missed[r] * to_float(contexts[r * D + c]);
          });
        }
        // A sample's first label rows of x are free: its dg was added to du^t above.
        d_q.each([&](int r, int c, float& v) {
          if (r < labels) s.x[(sample * labels + r) * kLd + c] = from_float<T>(v);
        });
      }
      cp_async_wait<0>();
      __syncthreads();  // d_q is there
      T* kept = static_cast<T*>(f2l.d_queries) + (int64_t(t) * p.batch + b.first) * labels * D;
      for (int i = threadIdx.x; i < b.rows * D; i += kThreads) {
        const float v = to_float(s.x[i / D * kLd + i % D]);
        kept[i] = from_float<T>(b.m0 == 0 ? v : to_float(kept[i]) + v);
      }
      acc.zero();
      s.weights.template fetch<true>(f2l.query);
      s.weights.template multiply<true>(acc, s.x, f2l.query, b.rows);
      acc.each([&](int r, int c, float& v) {
        if (r < b.rows) next[r * D + c] += v;
      });
    }
    __syncthreads();  // du^t is there
    float* swap = du;
    du = next, next = swap;
  }
  for (int i = threadIdx.x; i < b.rows * D; i += kThreads) p.d_start[int64_t(b.first) * labels * D + i] = du[i];
}

template <class T, int D>
int start(Form<T, D>, const TowerBackward& p, void* stream) {
  const dim3 grid((p.batch + p.samples - 1) / p.samples);
  return launch(tower_backward_kernel<T, D>, grid, kThreads, tower_backward_smem<T, D>(p), stream, p);
}
}  // namespace hh

HH_KERNEL(tower_backward, TowerBackward)
