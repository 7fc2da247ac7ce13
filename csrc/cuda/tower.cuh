// The label tower's arguments, and what its forward and backward share.
//
// A block owns `samples` samples for all steps: the fused states u (samples * L rows) stay in shared memory from the
// first step to the last. Their (modality, sample) pairs are worked through in groups of at most 32 rows, the tile of
// the tensor cores: all M modalities of the block's samples where M * L * samples <= 32, else one sample and 32 / L
// modalities at a time.
//
//   row of a group       (m - m0) * samples * L + p * L + l    with m0 the group's first modality, p the sample in the
//   block row of a tensor      (m * B + b) * L + l                   so a modality's rows lie together in both
#pragma once
#include "attention.cuh"
#include "update.cuh"

namespace hh {
constexpr int kRows = 32;

// One MP + UPD pair's weights at a step: q = u A; W^v, W^r, W^b (d, d), b1, b2 (d,). Row tensors are (T, M * B * L, d).
struct TowerBlock {
  const void *a, *wv, *wr, *b1, *wb, *b2;
  int attention_site, update_site;
  void *q, *s, *g, *h, *u;  // kept: queries, contexts, g, hidden layer, next states; null where nothing is kept
  float* lse;               // (T, M * B * L)
  void *dz, *dh, *dg, *dq;  // backward: what the weights' gradients are made from
};

struct Tower {
  const void *z, *u0, *wl, *wo;
  const int* offsets;
  const unsigned char *present, *mask;
  TowerBlock f2l, l2l;
  Dropout dropout;
  int modalities, batch, labels, steps, sets, samples, training;
  float *logits, *scores, *scores_lse;  // (T, B, L); readout's scores (T, M, B, L) and their log-sum-exp (T, B, L)
  void* fused;                          // (T, B, L, d): u after every step
  const float* dlogits;
  float *dscores, *dz, *du0;  // (T, M, B, L), (N, d), (B, L, d)
};

template <class T>
constexpr int kTowerSlice = sizeof(T) == 2 ? 32 : 16;  // of a weight in shared memory

// What a block works on.
struct Share {
  int first, count, rows;  // its samples, and how many rows of u they have
  int m0, modalities;      // the group
  HH_DEV int group_rows() const { return modalities * rows; }
};

HH_DEV Share share_of(const Tower& p) {
  const int first = blockIdx.x * p.samples, count = min(p.samples, p.batch - first);
  return {first, count, count * p.labels, 0, 0};
}
inline __host__ __device__ int modalities_at_once(const Tower& p) {
  return min(p.modalities, kRows / (p.samples * p.labels));
}

// A group's rows, or u's, from shared memory to row tensor `dst` of step t.
template <class T, int D>
HH_DEV void keep_rows(void* dst, const T* src, const Tower& p, const Share& b, int t) {
  if (!dst) return;
  for (int m = 0; m < b.modalities; m++) {
    const int64_t row = (int64_t(t) * p.modalities + b.m0 + m) * p.batch + b.first;
    store_rows<T, D>(static_cast<T*>(dst) + row * p.labels * D, src + m * b.rows * kStride<T, D>, b.rows);
  }
}
template <class T, int D>
HH_DEV void keep_states(void* dst, const T* src, const Tower& p, const Share& b, int t) {
  if (dst) store_rows<T, D>(static_cast<T*>(dst) + (int64_t(t) * p.batch + b.first) * p.labels * D, src, b.rows);
}

// The packed row (m * B + b) * L + l of a group's row.
HH_DEV int packed_row(const Tower& p, const Share& b, int row) {
  return ((b.m0 + row / b.rows) * p.batch + b.first) * p.labels + row % b.rows;
}
HH_DEV const void* weight_at(const void* w, int64_t size, int set, int bytes) {
  return static_cast<const unsigned char*>(w) + size * set * bytes;
}
// The block's weights of set `set`.
template <class T, int D>
HH_DEV TowerBlock weights_of(TowerBlock w, int set) {
  const int64_t matrix = int64_t(D) * D;
  w.a = weight_at(w.a, matrix, set, sizeof(T)), w.wv = weight_at(w.wv, matrix, set, sizeof(T));
  w.wr = weight_at(w.wr, matrix, set, sizeof(T)), w.wb = weight_at(w.wb, matrix, set, sizeof(T));
  w.b1 = weight_at(w.b1, D, set, sizeof(T)), w.b2 = weight_at(w.b2, D, set, sizeof(T));
  return w;
}
// Dropout of a site that moves by one layer a step.
HH_DEV Dropout dropout_at(const Tower& p, int site, int t) {
  Dropout d = p.dropout;
  d.site = unsigned(site + t * 8 * 256);
  return d;
}

inline Tower tower_args(void* const* t, const long long* n, const double* f) {
  Tower p{};
  p.z = t[0], p.offsets = static_cast<const int*>(t[1]), p.present = static_cast<const unsigned char*>(t[2]),
  p.u0 = t[3];
  p.wl = t[4], p.wo = t[5], p.mask = static_cast<const unsigned char*>(t[6]);
  TowerBlock* blocks[2] = {&p.f2l, &p.l2l};
  for (int i = 0; i < 2; i++) {
    void* const* w = t + 8 + 6 * i;
    TowerBlock& b = *blocks[i];
    b.a = w[0], b.wv = w[1], b.wr = w[2], b.b1 = w[3], b.wb = w[4], b.b2 = w[5];
    b.attention_site = int(n[10 + 2 * i]), b.update_site = int(n[11 + 2 * i]);
  }
  p.dropout = {static_cast<const long long*>(t[7]), unsigned(n[9]), 0u, float(f[0])};
  p.modalities = int(n[2]), p.batch = int(n[3]), p.labels = int(n[4]), p.steps = int(n[5]), p.sets = int(n[6]);
  p.samples = int(n[7]), p.training = int(n[8]);
  return p;
}
}  // namespace hh
