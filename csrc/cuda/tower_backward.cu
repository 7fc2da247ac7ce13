// The label tower, backward: all T steps in one launch, from what the forward kept. The rows' gradients stay on the
// chip; what the weights' gradients are made from is written once, and weight_gradients.cu sums it in a fixed order.
//
//   du^{t+1} += dlogit_l W^o_l      a_m = exp(e_m - lse)   de_m = a_m (du . (u2^m - u^{t+1}))   du2^m = a_m du + de_m
//   w^l update yy, L2L attention:       du1 = dg2 + dS^T q2 + D(P)^T ds2 + dq2 A_yy^T               dq2 = dS u1 update
//   xy, F2L attention:       du^t = sum_m dg^m + (sum_m dq^m) A_xy^T                     dz += dS^T q + D(P)^T ds
//
//   shared memory   shape                    holds
//   x, y            32 x d  T                gradients of states, of contexts and hidden layers
//   weights/tiles   two slices / 2 x 32 x d  a weight on its way, or an attention's keys and queries
//   du, next        samples * L x d  fp32    du^{t+1} and du^t in the making
#include "api.h"
#include "tower.cuh"

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
  T softmax[kQ * kStride<T, kK>], dscore[kQ * kStride<T, kK>];
  float scores[kQ * kScores], dweights[kQ * kScores], alpha[kRows], dscore_row[kRows];
};

template <class T, int D>
size_t tower_backward_smem(const Tower& p) {
  return sizeof(TowerBackwardSmem<T, D>) + size_t(2) * p.samples * p.labels * D * sizeof(float);
}

// Weights (after dropout) and score gradients of one tile of keys, to s.softmax and s.dscore.
template <class T, int D, class May>
HH_DEV void score_gradients(TowerBackwardSmem<T, D>& s, const T* dcontext, int labels, int keys, int k0,
                            const Dropout& d, unsigned first_row, float lse, float delta, May&& may) {
  constexpr int kLd = kStride<T, D>;
  const int row = owned_row(), column = owned_column();
  Tile<T, kQ, kK> score, dweight;
  score.zero(), dweight.zero();
  score.template mac<D, false, true>(s.queries, kLd, s.keys, kLd);
  dweight.template mac<D, false, true>(dcontext, kLd, s.keys, kLd, labels);
  score.each([&](int r, int c, float& v) { s.scores[r * kScores + c] = v; });
  dweight.each([&](int r, int c, float& v) { s.dweights[r * kScores + c] = v; });
  __syncthreads();  // scores are there
  float a[4], ds[4], keep[4] = {1.f, 1.f, 1.f, 1.f};
  load4(a, s.scores + row * kScores + column);
  load4(ds, s.dweights + row * kScores + column);
  if (d.rng) keep4(d, d.site, first_row + row, k0 + column, keep);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int key = k0 + column + i;
    const bool read = row < labels && key < keys && lse != -INFINITY && may(row, key);
    a[i] = read ? expf(a[i] - lse) : 0.f;
    ds[i] = read ? a[i] * (ds[i] * keep[i] - delta) : 0.f;
    a[i] *= keep[i];
  }
  store4(s.softmax + row * kStride<T, kK> + column, a);
  store4(s.dscore + row * kStride<T, kK> + column, ds);
  __syncthreads();  // weights and score gradients are there
}

// From the states' gradient in x: x = dg, y = the contexts' gradient; dz, dh, dg are kept.
template <class T, int D>
HH_DEV void update_backward_rows(TowerBackwardSmem<T, D>& s, const Tower& p, const Share& b, const TowerBlock& w,
                                 int t) {
  constexpr int kLd = kStride<T, D>;
  const Dropout d = dropout_at(p, w.update_site, t);
  __syncthreads();  // dy is there, the tiles have been read
  s.weights.template fetch<false>(w.wb);
  if (d.rng) {
    for (int i = threadIdx.x; i < kRows * (D / 4); i += kThreads) {
      const int row = i / (D / 4), c = i % (D / 4) * 4;
      float keep[4];
      keep4(d, d.site, packed_row(p, b, row), c, keep);
#pragma unroll
      for (int j = 0; j < 4; j++) s.y[row * kLd + c + j] = from_float<T>(to_float(s.x[row * kLd + c + j]) * keep[j]);
    }
    __syncthreads();  // dz is there
  }
  const T* dz = d.rng ? s.y : s.x;
  keep_rows<T, D>(w.dz, dz, p, b, t);
  Tile<T, kRows, D> acc;
  acc.zero();
  s.weights.template multiply<false>(acc, dz, w.wb);
  s.weights.template fetch<false>(w.wr);
  const T* h = static_cast<const T*>(w.h) + int64_t(t) * p.modalities * p.batch * p.labels * D;
  acc.each([&](int r, int c, float& v) {
    if (r >= b.group_rows() || to_float(h[int64_t(packed_row(p, b, r)) * D + c]) <= 0.f) v = 0.f;
  });
  __syncthreads();      // dz has been read
  acc.store(s.y, kLd);  // dh

  acc.zero();
  s.weights.template multiply<false>(acc, s.y, w.wr);
  s.weights.template fetch<false>(w.wv);
  keep_rows<T, D>(w.dh, s.y, p, b, t);
  acc.each([&](int r, int c, float& v) { v += to_float(s.x[r * kLd + c]); });
  acc.store(s.x, kLd);  // dg

  acc.zero();
  s.weights.template multiply<false>(acc, s.x, w.wv);
  keep_rows<T, D>(w.dg, s.x, p, b, t);
  acc.store(s.y, kLd);  // the contexts' gradient
  __syncthreads();      // it is there, the weights have been read
}

// Eqs 15-17 backward: du gets the logits' part; x = the gradient of u2 for a group's rows.
template <class T, int D>
HH_DEV void readout_backward_rows(TowerBackwardSmem<T, D>& s, const Tower& p, const Share& b, const float* du, int t) {
  constexpr int kLd = kStride<T, D>;
  const int own = owned_row(), r = min(own, b.group_rows() - 1), state = r % b.rows;
  const int64_t row = int64_t(t) * p.modalities * p.batch * p.labels + packed_row(p, b, r);
  const int64_t fused = (int64_t(t) * p.batch + b.first) * p.labels + state;
  const T *u2 = static_cast<const T*>(p.l2l.u) + row * D, *u = static_cast<const T*>(p.fused) + fused * D;
  const float score = p.scores[row], alpha = score == -INFINITY ? 0.f : expf(score - p.scores_lse[fused]);
  float dot = 0.f;
  if (alpha != 0.f)
    for (int c = threadIdx.x % 8; c < D; c += 8) dot += du[state * D + c] * (to_float(u2[c]) - to_float(u[c]));
  dot = alpha * row_sum(dot);
  if (owned_column() == 0) {
    s.alpha[own] = own < b.group_rows() ? alpha : 0.f, s.dscore_row[own] = own < b.group_rows() ? dot : 0.f;
    if (own < b.group_rows()) p.dscores[row] = dot;
  }
  __syncthreads();  // alpha and de are there
  for (int i = threadIdx.x; i < kRows * D; i += kThreads) {
    const int k = i / D, c = i % D;
    const float a = s.alpha[k];
    const float v =
        a == 0.f ? 0.f : a * du[k % b.rows * D + c] + s.dscore_row[k] * to_float(static_cast<const T*>(p.wl)[c]);
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
__global__ void __launch_bounds__(kThreads, 1) tower_backward_kernel(const Tower p) {
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
    const TowerBlock f2l = weights_of<T, D>(p.f2l, set), l2l = weights_of<T, D>(p.l2l, set);
    for (int i = threadIdx.x; i < b.rows * D; i += kThreads) {
      const int state = i / D;
      const float g = p.dlogits[(int64_t(t) * p.batch + b.first) * labels + state];
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
        load_rows<T, D, kK>(s.keys, static_cast<const T*>(f2l.u) + at * D, labels);
        load_rows<T, D, kQ>(s.queries, static_cast<const T*>(l2l.q) + at * D, labels);
        cp_async_commit();
        const float lse = row < labels ? l2l.lse[at + row] : -INFINITY;
        const float delta = delta_of<T, D>(s, l2l.s, at, local, labels);
        cp_async_wait<0>();
        __syncthreads();  // keys and queries are there
        score_gradients<T, D>(s, s.y + local * kLd, labels, labels, 0, dropout_at(p, l2l.attention_site, t), first, lse,
                              delta, [&](int r, int k) { return !p.mask || p.mask[r * labels + k]; });
        Tile<T, kK, D> dkeys, dq;
        dkeys.zero(), dq.zero();
        dkeys.template mac<kQ, true, false>(s.softmax, kStride<T, kK>, s.y + local * kLd, kLd, kQ, labels);
        dkeys.template mac<kQ, true, false>(s.dscore, kStride<T, kK>, s.queries, kLd);
        dq.template mac<kK, false, false>(s.dscore, kStride<T, kK>, s.keys, kLd);
        __syncthreads();  // keys, queries and dO have been read
        dkeys.each([&](int r, int c, float& v) {
          if (r < labels) s.x[(local + r) * kLd + c] = from_float<T>(to_float(s.x[(local + r) * kLd + c]) + v);
        });
        dq.each([&](int r, int c, float& v) {
          if (r < labels) s.y[(local + r) * kLd + c] = from_float<T>(v);
        });
      }
      __syncthreads();  // dq2 and its part of du1 are there
      keep_rows<T, D>(l2l.dq, s.y, p, b, t);
      Tile<T, kRows, D> acc;
      acc.zero();
      s.weights.template fetch<true>(l2l.a);
      s.weights.template multiply<true>(acc, s.y, l2l.a);
      acc.each([&](int r, int c, float& v) { v += to_float(s.x[r * kLd + c]); });
      acc.store(s.x, kLd);  // du1
      update_backward_rows<T, D>(s, p, b, f2l, t);

      for (int i = threadIdx.x; i < b.rows * D; i += kThreads)
        for (int m = 0; m < b.modalities; m++) next[i] += to_float(s.x[(m * b.rows + i / D) * kLd + i % D]);
      for (int sample = 0; sample < b.count; sample++) {  // F2L attention: keys are nodes, queries q, dO in y
        const int state = (b.first + sample) * labels;
        Tile<T, kQ, D> dq;
        dq.zero();
        __syncthreads();  // the queries before have been read; du^t has its part of x
        load_rows<T, D, kQ>(s.queries, static_cast<const T*>(f2l.q) + (int64_t(t) * p.batch * labels + state) * D,
                            labels);
        cp_async_commit();
        for (int m = 0; m < b.modalities; m++) {
          const int local = m * b.rows + sample * labels, segment = (b.m0 + m) * p.batch + b.first + sample;
          const int begin = p.offsets[segment], keys = p.offsets[segment + 1] - begin;
          const int64_t at = int64_t(t) * step_rows + int64_t(segment) * labels;
          const float lse = row < labels ? f2l.lse[at + row] : -INFINITY;
          const float delta = delta_of<T, D>(s, f2l.s, at, local, labels);
          const Dropout d = dropout_at(p, f2l.attention_site + b.m0 + m, t);
          for (int k0 = 0; k0 < keys; k0 += kK) {
            __syncthreads();  // the keys before have been read
            load_rows<T, D, kK>(s.keys, static_cast<const T*>(p.z) + int64_t(begin + k0) * D, keys - k0);
            cp_async_commit();
            cp_async_wait<0>();
            __syncthreads();  // keys and queries are there
            score_gradients<T, D>(s, s.y + local * kLd, labels, keys, k0, d, state, lse, delta,
                                  [](int, int) { return true; });
            Tile<T, kK, D> dkeys;
            dkeys.zero();
            dkeys.template mac<kQ, true, false>(s.softmax, kStride<T, kK>, s.y + local * kLd, kLd, kQ, labels);
            dkeys.template mac<kQ, true, false>(s.dscore, kStride<T, kK>, s.queries, kLd);
            dq.template mac<kK, false, false>(s.dscore, kStride<T, kK>, s.keys, kLd);
            dkeys.each([&](int r, int c, float& v) {
              if (k0 + r < keys) p.dz[int64_t(begin + k0 + r) * D + c] += v;
            });
          }
        }
        // A sample's first label rows of x are free: its dg was added to du^t above.
        dq.each([&](int r, int c, float& v) {
          if (r < labels) s.x[(sample * labels + r) * kLd + c] = from_float<T>(v);
        });
      }
      cp_async_wait<0>();
      __syncthreads();  // dq is there
      T* kept = static_cast<T*>(f2l.dq) + (int64_t(t) * p.batch + b.first) * labels * D;
      for (int i = threadIdx.x; i < b.rows * D; i += kThreads) {
        const float v = to_float(s.x[i / D * kLd + i % D]);
        kept[i] = from_float<T>(b.m0 == 0 ? v : to_float(kept[i]) + v);
      }
      acc.zero();
      s.weights.template fetch<true>(f2l.a);
      s.weights.template multiply<true>(acc, s.x, f2l.a, b.rows);
      acc.each([&](int r, int c, float& v) {
        if (r < b.rows) next[r * D + c] += v;
      });
    }
    __syncthreads();  // du^t is there
    float* swap = du;
    du = next, next = swap;
  }
  for (int i = threadIdx.x; i < b.rows * D; i += kThreads) p.du0[int64_t(b.first) * labels * D + i] = du[i];
}

struct TowerBackward {
  template <class T, int D>
  static int run(const Tower& p, void* stream) {
    const dim3 grid((p.batch + p.samples - 1) / p.samples);
    return launch(tower_backward_kernel<T, D>, grid, kThreads, tower_backward_smem<T, D>(p), stream, p);
  }
};
}  // namespace hh

int hh_tower_backward(void* const* t, const long long* n, const double* f, void* stream) {
  hh::Tower p = hh::tower_args(t, n, f);
  void* const* in = t + 20;
  p.dlogits = static_cast<const float*>(in[0]), p.scores = static_cast<float*>(in[1]);
  p.scores_lse = static_cast<float*>(in[2]), p.fused = in[3];
  void* const* out = in + 16;
  p.dz = static_cast<float*>(out[0]), p.du0 = static_cast<float*>(out[1]), p.dscores = static_cast<float*>(out[2]);
  hh::TowerBlock* blocks[2] = {&p.f2l, &p.l2l};
  for (int i = 0; i < 2; i++) {
    void *const *kept = in + 4 + 6 * i, *const *made = out + 3 + 4 * i;
    hh::TowerBlock& b = *blocks[i];
    b.q = kept[0], b.s = kept[1], b.g = kept[2], b.h = kept[3], b.u = kept[4], b.lse = static_cast<float*>(kept[5]);
    b.dz = made[0], b.dh = made[1], b.dg = made[2], b.dq = made[3];
  }
  return hh::dispatch<hh::TowerBackward>(n, p, stream);
}
