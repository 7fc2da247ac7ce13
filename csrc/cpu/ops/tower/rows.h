// What the tower's forward and backward passes share: products over the rows of a block, attention over one pair, dropout.
#pragma once
#include "base/arena.h"
#include "simd/philox.h"
#include "simd/rows.h"
#include "ops/tower/kernels.h"
#include "simd/thin_gemm.h"

namespace {

using hhmpn::TowerBlock;
using hhmpn::TowerCall;
using hhmpn::TowerGrads;
using hhmpn::TowerWeights;

// The accumulators behind a stored row: the row itself where it holds them, else `wide`.
template <class T>
HHMPN_INLINE Acc<T>* wide_of(T* stored, Acc<T>* wide) {
  if constexpr (kSameType<T, Acc<T>>) return stored;
  else return wide;
}

template <class T>
HHMPN_INLINE void store_rows(int64_t rows, int64_t d, const Acc<T>* wide, T* stored) {
  if constexpr (!kSameType<T, Acc<T>>) copy_row(rows * d, wide, stored);
}

// wide (rows, d) (+)= x W with x as stored.
template <class T>
void product(int64_t rows, int64_t d, const T* x, const void* packed, Acc<T>* wide, Op<T>* operand,
             Epilogue<Acc<T>> after = {}) {
  int64_t lda;
  const Op<T>* a = as_rows<T>(rows, d, x, d, operand, &lda);
  gemm<T>(rows, d, d, a, lda, (const Op<T>*)packed, wide, d, after);
}

// What a team member owns of it: whole panels.
struct Columns {
  int64_t begin, end;
};

// stored[:, own] = wide[:, own] = x W[:, own] with its epilogue; then the team meets.
template <class T>
void product_to(int64_t rows, int64_t d, const Columns& own, const hhmpn::Team& team, const T* x, const void* packed,
                Acc<T>* wide, T* stored, Op<T>* operand, Epilogue<Acc<T>> after = {}) {
  const int64_t n = own.end - own.begin;
  int64_t lda;
  const Op<T>* a = as_rows<T>(rows, d, x, d, operand, &lda);
  if (after.bias) after.bias += own.begin;
  if (after.add) after.add += own.begin;
  gemm<T>(rows, n, d, a, lda, (const Op<T>*)packed + packed_size<T>(d, own.begin), wide + own.begin, d, after);
  if constexpr (!kSameType<T, Acc<T>>) {
    if (n == d) copy_row(rows * d, wide, stored);
    else
      for (int64_t i = 0; i < rows; i++) copy_row(n, wide + i * d + own.begin, stored + i * d + own.begin);
  }
  team.meet();
}

template <class T>
int64_t operand_count(int64_t rows, int64_t d) {
  return kSameType<T, Op<T>> && kPair<T> == 1 ? 0 : rows * operand_width<T>(d);
}

// One call's dropout over rows of attention weights or of update outputs.
template <class T>
struct RowDropout {
  const Dropout& d;
  Acc<T>* keep;  // round_up(columns, kPhiloxColumns)

  // to = from * keep / (1 - p)
  template <class S, class D>
  void scale(uint32_t row, uint32_t site, int64_t columns, const S* from, D* to) const {
    dropout_row(d, row, site, 0, columns, keep);
    over_lanes<T>(columns,
                  [&](int64_t j, int64_t w) { store_n(to + j, load_n(from + j, w) * load_n(keep + j, w), w); });
  }
};

// The pairs (m, b) of the samples of one block, and the rows they have in it.
template <class T>
struct BlockRows {
  BlockRows(const TowerCall<T>& c, const TowerBlock& b, const hhmpn::Team& team = {})
      : call(c),
        team(team),
        own{team.first(c.dim, kPanel<T>), team.last(c.dim, kPanel<T>)},
        first(c.pair_at[b.begin]),
        pairs(c.pair_at[b.end] - first),
        samples(b.end - b.begin),
        begin(b.begin) {}

  int64_t rows() const { return pairs * call.labels; }
  int64_t label_rows() const { return samples * call.labels; }
  // Where this block's rows of a saved kind begin.
  T* saved(int64_t step, int64_t kind) const {
    return call.states + ((step * hhmpn::tower_kinds(call.has_l2l) + kind) * call.cap + first * call.labels) * call.dim;
  }
  // f(row in the block, sample in the block, modality, segment)
  template <class F>
  void each_pair(F f) const {
    for (int64_t b = 0; b < samples; b++)
      for (int64_t p = call.pair_at[begin + b]; p < call.pair_at[begin + b + 1]; p++)
        f((p - first) * call.labels, b, call.pair_modality[p], call.pair_modality[p] * call.samples + begin + b);
  }

  // f(row of label 0, sample in the block, modality, segment, begin, end): labels [begin, end) of a pair are this member's.
  template <class F>
  void each_part(F f) const {
    const int64_t from = team.first(rows()), to = team.last(rows()), L = call.labels;
    each_pair([&](int64_t row, int64_t b, int64_t m, int64_t segment) {
      const int64_t low = max_of(from - row, 0), high = min_of(to - row, L);
      if (low < high) f(row, b, m, segment, low, high);
    });
  }

  const TowerCall<T>& call;
  hhmpn::Team team;
  Columns own;
  int64_t first, pairs, samples, begin;
};

}  // namespace
