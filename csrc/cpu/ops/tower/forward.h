// Forward pass of one block of samples through every step.
#pragma once
#include "ops/tower/rows.h"

namespace {

// Three row buffers serve every intermediate of a step: each dies before its place is taken.
constexpr int kContextSlot = 0, kLabelContextSlot = 1;
constexpr int kSlotOf[hhmpn::kTowerKinds] = {1, 0, 2, 0, 0, 1, 2};

// Rows that a team shares, then each member's own.
template <class T>
struct ForwardScratch {
  ForwardScratch(Arena a, const TowerCall<T>& c, int64_t samples, int64_t pairs, const hhmpn::Team& team) {
    const int64_t d = c.dim, rows = pairs * c.labels, label_rows = max_of(samples, 1) * c.labels;
    const bool saves = c.states != nullptr;
    for (int i = 0; i < 3; i++) slots[i] = a.take<T>(saves && i == 2 ? 0 : rows * d);
    q = a.take<T>(label_rows * d);
    u = a.take<T>(label_rows * d);
    const bool own = !kSameType<T, Acc<T>>;
    state = a.take<Acc<T>>(own ? rows * d : 0);
    fused = a.take<Acc<T>>(own ? label_rows * d : 0);
    wide = a.take<Acc<T>>(own || c.dropout.on ? max_of(rows, label_rows) * d : 0);
    Arena one(nullptr);
    take_own(one, c, max_of(rows, label_rows));
    bytes = a.bytes + team.size * one.bytes;
    a.bytes += team.begin * one.bytes;
    take_own(a, c, max_of(rows, label_rows));
  }
  void take_own(Arena& a, const TowerCall<T>& c, int64_t rows) {
    const int64_t columns = max_of(max_of(c.longest, c.labels), c.dim);
    operand = a.take<Op<T>>(operand_count<T>(rows, c.dim));
    probs = a.take<Acc<T>>(c.labels * max_of(c.longest, c.labels));
    dropped = a.take<Acc<T>>(c.labels * max_of(c.longest, c.labels));
    keep = a.take<Acc<T>>(round_up(columns, kPhiloxColumns));
    alpha = a.take<Acc<T>>(c.modalities);
  }
  T* slots[3];
  T *q, *u;
  Acc<T>*state, *fused, *wide, *probs, *dropped, *keep, *alpha;
  Op<T>* operand;
  int64_t bytes;
};

// g = residual + s value^T, h = relu(g hidden^T + b1), out = g + D(h output^T + b2); wides as wide_of gives them.
template <class T>
void update_forward(const BlockRows<T>& at, const ForwardScratch<T>& s, const TowerWeights& w, uint32_t site,
                    const T* context, const Acc<T>* residual, T* mid, T* hidden, T* out) {
  const TowerCall<T>& c = at.call;
  const int64_t rows = at.rows(), d = c.dim;
  Acc<T>* mid_wide = wide_of<T>(mid, s.state);
  Acc<T>* out_wide = wide_of<T>(out, s.state);
  Epilogue<Acc<T>> after;
  after.add = residual;
  after.ld_add = d;
  product_to<T>(rows, d, at.own, at.team, context, w.value, mid_wide, mid, s.operand, after);
  after = {};
  after.bias = (const Acc<T>*)w.b1;
  after.relu = true;
  product_to<T>(rows, d, at.own, at.team, mid, w.hidden, wide_of<T>(hidden, s.wide), hidden, s.operand, after);
  after = {};
  after.bias = (const Acc<T>*)w.b2;
  if (!c.dropout.on) {
    after.add = mid_wide;
    after.ld_add = d;
    return product_to<T>(rows, d, at.own, at.team, hidden, w.output, out_wide, out, s.operand, after);
  }
  product<T>(rows, d, hidden, w.output, s.wide, s.operand, after);
  const RowDropout<T> drop{c.dropout, s.keep};
  at.each_pair([&](int64_t row, int64_t b, int64_t m, int64_t) {
    for (int64_t l = 0; l < c.labels; l++) {
      const int64_t r = (row + l) * d;
      drop.scale(c.own_row(m, at.begin + b) + uint32_t(l), site, d, s.wide + r, s.wide + r);
      over_lanes<T>(d, [&](int64_t j, int64_t n) {
        store_n(out_wide + r + j, load_n(mid_wide + r + j, n) + load_n(s.wide + r + j, n), n);
      });
    }
  });
  store_rows<T>(rows, d, out_wide, out);
}

// Labels [begin, end) of `probs` (L, n) of one pair, normalised; returns it as the context reads it, dropped where dropout is on.
template <class T>
const Acc<T>* pair_probs(const TowerCall<T>& c, const ForwardScratch<T>& s, int64_t begin, int64_t end, const T* q,
                         const T* x, int64_t n, const bool* mask, uint32_t first_row, uint32_t site, Acc<T>* probs) {
  if (q) {
    dots<T>(end - begin, n, c.dim, q + begin * c.dim, c.dim, x, c.dim, probs + begin * n, n);
    for (int64_t l = begin; l < end; l++) softmax_row(n, probs + l * n, mask ? mask + l * n : nullptr);
  } else {
    for (int64_t i = begin * n; i < end * n; i++) probs[i] = Acc<T>(1) / Acc<T>(n);
  }
  if (!c.dropout.on) return probs;
  const RowDropout<T> drop{c.dropout, s.keep};
  for (int64_t l = begin; l < end; l++) drop.scale(first_row + uint32_t(l), site, n, probs + l * n, s.dropped + l * n);
  return s.dropped;
}

// Eqs 15-17 for every sample of the block: x (rows, d) -> fused (label_rows, d) and logits.
template <class T>
void readout_forward(const BlockRows<T>& at, const ForwardScratch<T>& s, int64_t step, const Acc<T>* x, Acc<T>* fused) {
  const TowerCall<T>& c = at.call;
  const int64_t d = c.dim, L = c.labels, from = at.team.first(at.label_rows()), to = at.team.last(at.label_rows());
  for (int64_t b = 0; b < at.samples; b++) {
    const int64_t p0 = c.pair_at[at.begin + b] - at.first, count = c.pair_at[at.begin + b + 1] - at.first - p0;
    for (int64_t l = max_of(from - b * L, 0); l < min_of(to - b * L, L); l++) {
      const auto row = [&](int64_t p) { return ((p0 + p) * L + l) * d; };
      for (int64_t p = 0; p < count; p++) {
        if (!c.wl) {
          s.alpha[p] = 1;
          continue;
        }
        Vec<Acc<T>> sum{};
        over_lanes<T>(d, [&](int64_t j, int64_t n) { sum += load_n(x + row(p) + j, n) * load_n(c.wl + j, n); });
        s.alpha[p] = sum_lanes(sum);
      }
      if (c.wl) softmax_row(count, s.alpha, nullptr);
      if (c.alpha)
        for (int64_t p = 0; p < count; p++) c.alpha[step * c.cap + (at.first + p0 + p) * L + l] = s.alpha[p];
      Vec<Acc<T>> logit{};
      over_lanes<T>(d, [&](int64_t j, int64_t n) {
        Vec<Acc<T>> sum{};
        for (int64_t p = 0; p < count; p++) sum += load_n(x + row(p) + j, n) * s.alpha[p];
        logit += sum * load_n(c.wo + l * d + j, n);
        store_n(fused + (b * L + l) * d + j, sum, n);
      });
      const Acc<T> sum = sum_lanes(logit);
      copy_row(1, &sum, c.logits + (step * c.samples + at.begin + b) * L + l);
    }
  }
}

template <class T>
int64_t forward_scratch(const TowerCall<T>& c, int64_t samples, int64_t pairs, int64_t members) {
  return ForwardScratch<T>(Arena(nullptr), c, samples, pairs, {0, 1, members}).bytes;
}

template <class T>
void forward_block(const TowerCall<T>& c, const TowerBlock& block, const hhmpn::Team& team, char* scratch) {
  const BlockRows<T> at(c, block, team);
  const ForwardScratch<T> s(Arena(scratch), c, at.samples, at.pairs, team);
  const int64_t d = c.dim, L = c.labels, rows = at.rows();
  const T* u = c.label_embedding;
  const Acc<T>* u_wide = nullptr;  // null at step 0, where every sample starts from the label embedding
  for (int64_t t = 0; t < c.steps; t++) {
    const auto kind = [&](int64_t k) { return c.states ? at.saved(t, k) : s.slots[kSlotOf[k]]; };
    const int64_t shared_rows = t == 0 ? L : at.label_rows(), stride = t == 0 ? 0 : L * d;
    T* q = c.has_query ? s.q : nullptr;
    if (c.has_query) {
      if (c.queries && (t > 0 || block.index == 0)) q = c.queries + c.query_row(t, at.begin) * d;
      product_to<T>(shared_rows, d, at.own, team, u, c.f2l[t].query, wide_of<T>(q, s.wide), q, s.operand);
    }
    // F2L
    T* context = s.slots[kContextSlot];
    Acc<T>* context_wide = wide_of<T>(context, s.wide);
    Acc<T>* mid_wide = wide_of<T>(kind(hhmpn::kMid), s.state);
    at.each_part([&](int64_t row, int64_t b, int64_t m, int64_t segment, int64_t low, int64_t high) {
      const int64_t from = c.offsets[segment], n = c.offsets[segment + 1] - from, r = (row + low) * d,
                    count = high - low;
      const T* x = c.z + from * d;
      Acc<T>* probs = c.probs ? c.probs + (t * c.nodes + from) * L : s.probs;
      const Acc<T>* p =
          pair_probs<T>(c, s, low, high, q ? q + b * stride : nullptr, x, n, nullptr, c.shared_row(at.begin + b),
                        hhmpn::tower_site(hhmpn::kF2lAttention, t) + uint32_t(m), probs);
      mix<T>(count, n, d, p + low * n, n, 1, x, d, context_wide + r, d);
      if (t == 0) copy_row(count * d, u + low * d, mid_wide + r);
      else copy_row(count * d, u_wide + b * stride + low * d, mid_wide + r);
      store_rows<T>(count, d, context_wide + r, context + r);
    });
    team.meet();
    update_forward<T>(at, s, c.f2l[t], hhmpn::tower_site(hhmpn::kF2lUpdate, t), context, mid_wide, kind(hhmpn::kMid),
                      kind(hhmpn::kHidden), kind(hhmpn::kOut));
    T* last = kind(hhmpn::kOut);
    // L2L
    if (c.has_l2l) {
      T* query = kind(hhmpn::kLabelQuery);
      product_to<T>(rows, d, at.own, team, last, c.l2l[t].query, wide_of<T>(query, s.wide), query, s.operand);
      context = s.slots[kLabelContextSlot];
      context_wide = wide_of<T>(context, s.wide);
      at.each_part([&](int64_t row, int64_t b, int64_t m, int64_t, int64_t low, int64_t high) {
        const int64_t r = (row + low) * d;
        Acc<T>* probs = c.label_probs ? c.label_probs + (t * c.cap + at.first * L + row) * L : s.probs;
        const Acc<T>* p = pair_probs<T>(c, s, low, high, query + row * d, last + row * d, L, c.mask,
                                        c.own_row(m, at.begin + b), hhmpn::tower_site(hhmpn::kL2lAttention, t), probs);
        mix<T>(high - low, L, d, p + low * L, L, 1, last + row * d, d, context_wide + r, d);
        store_rows<T>(high - low, d, context_wide + r, context + r);
      });
      team.meet();
      update_forward<T>(at, s, c.l2l[t], hhmpn::tower_site(hhmpn::kL2lUpdate, t), context, wide_of<T>(last, s.state),
                        kind(hhmpn::kLabelMid), kind(hhmpn::kLabelHidden), kind(hhmpn::kLabelOut));
      last = kind(hhmpn::kLabelOut);
    }
    T* fused = c.fused ? c.fused + (t * c.samples + at.begin) * L * d : s.u;
    Acc<T>* fused_wide = wide_of<T>(fused, s.fused);
    readout_forward<T>(at, s, t, wide_of<T>(last, s.state), fused_wide);
    const int64_t from = team.first(at.label_rows()), count = team.last(at.label_rows()) - from;
    store_rows<T>(count, d, fused_wide + from * d, fused + from * d);
    team.meet();
    u = fused;
    u_wide = fused_wide;
  }
}

}  // namespace
