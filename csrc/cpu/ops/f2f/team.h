// Forward pass of one sample by a team, in three stages with a meeting between them; the sums are forward.h's, bit for bit.
//
//   columns   q = v query    w_j = hidden_m v_j    packed operands of v and w, and of the keys by nodes
//   rows      scores, weights, s and h
//   columns   z = v + s value^T + D(h output^T + b2)
#pragma once
#include "ops/f2f/forward.h"

namespace {

template <class T>
struct TeamScratch {
  TeamScratch(Arena a, int64_t d, int64_t longest, const hhmpn::Team& team)
      : nodes(a.take<T>(longest * d)),
        keys(a.take<Op<T>>(packed_size<T>(d, longest))),
        x(a.take<Op<T>>(packed_size<T>(longest, d))),
        w(a.take<Op<T>>(packed_size<T>(longest, d))),
        q(a.take<T>(longest * d)),
        w_rows(a.take<T>(longest * d)),
        s(a.take<Acc<T>>(longest * d)),
        h(a.take<Acc<T>>(longest * d)),
        g(a.take<Acc<T>>(longest * d)),
        t(a.take<Acc<T>>(longest * d)) {
    Arena one(nullptr);
    take_own(one, d, longest);
    bytes = a.bytes + team.size * one.bytes;
    a.bytes += team.begin * one.bytes;
    take_own(a, d, longest);
    sample.x = nodes;
  }
  void take_own(Arena& a, int64_t d, int64_t longest) {
    rows = RowScratch<T>(a, d, longest);
    sample = Sample<T>(a, 0, longest);
  }
  T* nodes;
  Op<T>*keys, *x, *w;
  T *q, *w_rows;
  Acc<T>*s, *h, *g, *t;
  RowScratch<T> rows;
  Sample<T> sample;
  int64_t bytes;
};

template <class T>
int64_t team_scratch(int64_t d, int64_t longest, int64_t members) {
  return TeamScratch<T>(Arena(nullptr), d, longest, {0, 1, members}).bytes;
}

// y[:, own] (+)= x W[:, own] for all rows, blocks of kF2fRows at a time.
template <class T, class S>
void team_product(int64_t count, int64_t d, int64_t begin, int64_t end, const S* x, const void* packed, Acc<T>* y,
                  Op<T>* op, const Epilogue<Acc<T>>& after) {
  for (int64_t i = 0; i < count; i += kF2fRows) {
    const int64_t rows = min_of(kF2fRows, count - i);
    int64_t ld;
    const Op<T>* a = as_rows<T>(rows, d, x + i * d, d, op, &ld);
    gemm<T>(rows, end - begin, d, a, ld, (const Op<T>*)packed + packed_size<T>(d, begin), y + i * d + begin, d, after);
  }
}

template <class T>
void forward_team(const F2fArgs<T>& a, int64_t sample, const hhmpn::Team& team, char* scratch) {
  using A = Acc<T>;
  const int64_t d = a.d;
  TeamScratch<T> f(Arena(scratch), d, sample_nodes(a, sample), team);
  const int64_t begin = team.first(d, kPanel<T>), end = team.last(d, kPanel<T>), n = end - begin;
  const auto each_row = [&](auto body) {
    for (int64_t i = 0; i < f.sample.count; i++) body(i, i * d + begin);
  };
  f.sample.place(a, sample);
  const int64_t total = f.sample.count;
  if (a.samples == 1) {
    f.sample.x = const_cast<T*>(a.v);  // the only sample's nodes lie in its order
  } else {
    if (team.begin == 0) f.sample.gather_rows(a, a.v, f.sample.x);
    team.meet();
  }
  const T* x = f.sample.x;
  A *q = f.s, *w = f.h;  // s and h take their places later
  if constexpr (kSameType<T, A>) q = f.q, w = f.w_rows;
  team_product<T>(total, d, begin, end, x, a.query, q, f.rows.op, {});
  for (int64_t m = 0; m < a.modalities; m++)
    team_product<T>(f.sample.start[m + 1] - f.sample.start[m], d, begin, end, x + f.sample.start[m] * d,
                    (const char*)a.hidden + m * a.hidden_bytes, w + f.sample.start[m] * d, f.rows.op, {});
  each_row([&](int64_t i, int64_t at) {
    if constexpr (!kSameType<T, A>) {
      copy_row(n, q + at, f.q + at);
      copy_row(n, w + at, f.w_rows + at);
    }
    if (a.q) {
      memcpy((void*)(a.q + f.sample.node[i] * d + begin), f.q + at, size_t(n) * sizeof(T));
      memcpy((void*)(a.w + f.sample.node[i] * d + begin), f.w_rows + at, size_t(n) * sizeof(T));
    }
  });
  BOperand<T> x_operand = f.x, w_operand = f.w;
  if (kReadsRows<T, T> && d % kLanes<T> == 0) {
    x_operand = as_b<T>(total, d, x, d, f.x);
    w_operand = as_b<T>(total, d, f.w_rows, d, f.w);
  } else if (n > 0) {
    const int64_t at = packed_size<T>(total, begin);
    pack_b<T>(total, n, x + begin, d, f.x + at);
    pack_b<T>(total, n, f.w_rows + begin, d, f.w + at);
  }
  const int64_t first = team.first(total, kPanel<T>), last = team.last(total, kPanel<T>);
  if (first < last) pack_bt<T>(d, last - first, x + first * d, d, f.keys + packed_size<T>(d, first));
  team.meet();

  const int64_t lds = round_up(total, kLanes<T>), stop = team.last(total);
  for (int64_t i = team.first(total); i < stop; i += kF2fRows) {
    const int64_t rows = min_of(kF2fRows, stop - i);
    int64_t ld;
    const Op<T>* op = as_rows<T>(rows, d, f.q + i * d, d, f.rows.op, &ld);
    gemm<T>(rows, lds, d, op, ld, f.keys, f.rows.scores, lds);
    for (int64_t k = 0; k < rows; k++) weigh_row(a, f.sample, f.rows.scores + k * lds, i + k, f.rows.keep);
    op = as_rows<T>(rows, total, f.rows.scores, lds, f.rows.weights, &ld);
    Epilogue<A> hidden;
    hidden.bias = a.b1;
    hidden.relu = true;
    gemm<T>(rows, d, total, op, ld, x_operand, f.s + i * d, d);
    gemm<T>(rows, d, total, op, ld, w_operand, f.h + i * d, d, hidden);
    for (int64_t k = 0; a.q && k < rows; k++) {
      copy_row(d, f.s + (i + k) * d, a.s + f.sample.node[i + k] * d);
      copy_row(d, f.h + (i + k) * d, a.h + f.sample.node[i + k] * d);
    }
  }
  team.meet();

  if (n <= 0) return;
  each_row([&](int64_t, int64_t at) { copy_row(n, x + at, f.g + at); });
  Epilogue<A> add, out;
  add.accumulate = true;
  team_product<T>(total, d, begin, end, f.s, a.value, f.g, f.rows.op, add);
  out.bias = a.b2 + begin;
  out.accumulate = !a.dropout.on;
  A* t = a.dropout.on ? f.t : f.g;
  team_product<T>(total, d, begin, end, f.h, a.output, t, f.rows.op, out);
  each_row([&](int64_t i, int64_t at) {
    T* z = a.z + f.sample.node[i] * d + begin;
    if (!a.dropout.on) return copy_row(n, t + at, z);
    dropout_row(a.dropout, f.sample.row[i], a.update_site, begin, n, f.rows.keep);
    over_lanes<T>(n, [&](int64_t j, int64_t k) {
      store_n(z + j, load_n(f.g + at + j, k) + load_n(t + at + j, k) * load_n(f.rows.keep + j, k), k);
    });
  });
}

}  // namespace
