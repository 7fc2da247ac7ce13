// Per-ISA side of f2f.h, backward of one sample, P recomputed from lse:
//
//   dt = D o dz   dh = (dt Wb) o [r > 0]   ds = dz Wv   dP = ds X^T + dh W^T   dS = P o (keep o dP - rowsum a modality)
//   dq = dS X   dw = Pd^T dh   dv = dz + Pd^T ds + dS^T q + dq A^T + dw C_m
//
// X, W: the sample's v and w. dt, dq, dw go out for the weight gradients: dA = v^T dq, dC_m = dw^T v, dWv = dz^T s, dWb = dt^T r.
#pragma once

namespace {

template <class T>
struct BackwardScratch {
  BackwardScratch(Arena a, int64_t d, int64_t longest)
      : sample(a, d, longest),
        q(a.take<T>(longest * d)),
        w(a.take<T>(longest * d)),
        ds(a.take<T>(longest * d)),
        dh(a.take<T>(longest * d)),
        dx(a.take<Acc<T>>(longest * d)),
        dw(a.take<Acc<T>>(longest * d)),
        keys(a.take<Op<T>>(packed_size<T>(d, longest))),
        w_keys(a.take<Op<T>>(packed_size<T>(d, longest))),
        x(a.take<Op<T>>(packed_size<T>(longest, d))),
        rows(a, d, longest),
        dp(a.take<Acc<T>>(kF2fRows * round_up(longest, kLanes<T>))),
        b(a.take<Op<T>>(packed_size<T>(kF2fRows, d))),
        t(a.take<Acc<T>>(kF2fRows * d)),
        dz(a.take<T>(kF2fRows * d)),
        bytes(a.bytes) {}
  Sample<T> sample;
  T *q, *w, *ds, *dh;
  Acc<T>*dx, *dw;
  Op<T>*keys, *w_keys, *x;
  RowScratch<T> rows;
  Acc<T>* dp;
  Op<T>* b;
  Acc<T>* t;
  T* dz;
  BOperand<T> x_operand = nullptr;
  int64_t bytes;
};

template <class T>
int64_t backward_scratch(int64_t d, int64_t longest) {
  return BackwardScratch<T>(Arena(nullptr), d, longest).bytes;
}

// ds and dh of a block of rows.
template <class T>
void backward_tail(const F2fArgs<T>& a, BackwardScratch<T>& f, int64_t begin, int64_t rows, Acc<T>* h_sums) {
  using A = Acc<T>;
  const int64_t d = a.d;
  const int32_t* node = f.sample.node + begin;
  int64_t ld;
  for (int64_t i = 0; i < rows; i++) memcpy((void*)(f.dz + i * d), a.dz + node[i] * d, size_t(d) * sizeof(T));
  const Op<T>* op = as_rows<T>(rows, d, f.dz, d, f.rows.op, &ld);
  gemm_to<T>(rows, d, d, op, ld, (const Op<T>*)a.wv, f.ds + begin * d, d, f.t);
  if (a.dropout.on) {
    for (int64_t i = 0; i < rows; i++) {
      dropout_row(a.dropout, f.sample.row[begin + i], a.update_site, 0, d, f.rows.keep);
      T *dt = f.dz + i * d, *out = a.dt + node[i] * d;
      over_lanes<T>(d, [&](int64_t j, int64_t w) {
        const Vec<A> x = load_n(dt + j, w) * load_n(f.rows.keep + j, w);
        store_n(dt + j, x, w);
        store_n(out + j, x, w);
      });
    }
    op = as_rows<T>(rows, d, f.dz, d, f.rows.op, &ld);
  }
  gemm<T>(rows, d, d, op, ld, (const Op<T>*)a.wb, f.t, d);
  for (int64_t i = 0; i < rows; i++) {
    const T* r = a.r + node[i] * d;
    T* dh = f.dh + (begin + i) * d;
    over_lanes<T>(d, [&](int64_t j, int64_t w) {
      const Vec<A> x = load_n(r + j, w) > 0 ? load_n(f.t + i * d + j, w) : Vec<A>{};
      store_n(dh + j, x, w);
    });
  }
  add_column_sums(rows, d, f.dh + begin * d, d, h_sums);
}

// scores -> Pd, dP -> dS for row `i` of the sample.
template <class T>
void backward_row(const F2fArgs<T>& a, const Sample<T>& sample, Acc<T>* s, Acc<T>* dp, int64_t i, Acc<T>* keep) {
  using A = Acc<T>;
  for (int64_t m = 0; m < a.modalities; m++) {
    const int64_t first = sample.start[m], n = sample.start[m + 1] - first;
    if (n == 0) continue;
    A *p = s + first, *g = dp + first;
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
  A *s = f.rows.scores, *dp = f.dp;
  Epilogue<A> add;
  add.accumulate = true;
  int64_t ld;
  const Op<T>* op = as_rows<T>(rows, d, f.q + begin * d, d, f.rows.op, &ld);
  gemm<T>(rows, lds, d, op, ld, f.keys, s, lds);
  op = as_rows<T>(rows, d, f.ds + begin * d, d, f.rows.op, &ld);
  gemm<T>(rows, lds, d, op, ld, f.keys, dp, lds);
  op = as_rows<T>(rows, d, f.dh + begin * d, d, f.rows.op, &ld);
  gemm<T>(rows, lds, d, op, ld, f.w_keys, dp, lds, add);
  for (int64_t i = 0; i < rows; i++) backward_row(a, f.sample, s + i * lds, dp + i * lds, begin + i, f.rows.keep);

  op = as_rows<T>(rows, total, dp, lds, f.rows.weights, &ld);
  gemm<T>(rows, d, total, op, ld, f.x_operand, f.t, d);

  Epilogue<A> after;
  after.accumulate = begin != 0;
  op = as_columns<T>(total, rows, dp, lds, f.rows.weights, &ld);
  gemm_tn<T>(total, d, rows, op, ld, as_b<T>(rows, d, f.q + begin * d, d, f.b), f.dx, d, after);
  op = as_columns<T>(total, rows, s, lds, f.rows.weights, &ld);
  gemm_tn<T>(total, d, rows, op, ld, as_b<T>(rows, d, f.ds + begin * d, d, f.b), f.dx, d, add);
  gemm_tn<T>(total, d, rows, op, ld, as_b<T>(rows, d, f.dh + begin * d, d, f.b), f.dw, d, after);

  copy_row(rows * d, f.t, f.q + begin * d);  // dq takes the place of q, which no later block reads
}

template <class T>
void backward(const F2fArgs<T>& a, int64_t sample, char* scratch) {
  using A = Acc<T>;
  const int64_t d = a.d;
  BackwardScratch<T> f(Arena(scratch), d, sample_nodes(a, sample));
  A* h_sums = a.h_sums + sample * d;
  memset((void*)h_sums, 0, size_t(d) * sizeof(A));
  f.sample.gather(a, sample);
  f.sample.gather_rows(a, a.q, f.q);
  f.sample.gather_rows(a, a.w, f.w);
  const int64_t total = f.sample.count;
  for (int64_t i = 0; i < total; i += kF2fRows) backward_tail(a, f, i, min_of(kF2fRows, total - i), h_sums);
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
    gemm<T>(rows, d, d, op, ld, (const Op<T>*)a.a, f.dx + i * d, d, add);
  }
  for (int64_t m = 0; m < a.modalities; m++)
    for (int64_t i = f.sample.start[m]; i < f.sample.start[m + 1]; i += kF2fRows) {
      const int64_t rows = min_of(kF2fRows, f.sample.start[m + 1] - i), first = f.sample.node[i];
      T* dw = a.dw + first * d;
      copy_row(rows * d, f.dw + i * d, dw);
      memcpy((void*)(a.dq + first * d), f.q + i * d, size_t(rows * d) * sizeof(T));
      const Op<T>* op = as_rows<T>(rows, d, dw, d, f.rows.op, &ld);
      gemm<T>(rows, d, d, op, ld, (const Op<T>*)((const char*)a.c + m * a.c_bytes), f.dx + i * d, d, add);
      over_lanes<T>(rows * d, [&](int64_t j, int64_t w) {
        store_n(a.dv + first * d + j, load_n(f.dx + i * d + j, w) + load_n(a.dz + first * d + j, w), w);
      });
    }
}

}  // namespace
