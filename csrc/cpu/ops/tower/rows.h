// What the tower's passes share: the rows of a block, products over them, one pair's attention, dropout.
#pragma once
#include "base/arena.h"
#include "ops/tower/kernels.h"
#include "simd/softmax.h"
#include "simd/thin_gemm.h"

namespace {

using hhmpn::Columns;
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

// Rows as stored and the accumulators behind them.
template <class T>
struct Rows {
  Rows(T* stored, Acc<T>* scratch) : stored(stored), wide(wide_of<T>(stored, scratch)) {}
  T* stored;
  Acc<T>* wide;
};

template <class T>
HHMPN_INLINE void store_rows(int64_t rows, int64_t d, const Acc<T>* wide, T* stored) {
  if constexpr (!kSameType<T, Acc<T>>) copy_row(rows * d, wide, stored);
}

// wide (rows, d) (+)= x W with x as stored.
template <class T>
void product(int64_t rows, int64_t d, const T* x, const void* packed, Acc<T>* wide, Op<T>* operand,
             Epilogue<Acc<T>> after = {}) {
  const View<Op<T>> a = as_rows<T>(rows, d, View{x, d}, operand);
  gemm<T>({rows, d, d}, a, (const Op<T>*)packed, {wide, d}, after);
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

// One modality of one sample: `row` is its label 0's in the block, `sample` counts from the block's first.
struct Pair {
  int64_t row, sample, modality, segment;
};

// Labels [begin, end) of a pair.
struct Labels {
  int64_t begin, end;
  int64_t count() const { return end - begin; }
};

// One pair's attention: labels q (L, d), null for uniform means, read its keys x (n, d).
template <class T>
struct PairAttention {
  const T *q = nullptr, *x = nullptr;
  int64_t n = 0;
  const bool* mask = nullptr;  // (L, n) or null
  uint32_t row = 0, site = 0;  // of its dropout mask: label 0's row
  Acc<T>* probs = nullptr;     // (L, n), before dropout
};

// The pairs (m, b) of the samples of one block, and the rows they have in it.
template <class T>
struct BlockRows {
  BlockRows(const TowerCall<T>& c, const TowerBlock& b, const hhmpn::Team& team = {})
      : call(c),
        team(team),
        own(team.columns(c.dim, kPanel<T>)),
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
  // f(pair) for every pair of the block.
  template <class F>
  void each_pair(F f) const {
    for (int64_t b = 0; b < samples; b++)
      for (int64_t p = call.pair_at[begin + b]; p < call.pair_at[begin + b + 1]; p++)
        f(Pair{(p - first) * call.labels, b, call.pair_modality[p], call.pair_modality[p] * call.samples + begin + b});
  }

  // f(pair, labels): for every pair of which some labels are this member's.
  template <class F>
  void each_part(F f) const {
    const int64_t from = team.first(rows()), to = team.last(rows()), L = call.labels;
    each_pair([&](const Pair& pair) {
      const Labels labels{max_of(from - pair.row, 0), min_of(to - pair.row, L)};
      if (labels.begin < labels.end) f(pair, labels);
    });
  }

  const TowerCall<T>& call;
  hhmpn::Team team;
  Columns own;
  int64_t first, pairs, samples, begin;
};

// stored[:, own] = wide[:, own] = x W[:, own] with its epilogue; then the team meets.
template <class T>
void product_to(const BlockRows<T>& at, int64_t rows, const T* x, const void* packed, Rows<T> to, Op<T>* operand,
                Epilogue<Acc<T>> after = {}) {
  const int64_t d = at.call.dim, begin = at.own.begin, n = at.own.count();
  const View<Op<T>> a = as_rows<T>(rows, d, View{x, d}, operand);
  if (after.bias) after.bias += begin;
  if (after.add.at) after.add.at += begin;
  gemm<T>({rows, n, d}, a, (const Op<T>*)packed + packed_size<T>(d, begin), {to.wide + begin, d}, after);
  if constexpr (!kSameType<T, Acc<T>>) {
    if (n == d) copy_row(rows * d, to.wide, to.stored);
    else
      for (int64_t i = 0; i < rows; i++) copy_row(n, to.wide + i * d + begin, to.stored + i * d + begin);
  }
  at.team.meet();
}

}  // namespace
