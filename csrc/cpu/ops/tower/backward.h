// Backward pass of one block of samples through one step, and the gradient of one segment's nodes after the last.
//
//   update   d_tail = D(d_out)   d_h = (d_tail output) [h > 0]   d_g = d_out + d_h hidden   d_s = d_g value
//   pair     dP = d_s x^T (dropped as P was)   dS = P (dP - sum P dP)   d_q = dS x   d_x = P^T d_s + dS^T q
//
// `state` carries the gradient of the block's rows down the step. Gradients that a weight's gradient needs go to
// grads.rows as stored; F2L's node gradients wait as factors until every step is done and then cost one product a
// segment.
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
    d_alpha = a.take<Acc<T>>(c.modalities);
    fused = a.take<Acc<T>>(d);
    bytes = a.bytes;
  }
  Acc<T>*state, *wide, *query, *scores, *dropped, *keep, *d_alpha, *fused;
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
          s.d_alpha[p] = dot_row(d, x + row(p), s.fused);
          mean += alpha(p) * s.d_alpha[p];
        }
      for (int64_t p = 0; p < count; p++) {
        const Acc<T> a = alpha(p), score = c.wl ? a * (s.d_alpha[p] - mean) : 0;
        over_lanes<T>(d, [&](int64_t j, int64_t n) {
          Vec<Acc<T>> d_x = load_n(s.fused + j, n) * a;
          if (c.wl) {
            d_x += load_n(c.wl + j, n) * score;
            store_n(sums + j, load_n(sums + j, n) + load_n(x + row(p) + j, n) * score, n);
          }
          store_n(s.state + row(p) + j, d_x, n);
        });
      }
    }
  }
}

// s.state: gradient of the update's result on entry, of its residual on return; returns d_s, the context's, as stored.
template <class T>
T* update_backward(const BlockRows<T>& at, const BackwardScratch<T>& s, const TowerGrads<T>& g, const TowerWeights& w,
                   uint32_t site, const T* h, int64_t first_grad) {
  const TowerCall<T>& c = at.call;
  const int64_t rows = at.rows(), d = c.dim;
  const auto grad = [&](int64_t kind) { return g.rows + ((first_grad + kind) * c.cap + at.first * c.labels) * d; };
  T *d_g = grad(hhmpn::kGradG), *d_h = grad(hhmpn::kGradH), *d_tail = grad(hhmpn::kGradOut);
  if (c.dropout.on) {
    const RowDropout<T> drop{c.dropout, s.keep};
    at.each_pair([&](const Pair& pair) {
      for (int64_t l = 0; l < c.labels; l++) {
        const int64_t r = (pair.row + l) * d;
        drop.scale(c.own_row(pair.modality, at.begin + pair.sample) + uint32_t(l), site, d, s.state + r, d_tail + r);
      }
    });
  } else {
    copy_row(rows * d, s.state, d_tail);
  }
  Epilogue<Acc<T>> after;
  if constexpr (kSameType<T, Acc<T>>) {
    after.gate = {h, d};
    product<T>(rows, d, d_tail, w.output, d_h, s.operand, after);
  } else {
    product<T>(rows, d, d_tail, w.output, s.wide, s.operand);
    over_lanes<T>(rows * d, [&](int64_t j, int64_t n) {
      store_n(d_h + j, load_n(h + j, n) > 0 ? load_n(s.wide + j, n) : Vec<Acc<T>>{}, n);
    });
  }
  after = {};
  after.accumulate = true;
  product<T>(rows, d, d_h, w.hidden, s.state, s.operand, after);
  copy_row(rows * d, s.state, d_g);
  product<T>(rows, d, d_g, w.value, s.wide, s.operand);
  return stored_rows<T>(rows * d, s.wide, s.low);
}

// One pair: from `d_s`, its context's gradient, to its scores', in s.scores; returns the probs that the context read.
template <class T>
const Acc<T>* scores_backward(const TowerCall<T>& c, const BackwardScratch<T>& s, const PairAttention<T>& a,
                              const T* d_s) {
  const int64_t L = c.labels, n = a.n;
  const Acc<T>* probs = a.probs;
  dots<T>({L, n, c.dim}, {d_s, c.dim}, {a.x, c.dim}, {s.scores, n});
  for (int64_t l = 0; l < L; l++) {
    if (c.dropout.on) {
      const RowDropout<T> drop{c.dropout, s.keep};
      drop.scale(a.row + uint32_t(l), a.site, n, probs + l * n, s.dropped + l * n);
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
                              const T* d_s) {
  const TowerCall<T>& c = at.call;
  const int64_t d = c.dim, L = c.labels, first = at.first * L;
  const T *x = at.saved(t, hhmpn::kOut), *q = at.saved(t, hhmpn::kLabelQuery);
  T* d_q = g.rows + (hhmpn::kGradLabelQuery * c.cap + first) * d;
  T* contexts = g.contexts + (c.cap + first) * d;
  at.each_pair([&](const Pair& pair) {
    const int64_t r = pair.row * d;
    PairAttention<T> a;
    a.q = q + r;
    a.x = x + r;
    a.n = L;
    a.mask = c.mask;
    a.row = c.own_row(pair.modality, at.begin + pair.sample);
    a.site = hhmpn::tower_site(hhmpn::kL2lAttention, t);
    a.probs = c.label_probs + (t * c.cap + first + pair.row) * L;
    const Acc<T>* p = scores_backward<T>(c, s, a, d_s + r);
    const Shape square{L, d, L};
    mix<T>(square, {p, 1, L}, {d_s + r, d}, {s.state + r, d}, true);
    mix<T>(square, {s.scores, 1, L}, {a.q, d}, {s.state + r, d}, true);
    const Rows<T> context(contexts + r, s.query), d_query(d_q + r, s.query);
    mix<T>(square, {p, L, 1}, {a.x, d}, {context.wide, d});
    store_rows<T>(L, d, context.wide, context.stored);
    mix<T>(square, {s.scores, L, 1}, {a.x, d}, {d_query.wide, d});
    store_rows<T>(L, d, d_query.wide, d_query.stored);
  });
  Epilogue<Acc<T>> after;
  after.accumulate = true;
  product<T>(at.rows(), d, d_q, g.l2l[t].query, s.state, s.operand, after);
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
    const T* d_s = update_backward<T>(at, s, g, g.l2l[t], hhmpn::tower_site(hhmpn::kL2lUpdate, t),
                                      at.saved(t, hhmpn::kLabelH), hhmpn::kGradLabelG);
    label_attention_backward<T>(at, s, g, t, d_s);
  }
  const T* d_s = update_backward<T>(at, s, g, g.f2l[t], hhmpn::tower_site(hhmpn::kF2lUpdate, t), at.saved(t, hhmpn::kH),
                                    hhmpn::kGradG);
  copy_row(rows * d, d_s, g.d_context + (t * c.cap + first) * d);
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
  at.each_pair([&](const Pair& pair) {
    const int64_t r = pair.row * d, from = c.offsets[pair.segment], n = c.offsets[pair.segment + 1] - from;
    over_lanes<T>(L * d, [&](int64_t j, int64_t w) {
      Acc<T>* to = down + pair.sample * stride + j;
      store_n(to, load_n(to, w) + load_n(s.state + r + j, w), w);
    });
    PairAttention<T> a;
    a.x = c.z + from * d;
    a.n = n;
    a.row = c.shared_row(at.begin + pair.sample);
    a.site = hhmpn::tower_site(hhmpn::kF2lAttention, t) + uint32_t(pair.modality);
    a.probs = c.probs + (t * c.nodes + from) * L;
    const Acc<T>* p = scores_backward<T>(c, s, a, d_s + r);
    const Rows<T> context(contexts + r, s.wide);
    mix<T>({L, d, n}, {p, n, 1}, {a.x, d}, {context.wide, d});
    store_rows<T>(L, d, context.wide, context.stored);
    if (c.has_query) mix<T>({L, d, n}, {s.scores, n, 1}, {a.x, d}, {query + pair.sample * stride, d}, true);
    Acc<T>* factors = g.factors + from * 2 * L * c.steps + t * 2 * L * n;
    copy_row(L * n, p, factors);
    copy_row(L * n, s.scores, factors + L * n);
  });
  if (!c.has_query || t == 0) return;
  T* d_q = g.d_q + at.begin * L * d;
  copy_row(at.label_rows() * d, s.query, d_q);
  Epilogue<Acc<T>> after;
  after.accumulate = true;
  product<T>(at.label_rows(), d, d_q, g.f2l[t].query, down, s.operand, after);
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

// d_z of a segment = sum over t of P_t^T d_s_t + dS_t^T q_t: factors (2 L T, n) transposed, times rows stacked alike.
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
  pack_b<T>(k, d, View{s.rows, d}, s.packed);
  const View<Op<T>> a = as_columns<T>(n, k, View{g.factors + from * k, n}, s.columns);
  const Rows<T> d_z(g.d_z + from * d, s.wide);
  gemm_tn<T>({n, d, k}, a, s.packed, {d_z.wide, d});
  store_rows<T>(n, d, d_z.wide, d_z.stored);
}

}  // namespace
