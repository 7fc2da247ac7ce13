// The label tower, forward: all T steps of F2L, L2L and readout in one launch (see share.cuh for who owns which rows).
//
//   u^0 = W^y; for t < T:
//     q = u A_xy          s^m = softmax(q x^T) x over the nodes of (m, b)      u1 = update(u, s; xy)
//     q2 = u1 A_yy        s2 = softmax(q2 u1^T) u1 over the labels             u2 = update(u1, s2; yy)
//     e = u2 . w^l        u = sum_m softmax_m(e) u2^m                          logit_l = u_l . W^o_l
//
//   shared memory   shape                  holds
//   x               32 x d  T              s, g, u1, g2, u2
//   y               32 x d  T              q, h, q2, s2, h2
//   weights/nodes   two slices / 2 tiles   a weight on its way, or nodes of F2L (one tile in fp32)
//   u               samples * L x d  T     the fused states
//   total           samples * L x d  fp32  u in the making, where there is more than one group
#include "tower/share.cuh"

namespace hh {
template <class T, int D>
struct TowerSmem {
  static constexpr int kLd = kStride<T, D>, kStages = sizeof(T) == 2 ? 2 : 1;
  T x[kRows * kLd], y[kRows * kLd];
  union {
    WeightStages<T, D, kTowerSlice<T>> weights;
    T nodes[kStages][kK * kLd];
  };
  T probs[kQ * kStride<T, kK>];
  float scores[kQ * kScores], factor[kQ], score[kRows], max[kRows], sum[kRows];
};

template <class T, int D>
size_t tower_smem(const Tower& p) {
  const size_t u = size_t(p.samples) * p.labels;
  const size_t total = modalities_at_once(p) < p.modalities ? u * D * sizeof(float) : 0;
  return sizeof(TowerSmem<T, D>) + u * kStride<T, D> * sizeof(T) + total;
}

// softmax(q x^T) x for one pair, keys in tiles of 32. load(k0, stage) starts a tile, tile(stage) is where
// it lies, may(row, key) masks; the context's L rows go to `out`, which may be q.
template <class T, int D, class Load, class Place, class May>
HH_DEV void attend(TowerSmem<T, D>& s, const T* q, T* out, const Pair& pair, float* lse, Load&& load, Place&& tile,
                   May&& may) {
  constexpr int kLd = kStride<T, D>, kStages = TowerSmem<T, D>::kStages;
  const int row = owned_row(), column = owned_column(), labels = pair.labels, keys = pair.keys;
  Tile<T, kQ, D> acc;
  acc.zero();
  RowSoftmax softmax;
  if (keys > 0) load(0, 0);
  for (int k0 = 0, stage = 0; k0 < keys; k0 += kK, stage = (stage + 1) % kStages) {
    if (kStages == 1 && k0 > 0) {
      __syncthreads();  // the only stage has been read
      load(k0, 0);
    }
    cp_async_wait<0>();
    __syncthreads();  // this tile is there, the other stage has been read
    if (kStages > 1 && k0 + kK < keys) load(k0 + kK, stage ^ 1);
    Tile<T, kQ, kK> score;
    score.zero();
    // A label tile's rows behind its keys are other rows of x and y: their scores are masked below.
    score.template mac<D, false, true>(q, kLd, tile(stage), kLd, labels);
    score.each([&](int r, int c, float& v) { s.scores[r * kScores + c] = v; });
    __syncthreads();  // scores are there
    float a[4];
    load4(a, s.scores + row * kScores + column);
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (row >= labels || k0 + column + i >= keys || !may(row, k0 + column + i)) a[i] = -INFINITY;
    const float factor = softmax.add(a);
    if (column == 0) s.factor[row] = factor;
    if (pair.dropout.rng) {
      float keep[4];
      keep4(pair.dropout, pair.first_row + row, k0 + column, keep);
#pragma unroll
      for (int i = 0; i < 4; i++) a[i] *= keep[i];
    }
    store4(s.probs + row * kStride<T, kK> + column, a);
    __syncthreads();  // probs are there
    acc.each([&](int r, int, float& v) { v *= s.factor[r]; });
    acc.template mac<kK, false, false>(s.probs, kStride<T, kK>, tile(stage), kLd, kQ, pair.key_rows);
  }
  __syncthreads();  // q, tiles and factors have been read
  if (column == 0) {
    s.factor[row] = softmax.inverse();
    if (lse && row < labels) lse[row] = softmax.lse();
  }
  __syncthreads();  // the inverse sums are there
  acc.each([&](int r, int c, float& v) {
    if (r < labels) out[r * kLd + c] = from_float<T>(v * s.factor[r]);
  });
}

// x = update(residual, contexts) for a group's rows; the contexts lie in x or y, the residual(row, column) is read
// once.
template <class T, int D, class Residual>
HH_DEV void update_rows(TowerSmem<T, D>& s, const TowerForward& p, const Share& b, const BlockForward& w,
                        const T* contexts, int t, Residual&& residual) {
  constexpr int kLd = kStride<T, D>;
  const T *b1 = static_cast<const T*>(w.b1), *b2 = static_cast<const T*>(w.b2);
  const SiteDropout d = at_step(p, w.update_site, t);
  __syncthreads();  // the contexts are there, the nodes have been read
  keep_rows<T, D>(w.contexts, contexts, p, b, t);
  s.weights.template fetch<true>(w.value);
  Tile<T, kRows, D> acc;
  acc.zero();
  s.weights.template multiply<true>(acc, contexts, w.value);
  s.weights.template fetch<true>(w.hidden);
  __syncthreads();  // the contexts have been read
  acc.each([&](int r, int c, float& v) { v += residual(r, c); });
  acc.store(s.x, kLd);  // g

  acc.zero();
  s.weights.template multiply<true>(acc, s.x, w.hidden);
  s.weights.template fetch<true>(w.output);
  keep_rows<T, D>(w.g, s.x, p, b, t);
  acc.each([&](int, int c, float& v) { v = relu(v + to_float(b1[c])); });
  acc.store(s.y, kLd);  // h

  acc.zero();
  s.weights.template multiply<true>(acc, s.y, w.output);
  keep_rows<T, D>(w.h, s.y, p, b, t);
  acc.each([&](int r, int c, float& v) {
    v += to_float(b2[c]);
    if (d.rng) v *= keep1(d, packed_row(p, b, r), c);
    v += to_float(s.x[r * kLd + c]);
  });
  acc.store(s.x, kLd);
  __syncthreads();  // the next states are there
  keep_rows<T, D>(w.states, s.x, p, b, t);
}

// Eqs 15-16 over the group's modalities: u (or `total`, while modalities are left) from u2 in x.
template <class T, int D>
HH_DEV void readout_rows(TowerSmem<T, D>& s, const TowerForward& p, const Share& b, T* u, float* total, int t) {
  constexpr int kLd = kStride<T, D>;
  const bool first = b.m0 == 0, last = b.m0 + b.modalities == p.modalities;
  const int own = owned_row();
  const float e = row_dot<T, D>(s.x + own * kLd, static_cast<const T*>(p.wl));
  if (owned_column() == 0 && own < b.group_rows()) {
    const int m = b.m0 + own / b.rows, sample = b.first + own % b.rows / p.labels;
    const float score = p.present[m * p.batch + sample] ? e : -INFINITY;
    s.score[own] = score;
    if (p.scores) p.scores[int64_t(t) * p.modalities * p.batch * p.labels + packed_row(p, b, own)] = score;
  }
  __syncthreads();  // scores are there
  if (int(threadIdx.x) < b.rows) {
    const int r = threadIdx.x;
    const float before = first ? -INFINITY : s.max[r];
    float max = before, sum = 0.f;
    for (int m = 0; m < b.modalities; m++) max = fmaxf(max, s.score[m * b.rows + r]);
    const float base = max == -INFINITY ? 0.f : max, factor = expf(before - base);
    for (int m = 0; m < b.modalities; m++) {
      const float a = expf(s.score[m * b.rows + r] - base);
      s.score[m * b.rows + r] = a, sum += a;
    }
    sum += first ? 0.f : s.sum[r] * factor;
    s.factor[r] = factor, s.max[r] = max, s.sum[r] = sum;
    if (last && p.scores_lse) p.scores_lse[(int64_t(t) * p.batch + b.first) * p.labels + r] = max + logf(sum);
  }
  __syncthreads();  // the modalities' probs are there
  for (int i = threadIdx.x; i < b.rows * D; i += kThreads) {
    const int r = i / D, c = i % D;
    float v = first ? 0.f : total[i] * s.factor[r];
    for (int m = 0; m < b.modalities; m++) {
      const float a = s.score[m * b.rows + r];
      // An absent modality's states may be anything: they are left out, not multiplied by 0.
      if (a != 0.f) v += a * to_float(s.x[(m * b.rows + r) * kLd + c]);
    }
    if (last) u[r * kLd + c] = from_float<T>(v / s.sum[r]);
    else total[i] = v;
  }
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads, 1) tower_forward_kernel(const TowerForward p) {
  constexpr int kLd = kStride<T, D>;
  extern __shared__ __align__(16) unsigned char smem[];
  auto& s = *reinterpret_cast<TowerSmem<T, D>*>(smem);
  Share b = share_of(p);
  T* u = reinterpret_cast<T*>(smem + sizeof(TowerSmem<T, D>));
  float* total = reinterpret_cast<float*>(u + p.samples * p.labels * kLd);
  const int at_once = modalities_at_once(p);
  for (int i = threadIdx.x; i < kRows * kLd; i += kThreads) s.x[i] = s.y[i] = from_float<T>(0.f);
  for (int i = threadIdx.x; i < b.rows * D; i += kThreads)
    u[i / D * kLd + i % D] = static_cast<const T*>(p.label_embedding)[i / D % p.labels * D + i % D];

  for (int t = 0; t < p.steps; t++) {
    const int set = p.sets == 1 ? 0 : t;
    const auto f2l = at_set<T, D>(p.f2l, set);
    const auto l2l = at_set<T, D>(p.l2l, set);
    for (b.m0 = 0; b.m0 < p.modalities; b.m0 += at_once) {
      b.modalities = min(at_once, p.modalities - b.m0);
      Tile<T, kRows, D> acc;
      acc.zero();
      s.weights.template fetch<false>(f2l.query);
      s.weights.template multiply<false>(acc, u, f2l.query, b.rows);
      acc.store(s.y, kLd);  // q
      __syncthreads();      // q is there
      if (b.m0 == 0) keep_states<T, D>(f2l.queries, s.y, p, b, t);
      for (int pair = 0; pair < b.modalities * b.count; pair++) {
        const int m = b.m0 + pair / b.count, sample = pair % b.count, segment = m * p.batch + b.first + sample;
        const int begin = p.offsets[segment], keys = p.offsets[segment + 1] - begin;
        const T* nodes = static_cast<const T*>(p.z) + int64_t(begin) * D;
        const SiteDropout d = at_step(p, f2l.attention_site + m, t);
        const Pair rows{p.labels, keys, kAllRows, d, unsigned((b.first + sample) * p.labels)};
        const int64_t kept = int64_t(t) * p.modalities * p.batch * p.labels + int64_t(segment) * p.labels;
        attend<T, D>(
            s, s.y + sample * p.labels * kLd, s.x + pair * p.labels * kLd, rows, f2l.lse ? f2l.lse + kept : nullptr,
            [&](int k0, int stage) {
              load_rows<T, D, kK>(s.nodes[stage], nodes + int64_t(k0) * D, keys - k0);
              cp_async_commit();
            },
            [&](int stage) { return s.nodes[stage]; }, [](int, int) { return true; });
      }
      update_rows<T, D>(s, p, b, f2l, s.x, t, [&](int r, int c) { return to_float(u[r % b.rows * kLd + c]); });

      acc.zero();
      s.weights.template fetch<false>(l2l.query);
      s.weights.template multiply<false>(acc, s.x, l2l.query);
      acc.store(s.y, kLd);  // q2
      __syncthreads();      // q2 is there
      keep_rows<T, D>(l2l.queries, s.y, p, b, t);
      for (int pair = 0; pair < b.modalities * b.count; pair++) {
        T *q = s.y + pair * p.labels * kLd, *keys = s.x + pair * p.labels * kLd;
        const int first = packed_row(p, b, pair * p.labels);
        const int64_t kept = int64_t(t) * p.modalities * p.batch * p.labels + first;
        const Pair rows{p.labels, p.labels, p.labels, at_step(p, l2l.attention_site, t), unsigned(first)};
        attend<T, D>(
            s, q, q, rows, l2l.lse ? l2l.lse + kept : nullptr, [](int, int) {}, [&](int) { return keys; },
            [&](int row, int key) { return !p.mask || p.mask[row * p.labels + key]; });
      }
      update_rows<T, D>(s, p, b, l2l, s.y, t, [&](int r, int c) { return to_float(s.x[r * kLd + c]); });
      readout_rows<T, D>(s, p, b, u, total, t);
    }
    __syncthreads();  // u is there
    keep_states<T, D>(p.fused, u, p, b, t);
    const int row = owned_row();
    const float logit = row_dot<T, D>(u + min(row, b.rows - 1) * kLd,
                                      static_cast<const T*>(p.wo) + min(row, b.rows - 1) % p.labels * D);
    if (owned_column() == 0 && row < b.rows) p.logits[(int64_t(t) * p.batch + b.first) * p.labels + row] = logit;
  }
}

template <class T, int D>
int start(Form<T, D>, const TowerForward& p, void* stream) {
  const dim3 grid((p.batch + p.samples - 1) / p.samples);
  return launch(tower_forward_kernel<T, D>, grid, kThreads, tower_smem<T, D>(p), stream, p);
}
}  // namespace hh

HH_KERNEL(tower_forward, TowerForward)
