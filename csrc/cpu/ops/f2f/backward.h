// Backward pass of one sample, P recomputed from lse:
//
//   d_tail = D o d_out   d_h = (d_tail output) o [h > 0]   d_s = d_out value
//   dP = d_s X^T + d_h W^T   dS = P o (keep o dP - rowsum a modality)
//   d_q = dS X   d_w = Pd^T d_h   d_v = d_out + Pd^T d_s + dS^T q + d_q query^T + d_w hidden_m
//
// X, W: the sample's v and w. d_tail, d_q and d_w go out for the weight gradients:
//   d_query = v^T d_q   d_value = d_out^T s   d_hidden_m = d_w^T v   d_output = d_tail^T h
#pragma once
#include "ops/f2f/sample.h"

namespace {

template <class T>
struct BackwardScratch {
  BackwardScratch(Arena a, int64_t d, int64_t longest)
      : sample(a, d, longest),
        q(a.take<T>(longest * d)),
        w(a.take<T>(longest * d)),
        d_s(a.take<T>(longest * d)),
        d_h(a.take<T>(longest * d)),
        d_x(a.take<Acc<T>>(longest * d)),
        d_w(a.take<Acc<T>>(longest * d)),
        keys(a.take<Op<T>>(packed_size<T>(d, longest))),
        w_keys(a.take<Op<T>>(packed_size<T>(d, longest))),
        x(a.take<Op<T>>(packed_size<T>(longest, d))),
        rows(a, d, longest),
        d_p(a.take<Acc<T>>(kF2fRows * round_up(longest, kLanes<T>))),
        b(a.take<Op<T>>(packed_size<T>(kF2fRows, d))),
        t(a.take<Acc<T>>(kF2fRows * d)),
        d_out(a.take<T>(kF2fRows * d)),
        bytes(a.bytes) {}
  Sample<T> sample;
  T *q, *w, *d_s, *d_h;
  Acc<T>*d_x, *d_w;
  Op<T>*keys, *w_keys, *x;
  RowScratch<T> rows;
  Acc<T>* d_p;
  Op<T>* b;
  Acc<T>* t;
  T* d_out;
  BOperand<T> x_operand = nullptr;
  int64_t bytes;
};

template <class T>
int64_t backward_scratch(int64_t d, int64_t longest) {
  return BackwardScratch<T>(Arena(nullptr), d, longest).bytes;
}

// d_s and d_h of a block of rows.
template <class T>
void backward_tail(const F2fArgs<T>& a, BackwardScratch<T>& f, int64_t begin, int64_t rows, Acc<T>* d_h_sums) {
  using A = Acc<T>;
  const int64_t d = a.d;
  const int32_t* node = f.sample.node + begin;
  int64_t ld;
  for (int64_t i = 0; i < rows; i++) memcpy((void*)(f.d_out + i * d), a.d_out + node[i] * d, size_t(d) * sizeof(T));
  const Op<T>* op = as_rows<T>(rows, d, f.d_out, d, f.rows.op, &ld);
  gemm_to<T>(rows, d, d, op, ld, (const Op<T>*)a.value, f.d_s + begin * d, d, f.t);
  if (a.dropout.on) {
    for (int64_t i = 0; i < rows; i++) {
      dropout_row(a.dropout, f.sample.row[begin + i], a.update_site, 0, d, f.rows.keep);
      T *d_tail = f.d_out + i * d, *out = a.d_tail + node[i] * d;
      over_lanes<T>(d, [&](int64_t j, int64_t w) {
        const Vec<A> x = load_n(d_tail + j, w) * load_n(f.rows.keep + j, w);
        store_n(d_tail + j, x, w);
        store_n(out + j, x, w);
      });
    }
    op = as_rows<T>(rows, d, f.d_out, d, f.rows.op, &ld);
  }
  gemm<T>(rows, d, d, op, ld, (const Op<T>*)a.output, f.t, d);
  for (int64_t i = 0; i < rows; i++) {
    const T* h = a.h + node[i] * d;
    T* d_h = f.d_h + (begin + i) * d;
    over_lanes<T>(d, [&](int64_t j, int64_t w) {
      const Vec<A> x = load_n(h + j, w) > 0 ? load_n(f.t + i * d + j, w) : Vec<A>{};
      store_n(d_h + j, x, w);
    });
  }
  add_column_sums(rows, d, f.d_h + begin * d, d, d_h_sums);
}

// scores -> Pd, dP -> dS for row `i` of the sample.
template <class T>
void backward_row(const F2fArgs<T>& a, const Sample<T>& sample, Acc<T>* s, Acc<T>* d_p, int64_t i, Acc<T>* keep) {
  using A = Acc<T>;
  for (int64_t m = 0; m < a.modalities; m++) {
    const int64_t first = sample.start[m], n = sample.start[m + 1] - first;
    if (n == 0) continue;
    A *p = s + first, *g = d_p + first;
    const A lse = a.lse[sample.node[i] * a.modalities + m];
    const bool drop = a.dropout.on;
    if (drop) dropout_row(a.dropout, sample.row[i], a.attention_site + uint32_t(m), 0, n, keep);
    Vec<A> sum{};
    over_lanes<A>(n, [&](int64_t j, int64_t w) {
      const Vec<A> e = exp_of(load_n(p + j, w, -A(__builtin_inff())) - lse);
      Vec<A> t = load_n(g + j, w);
      if (drop) {
        t *= load_n(keep + j, w);
        store_n(g + j, t, w);
      }
      sum += e * t;
      store_n(p + j, e, w);
    });
    const A delta = sum_lanes(sum);
    over_lanes<A>(n, [&](int64_t j, int64_t w) {
      const Vec<A> e = load_n(p + j, w);
      store_n(g + j, e * (load_n(g + j, w) - delta), w);
      if (drop) store_n(p + j, e * load_n(keep + j, w), w);
    });
  }
}

template <class T>
void backward_block(const F2fArgs<T>& a, BackwardScratch<T>& f, int64_t begin, int64_t rows) {
  using A = Acc<T>;
  const int64_t d = a.d, total = f.sample.count, lds = round_up(total, kLanes<T>);
  A *s = f.rows.scores, *d_p = f.d_p;
  Epilogue<A> add;
  add.accumulate = true;
  int64_t ld;
  const Op<T>* op = as_rows<T>(rows, d, f.q + begin * d, d, f.rows.op, &ld);
  gemm<T>(rows, lds, d, op, ld, f.keys, s, lds);
  op = as_rows<T>(rows, d, f.d_s + begin * d, d, f.rows.op, &ld);
  gemm<T>(rows, lds, d, op, ld, f.keys, d_p, lds);
  op = as_rows<T>(rows, d, f.d_h + begin * d, d, f.rows.op, &ld);
  gemm<T>(rows, lds, d, op, ld, f.w_keys, d_p, lds, add);
  for (int64_t i = 0; i < rows; i++) backward_row(a, f.sample, s + i * lds, d_p + i * lds, begin + i, f.rows.keep);

  op = as_rows<T>(rows, total, d_p, lds, f.rows.weights, &ld);
  gemm<T>(rows, d, total, op, ld, f.x_operand, f.t, d);

  Epilogue<A> after;
  after.accumulate = begin != 0;
  op = as_columns<T>(total, rows, d_p, lds, f.rows.weights, &ld);
  gemm_tn<T>(total, d, rows, op, ld, as_b<T>(rows, d, f.q + begin * d, d, f.b), f.d_x, d, after);
  op = as_columns<T>(total, rows, s, lds, f.rows.weights, &ld);
  gemm_tn<T>(total, d, rows, op, ld, as_b<T>(rows, d, f.d_s + begin * d, d, f.b), f.d_x, d, add);
  gemm_tn<T>(total, d, rows, op, ld, as_b<T>(rows, d, f.d_h + begin * d, d, f.b), f.d_w, d, after);

  copy_row(rows * d, f.t, f.q + begin * d);  // d_q takes the place of q, which no later block reads
}

template <class T>
void backward(const F2fArgs<T>& a, int64_t sample, char* scratch) {
  using A = Acc<T>;
  const int64_t d = a.d;
  BackwardScratch<T> f(Arena(scratch), d, sample_nodes(a, sample));
  A* d_h_sums = a.d_h_sums + sample * d;
  memset((void*)d_h_sums, 0, size_t(d) * sizeof(A));
  f.sample.gather(a, sample);
  f.sample.gather_rows(a, a.q, f.q);
  f.sample.gather_rows(a, a.w, f.w);
  const int64_t total = f.sample.count;
  for (int64_t i = 0; i < total; i += kF2fRows) backward_tail(a, f, i, min_of(kF2fRows, total - i), d_h_sums);
  pack_bt<T>(d, total, f.sample.x, d, f.keys);
  pack_bt<T>(d, total, f.w, d, f.w_keys);
  f.x_operand = as_b<T>(total, d, f.sample.x, d, f.x);
  for (int64_t i = 0; i < total; i += kF2fRows) backward_block(a, f, i, min_of(kF2fRows, total - i));

  Epilogue<A> add;
  add.accumulate = true;
  int64_t ld;
  for (int64_t i = 0; i < total; i += kF2fRows) {
    const int64_t rows = min_of(kF2fRows, total - i);
    const Op<T>* op = as_rows<T>(rows, d, f.q + i * d, d, f.rows.op, &ld);
    gemm<T>(rows, d, d, op, ld, (const Op<T>*)a.query, f.d_x + i * d, d, add);
  }
  for (int64_t m = 0; m < a.modalities; m++)
    for (int64_t i = f.sample.start[m]; i < f.sample.start[m + 1]; i += kF2fRows) {
      const int64_t rows = min_of(kF2fRows, f.sample.start[m + 1] - i), first = f.sample.node[i];
      T* d_w = a.d_w + first * d;
      copy_row(rows * d, f.d_w + i * d, d_w);
      memcpy((void*)(a.d_q + first * d), f.q + i * d, size_t(rows * d) * sizeof(T));
      const Op<T>* op = as_rows<T>(rows, d, d_w, d, f.rows.op, &ld);
      gemm<T>(rows, d, d, op, ld, (const Op<T>*)((const char*)a.hidden + m * a.hidden_bytes), f.d_x + i * d, d, add);
      over_lanes<T>(rows * d, [&](int64_t j, int64_t w) {
        store_n(a.d_v + first * d + j, load_n(f.d_x + i * d + j, w) + load_n(a.d_out + first * d + j, w), w);
      });
    }
}

}  // namespace
