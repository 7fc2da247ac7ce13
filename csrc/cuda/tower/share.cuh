// What the label tower's forward and backward share: which rows a block works on, and where they lie.
//
// A block owns `samples` samples for all steps: the fused states u (samples * L rows) stay in shared memory from the
// first step to the last. Their (modality, sample) pairs are worked through in groups of at most 32 rows, the tile of
// the tensor cores: all M modalities of the block's samples where M * L * samples <= 32, else one sample and 32 / L
// modalities at a time.
//
//   rows of            row                                 with
//   a group            (m - m0) * samples * L + p * L + l  m0 the group's first modality, p the sample in the block
//   a row tensor       (m * B + b) * L + l                 so a modality's rows lie together in both
#pragma once
#include "base/softmax.cuh"
#include "base/weights.cuh"
#include "tower/params.h"

namespace hh {
constexpr int kRows = 32;

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

// A block with its weights of set `set`.
template <class T, int D, class Block>
HH_DEV Block at_set(Block block, int set) {
  auto move = [&](const void*& weight, int64_t size) { weight = static_cast<const T*>(weight) + size * set; };
  move(block.query, D * D), move(block.value, D * D), move(block.hidden, D * D), move(block.output, D * D);
  move(block.b1, D), move(block.b2, D);
  return block;
}

// One pair's attention: its label rows as queries, `first_row` the packed one of the first.
struct Pair {
  int labels, keys;
  int key_rows;  // that a tile of keys has; those behind it are read as the last one
  SiteDropout dropout;
  unsigned first_row;
};
// Dropout of a site at step t.
HH_DEV SiteDropout at_step(const Tower& p, unsigned site, int t) {
  return at_site(p.dropout, site + unsigned(t) * p.sites_a_step);
}
}  // namespace hh
