// Forward pass of one sample, a block of its rows at a time. A sample's nodes are gathered once; its score rows cover all of its modalities, so that every
// product is one large one, and only the softmax sees the segments.
#pragma once
#include "ops/f2f/sample.h"

namespace {

template <class T>
struct ForwardScratch {
  ForwardScratch(Arena a, int64_t d, int64_t longest)
      : sample(a, d, longest),
        keys(a.take<Op<T>>(packed_size<T>(d, longest))),
        x(a.take<Op<T>>(packed_size<T>(longest, d))),
        w(a.take<Op<T>>(packed_size<T>(longest, d))),
        w_rows(a.take<T>(longest * d)),
        rows(a, d, longest),
        q(a.take<T>(kF2fRows * d)),
        s(a.take<Acc<T>>(kF2fRows * d)),
        h(a.take<Acc<T>>(kF2fRows * d)),
        g(a.take<Acc<T>>(kF2fRows * d)),
        bytes(a.bytes) {}
  Sample<T> sample;
  Op<T>*keys, *x, *w;
  T* w_rows;
  RowScratch<T> rows;
  T* q;
  Acc<T>*s, *h, *g;
  BOperand<T> x_operand = nullptr, w_operand = nullptr;
  int64_t bytes;
};

template <class T>
int64_t forward_scratch(int64_t d, int64_t longest) {
  return ForwardScratch<T>(Arena(nullptr), d, longest).bytes;
}

// The scores of row `i` of the sample to dropped, normalised weights, a softmax for each modality.
template <class T>
void weigh_row(const F2fArgs<T>& a, const Sample<T>& sample, Acc<T>* s, int64_t i, Acc<T>* keep) {
  using A = Acc<T>;
  A* lse = a.lse ? a.lse + sample.node[i] * a.modalities : nullptr;
  for (int64_t m = 0; m < a.modalities; m++) {
    const int64_t first = sample.start[m], n = sample.start[m + 1] - first;
    A* p = s + first;
    if (n == 0) {
      if (lse) lse[m] = -A(__builtin_inff());
      continue;
    }
    const A pivot = max_row(n, p), sum = exp_row(n, p, pivot), inverse = A(1) / sum;
    if (lse) lse[m] = pivot + log_of(sum);
    if (a.dropout.on) {
      dropout_row(a.dropout, sample.row[i], a.attention_site + uint32_t(m), 0, n, keep);
      over_lanes<A>(n,
                    [&](int64_t j, int64_t w) { store_n(p + j, load_n(p + j, w) * load_n(keep + j, w) * inverse, w); });
    } else {
      scale_row(n, p, inverse);
    }
  }
}

template <class T>
void forward_block(const F2fArgs<T>& a, ForwardScratch<T>& f, int64_t begin, int64_t rows) {
  using A = Acc<T>;
  const int64_t d = a.d, total = f.sample.count, lds = round_up(total, kLanes<T>);
  const int32_t* node = f.sample.node + begin;
  const T* x = f.sample.x + begin * d;
  int64_t ld;
  const Op<T>* op = as_rows<T>(rows, d, x, d, f.rows.op, &ld);
  gemm_to<T>(rows, d, d, op, ld, (const Op<T>*)a.query, f.q, d, f.g);
  op = as_rows<T>(rows, d, f.q, d, f.rows.op, &ld);
  gemm<T>(rows, lds, d, op, ld, f.keys, f.rows.scores, lds);
  for (int64_t i = 0; i < rows; i++) weigh_row(a, f.sample, f.rows.scores + i * lds, begin + i, f.rows.keep);
  op = as_rows<T>(rows, total, f.rows.scores, lds, f.rows.weights, &ld);
  Epilogue<A> plain, hidden, add, last;
  gemm<T>(rows, d, total, op, ld, f.x_operand, f.s, d, plain);
  hidden.bias = a.b1;
  hidden.relu = true;
  gemm<T>(rows, d, total, op, ld, f.w_operand, f.h, d, hidden);
  copy_row(rows * d, x, f.g);
  add.accumulate = true;
  op = as_rows<T>(rows, d, f.s, d, f.rows.op, &ld);
  gemm<T>(rows, d, d, op, ld, (const Op<T>*)a.value, f.g, d, add);
  if (a.q) {
    for (int64_t i = 0; i < rows; i++) {
      memcpy((void*)(a.q + node[i] * d), f.q + i * d, size_t(d) * sizeof(T));
      copy_row(d, f.s + i * d, a.s + node[i] * d);
      copy_row(d, f.h + i * d, a.h + node[i] * d);
    }
  }
  op = as_rows<T>(rows, d, f.h, d, f.rows.op, &ld);
  last.bias = a.b2;
  last.accumulate = !a.dropout.on;
  A* t = a.dropout.on ? f.s : f.g;  // s is spent
  gemm<T>(rows, d, d, op, ld, (const Op<T>*)a.output, t, d, last);
  for (int64_t i = 0; i < rows; i++) {
    T* z = a.z + node[i] * d;
    if (a.dropout.on) {
      dropout_row(a.dropout, f.sample.row[begin + i], a.update_site, 0, d, f.rows.keep);
      over_lanes<T>(d, [&](int64_t j, int64_t w) {
        store_n(z + j, load_n(f.g + i * d + j, w) + load_n(t + i * d + j, w) * load_n(f.rows.keep + j, w), w);
      });
    } else {
      copy_row(d, t + i * d, z);
    }
  }
}

template <class T>
void forward(const F2fArgs<T>& a, int64_t sample, int64_t begin, int64_t end, char* scratch) {
  const int64_t d = a.d;
  ForwardScratch<T> f(Arena(scratch), d, sample_nodes(a, sample));
  f.sample.gather(a, sample);
  const int64_t total = f.sample.count;
  for (int64_t m = 0; m < a.modalities; m++)
    for (int64_t i = f.sample.start[m]; i < f.sample.start[m + 1]; i += kF2fRows) {
      const int64_t rows = min_of(kF2fRows, f.sample.start[m + 1] - i);
      int64_t ld;
      const Op<T>* op = as_rows<T>(rows, d, f.sample.x + i * d, d, f.rows.op, &ld);
      gemm_to<T>(rows, d, d, op, ld, (const Op<T>*)((const char*)a.hidden + m * a.hidden_bytes), f.w_rows + i * d, d,
                 f.g);
    }
  if (a.w && begin == 0)
    for (int64_t i = 0; i < total; i++)
      memcpy((void*)(a.w + f.sample.node[i] * d), f.w_rows + i * d, size_t(d) * sizeof(T));
  pack_bt<T>(d, total, f.sample.x, d, f.keys);
  f.x_operand = as_b<T>(total, d, f.sample.x, d, f.x);
  f.w_operand = as_b<T>(total, d, f.w_rows, d, f.w);
  for (int64_t i = begin; i < end; i += kF2fRows) forward_block(a, f, i, min_of(kF2fRows, end - i));
}

}  // namespace
