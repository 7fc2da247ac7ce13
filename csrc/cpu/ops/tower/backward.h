// Backward pass of one block of samples through one step, and the gradient of one segment's nodes after the last.
//
//   update   d_tail = D(d_out)   d_h = (d_tail output) [h > 0]   d_g = d_out + d_h hidden   ds = d_g value
//   pair     dP = ds x^T (dropped as P was)   dS = P (dP - sum P dP)   dq = dS x   dx = P^T ds + dS^T q
//
// `state` carries the gradient of the block's rows down the step. Gradients that a weight's gradient needs go to grads.rows
// as stored; F2L's node gradients wait as factors until every step is done and then cost one product a segment.
#pragma once
#include "ops/tower/rows.h"

namespace {

template <class T>
struct BackwardScratch {
  BackwardScratch(Arena a, const TowerCall<T>& c, int64_t samples, int64_t pairs) {
    const int64_t d = c.dim, rows = max_of(pairs, samples) * c.labels, longest = max_of(c.longest, c.labels);
    state = a.take<Acc<T>>(rows * d);
    wide = a.take<Acc<T>>(rows * d);
    query = a.take<Acc<T>>(max_of(samples, 1) * c.labels * d);
    low = a.take<T>(kSameType<T, Acc<T>> ? 0 : rows * d);
    operand = a.take<Op<T>>(operand_count<T>(rows, d));
    scores = a.take<Acc<T>>(c.labels * longest);
    dropped = a.take<Acc<T>>(c.labels * longest);
    keep = a.take<Acc<T>>(round_up(max_of(longest, d), kPhiloxColumns));
    dot = a.take<Acc<T>>(c.modalities);
    fused = a.take<Acc<T>>(d);
    bytes = a.bytes;
  }
  Acc<T>*state, *wide, *query, *scores, *dropped, *keep, *dot, *fused;
  T* low;
  Op<T>* operand;
  int64_t bytes;
};

// The rows as stored: `wide` itself where that is the storage type, else a copy in `low`.
template <class T>
T* stored_rows(int64_t count, Acc<T>* wide, T* low) {
  if constexpr (kSameType<T, Acc<T>>) {
    return wide;
  } else {
    copy_row(count, wide, low);
    return low;
  }
}

// Readout: from the gradients of logits and of the fused states to that of x (rows, d), into s.state.
template <class T>
void readout_backward(const BlockRows<T>& at, const BackwardScratch<T>& s, const TowerGrads<T>& g,
                      const TowerBlock& block, int64_t step, const T* x) {
  const TowerCall<T>& c = at.call;
  const int64_t d = c.dim, L = c.labels;
  Acc<T>* sums = g.sums + block.index * (1 + 3 * L) * d;
  for (int64_t b = 0; b < at.samples; b++) {
    const int64_t p0 = c.pair_at[at.begin + b] - at.first, count = c.pair_at[at.begin + b + 1] - at.first - p0;
    for (int64_t l = 0; l < L; l++) {
      const auto row = [&](int64_t p) { return ((p0 + p) * L + l) * d; };
      const auto alpha = [&](int64_t p) { return c.alpha[step * c.cap + (at.first + p0 + p) * L + l]; };
      const int64_t label_row = (step * c.samples + at.begin + b) * L + l;
      Acc<T> logit;
      copy_row(1, g.d_logits + label_row, &logit);
      const T* fused = c.fused + label_row * d;
      const Acc<T>* down = g.state + ((at.begin + b) * L + l) * d;
      Acc<T>* wo = sums + (1 + l) * d;
      over_lanes<T>(d, [&](int64_t j, int64_t n) {
        store_n(wo + j, load_n(wo + j, n) + load_n(fused + j, n) * logit, n);
        store_n(s.fused + j, load_n(down + j, n) + load_n(c.wo + l * d + j, n) * logit, n);
      });
      Acc<T> mean = 0;
      if (c.wl)
        for (int64_t p = 0; p < count; p++) {
          Vec<Acc<T>> sum{};
          over_lanes<T>(d, [&](int64_t j, int64_t n) { sum += load_n(x + row(p) + j, n) * load_n(s.fused + j, n); });
          s.dot[p] = sum_lanes(sum);
          mean += alpha(p) * s.dot[p];
        }
      for (int64_t p = 0; p < count; p++) {
        const Acc<T> a = alpha(p), score = c.wl ? a * (s.dot[p] - mean) : 0;
        over_lanes<T>(d, [&](int64_t j, int64_t n) {
          Vec<Acc<T>> dx = load_n(s.fused + j, n) * a;
          if (c.wl) {
            dx += load_n(c.wl + j, n) * score;
            store_n(sums + j, load_n(sums + j, n) + load_n(x + row(p) + j, n) * score, n);
          }
          store_n(s.state + row(p) + j, dx, n);
        });
      }
    }
  }
}

// s.state: gradient of the update's result on entry, of its residual on return; returns the context's gradient as stored.
template <class T>
T* update_backward(const BlockRows<T>& at, const BackwardScratch<T>& s, const TowerGrads<T>& g, const TowerWeights& w,
                   uint32_t site, const T* hidden, int64_t first_grad) {
  const TowerCall<T>& c = at.call;
  const int64_t rows = at.rows(), d = c.dim;
  const auto grad = [&](int64_t kind) { return g.rows + ((first_grad + kind) * c.cap + at.first * c.labels) * d; };
  T *mid = grad(hhmpn::kGradMid), *inner = grad(hhmpn::kGradHidden), *out = grad(hhmpn::kGradOut);
  if (c.dropout.on) {
    const RowDropout<T> drop{c.dropout, s.keep};
    at.each_pair([&](int64_t row, int64_t b, int64_t m, int64_t) {
      for (int64_t l = 0; l < c.labels; l++)
        drop.scale(c.own_row(m, at.begin + b) + uint32_t(l), site, d, s.state + (row + l) * d, out + (row + l) * d);
    });
  } else {
    copy_row(rows * d, s.state, out);
  }
  Epilogue<Acc<T>> after;
  if constexpr (kSameType<T, Acc<T>>) {
    after.gate = hidden;
    after.ld_gate = d;
    product<T>(rows, d, out, w.output, inner, s.operand, after);
  } else {
    product<T>(rows, d, out, w.output, s.wide, s.operand);
    over_lanes<T>(rows * d, [&](int64_t j, int64_t n) {
      store_n(inner + j, load_n(hidden + j, n) > 0 ? load_n(s.wide + j, n) : Vec<Acc<T>>{}, n);
    });
  }
  after = {};
  after.accumulate = true;
  product<T>(rows, d, inner, w.hidden, s.state, s.operand, after);
  copy_row(rows * d, s.state, mid);
  product<T>(rows, d, mid, w.value, s.wide, s.operand);
  return stored_rows<T>(rows * d, s.wide, s.low);
}

// One pair: the gradient `ds` of its context to that of its scores, in s.scores; returns the probs as the context read them.
template <class T>
const Acc<T>* scores_backward(const TowerCall<T>& c, const BackwardScratch<T>& s, const Acc<T>* probs, const T* x,
                              int64_t n, const T* ds, uint32_t first_row, uint32_t site) {
  const int64_t L = c.labels;
  dots<T>(L, n, c.dim, ds, c.dim, x, c.dim, s.scores, n);
  for (int64_t l = 0; l < L; l++) {
    if (c.dropout.on) {
      const RowDropout<T> drop{c.dropout, s.keep};
      drop.scale(first_row + uint32_t(l), site, n, probs + l * n, s.dropped + l * n);
      over_lanes<T>(n, [&](int64_t j, int64_t w) {
        store_n(s.scores + l * n + j, load_n(s.scores + l * n + j, w) * load_n(s.keep + j, w), w);
      });
    }
    softmax_row_backward(n, probs + l * n, s.scores + l * n);
  }
  return c.dropout.on ? s.dropped : probs;
}

template <class T>
void label_attention_backward(const BlockRows<T>& at, const BackwardScratch<T>& s, const TowerGrads<T>& g, int64_t t,
                              const T* ds) {
  const TowerCall<T>& c = at.call;
  const int64_t d = c.dim, L = c.labels, first = at.first * L;
  const T *x = at.saved(t, hhmpn::kOut), *q = at.saved(t, hhmpn::kLabelQuery);
  T* dq = g.rows + (hhmpn::kGradLabelQuery * c.cap + first) * d;
  T* context = g.contexts + (c.cap + first) * d;
  at.each_pair([&](int64_t row, int64_t b, int64_t m, int64_t) {
    const int64_t r = row * d;
    const Acc<T>* probs = c.label_probs + (t * c.cap + first + row) * L;
    const Acc<T>* p = scores_backward<T>(c, s, probs, x + r, L, ds + r, c.own_row(m, at.begin + b),
                                         hhmpn::tower_site(hhmpn::kL2lAttention, t));
    mix<T>(L, L, d, p, 1, L, ds + r, d, s.state + r, d, true);
    mix<T>(L, L, d, s.scores, 1, L, q + r, d, s.state + r, d, true);
    Acc<T>* wide = wide_of<T>(context + r, s.query);
    mix<T>(L, L, d, p, L, 1, x + r, d, wide, d);
    store_rows<T>(L, d, wide, context + r);
    wide = wide_of<T>(dq + r, s.query);
    mix<T>(L, L, d, s.scores, L, 1, x + r, d, wide, d);
    store_rows<T>(L, d, wide, dq + r);
  });
  Epilogue<Acc<T>> after;
  after.accumulate = true;
  product<T>(at.rows(), d, dq, g.l2l[t].query, s.state, s.operand, after);
}

template <class T>
int64_t backward_scratch(const TowerCall<T>& c, int64_t samples, int64_t pairs) {
  return BackwardScratch<T>(Arena(nullptr), c, samples, pairs).bytes;
}

template <class T>
void backward_block(const TowerCall<T>& c, const TowerGrads<T>& g, const TowerBlock& block, int64_t t, char* scratch) {
  const BlockRows<T> at(c, block);
  const BackwardScratch<T> s(Arena(scratch), c, at.samples, at.pairs);
  const int64_t d = c.dim, L = c.labels, rows = at.rows(), first = at.first * L;
  readout_backward<T>(at, s, g, block, t, at.saved(t, c.has_l2l ? hhmpn::kLabelOut : hhmpn::kOut));
  if (c.has_l2l) {
    const T* ds = update_backward<T>(at, s, g, g.l2l[t], hhmpn::tower_site(hhmpn::kL2lUpdate, t),
                                     at.saved(t, hhmpn::kLabelHidden), hhmpn::kGradLabelMid);
    label_attention_backward<T>(at, s, g, t, ds);
  }
  const T* ds =
      update_backward<T>(at, s, g, g.f2l[t], hhmpn::tower_site(hhmpn::kF2lUpdate, t), at.saved(t, hhmpn::kHidden), 0);
  copy_row(rows * d, ds, g.d_context + (t * c.cap + first) * d);
  // The label states of a sample feed every pair of it; at step 0 those of the block feed every sample of it.
  Acc<T>* sums = g.sums + (block.index * (1 + 3 * L) + 1 + L) * d;
  Acc<T>* down = t == 0 ? sums : g.state + at.begin * L * d;
  Acc<T>* query = t == 0 ? sums + L * d : s.query;
  const int64_t stride = t == 0 ? 0 : L * d;
  if (t > 0)
    over_lanes<T>(at.label_rows() * d, [&](int64_t j, int64_t n) {
      store_n(down + j, Vec<Acc<T>>{}, n);
      store_n(query + j, Vec<Acc<T>>{}, n);
    });
  T* contexts = g.contexts + first * d;
  at.each_pair([&](int64_t row, int64_t b, int64_t m, int64_t segment) {
    const int64_t r = row * d, from = c.offsets[segment], n = c.offsets[segment + 1] - from;
    over_lanes<T>(L * d, [&](int64_t j, int64_t w) {
      Acc<T>* to = down + b * stride + j;
      store_n(to, load_n(to, w) + load_n(s.state + r + j, w), w);
    });
    const T* x = c.z + from * d;
    const Acc<T>* p =
        scores_backward<T>(c, s, c.probs + (t * c.nodes + from) * L, x, n, ds + r, c.shared_row(at.begin + b),
                           hhmpn::tower_site(hhmpn::kF2lAttention, t) + uint32_t(m));
    Acc<T>* wide = wide_of<T>(contexts + r, s.wide);
    mix<T>(L, n, d, p, n, 1, x, d, wide, d);
    store_rows<T>(L, d, wide, contexts + r);
    if (c.has_query) mix<T>(L, n, d, s.scores, n, 1, x, d, query + b * stride, d, true);
    Acc<T>* factors = g.factors + from * 2 * L * c.steps + t * 2 * L * n;
    copy_row(L * n, p, factors);
    copy_row(L * n, s.scores, factors + L * n);
  });
  if (!c.has_query || t == 0) return;
  T* dq = g.d_q + at.begin * L * d;
  copy_row(at.label_rows() * d, s.query, dq);
  Epilogue<Acc<T>> after;
  after.accumulate = true;
  product<T>(at.label_rows(), d, dq, g.f2l[t].query, down, s.operand, after);
}

template <class T>
struct NodesScratch {
  NodesScratch(Arena a, const TowerCall<T>& c) {
    const int64_t k = 2 * c.labels * c.steps, d = c.dim;
    rows = a.take<T>(k * d);
    packed = a.take<Op<T>>(packed_size<T>(k, d));
    columns = a.take<Op<T>>(kSameType<Acc<T>, Op<T>> ? 0 : operand_width<T>(k) * round_up(c.longest, kLanes<T>));
    wide = a.take<Acc<T>>(kSameType<T, Acc<T>> ? 0 : c.longest * d);
    bytes = a.bytes;
  }
  T* rows;
  Op<T>*packed, *columns;
  Acc<T>* wide;
  int64_t bytes;
};

template <class T>
int64_t nodes_scratch(const TowerCall<T>& c) {
  return NodesScratch<T>(Arena(nullptr), c).bytes;
}

// dz of a segment = sum over t of P_t^T ds_t + dS_t^T q_t: factors (2 L T, n) transposed, times the rows stacked alike.
template <class T>
void nodes_backward(const TowerCall<T>& c, const TowerGrads<T>& g, int64_t sample, int64_t pair, char* scratch) {
  const NodesScratch<T> s(Arena(scratch), c);
  const int64_t d = c.dim, L = c.labels, k = 2 * L * c.steps, segment = c.pair_modality[pair] * c.samples + sample;
  const int64_t from = c.offsets[segment], n = c.offsets[segment + 1] - from;
  if (n == 0) return;
  for (int64_t t = 0; t < c.steps; t++) {
    T* to = s.rows + t * 2 * L * d;
    memcpy(to, g.d_context + (t * c.cap + pair * L) * d, size_t(L * d) * sizeof(T));
    if (c.has_query) memcpy(to + L * d, c.queries + c.query_row(t, sample) * d, size_t(L * d) * sizeof(T));
    else memset(to + L * d, 0, size_t(L * d) * sizeof(T));
  }
  pack_b<T>(k, d, s.rows, d, s.packed);
  int64_t lda;
  const Op<T>* a = as_columns<T>(n, k, g.factors + from * k, n, s.columns, &lda);
  T* z = g.d_z + from * d;
  Acc<T>* wide = wide_of<T>(z, s.wide);
  gemm_tn<T>(n, d, k, a, lda, s.packed, wide, d);
  store_rows<T>(n, d, wide, z);
}

}  // namespace
