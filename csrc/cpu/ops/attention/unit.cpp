// Per-ISA side of kernels.h: one sample at a time, keys packed once a segment, scores never longer than a key block.
#include "ops/attention/kernels.h"

#include "base/arena.h"
#include "simd/operands.h"
#include "simd/softmax.h"

namespace {

using hhmpn::AttentionArgs;
using hhmpn::kKeyBlock;
using hhmpn::kQueryRows;

// f(first row in the tensor, rows, row inside its segment, row inside the sample) for blocks of [begin, end).
template <class T, class F>
void over_blocks(const AttentionArgs<T>& a, int64_t sample, int64_t begin, int64_t end, const F& f) {
  int64_t base = 0;
  for (int64_t i = sample; i < a.queries; i += a.samples) {
    const int64_t first = a.q_offsets[i], rows = a.q_offsets[i + 1] - first;
    // blocks sit at fixed places of a segment, so that sums over blocks never depend on who asks for which rows
    for (int64_t r = 0; r < rows; r += kQueryRows) {
      const int64_t from = max_of(r, begin - base), to = min_of(min_of(r + kQueryRows, rows), end - base);
      if (from < to) f(first + from, to - from, from, base + from);
    }
    base += rows;
  }
}

// Keys of one segment: K^T for the scores, the nodes themselves for sums over keys, block after block.
template <class T>
struct Keys {
  Keys(Arena& arena, int64_t d, int64_t longest)
      : across(arena.take<Op<T>>(packed_size<T>(d, longest))),
        along(arena.take<Op<T>>(packed_size<T>(longest + kPair<T> * (longest / kKeyBlock + 1), d))) {}

  void load(const AttentionArgs<T>& a, int64_t segment) {
    d = a.d;
    x = a.x + a.x_offsets[segment] * a.ldx;
    ld = a.ldx;
    count = a.x_offsets[segment + 1] - a.x_offsets[segment];
    pack_bt<T>(d, count, x, ld, across);
  }
  const Op<T>* scores_operand(int64_t first) const { return across + first * operand_width<T>(d); }
  BOperand<T> nodes_operand(int64_t first, int64_t n) const {
    return as_b<T>(n, d, x + first * ld, ld, along + packed_size<T>(1, d) / kPair<T> * first);
  }

  Op<T>*across, *along;
  const T* x = nullptr;
  int64_t d = 0, ld = 0, count = 0;
};

template <class T>
struct ForwardScratch {
  ForwardScratch(Arena a, int64_t d, int64_t longest)
      : keys(a, d, longest),
        q(a.take<Op<T>>(kQueryRows * operand_width<T>(d))),
        s(a.take<Acc<T>>(kQueryRows * kKeyBlock)),
        p(a.take<Op<T>>(kQueryRows * kKeyBlock)),
        sum(a.take<Acc<T>>(kQueryRows * d)),
        keep(a.take<Acc<T>>(kKeyBlock)),
        bytes(a.bytes) {}
  Keys<T> keys;
  Op<T>* q;
  Acc<T>* s;
  Op<T>* p;
  Acc<T>*sum, *keep;
  int64_t bytes;
};

template <class T>
int64_t forward_scratch(int64_t d, int64_t longest) {
  Arena arena(nullptr);
  return ForwardScratch<T>(arena, d, longest).bytes;
}

template <class T>
void forward_rows(const AttentionArgs<T>& a, int64_t group, ForwardScratch<T>& s, int64_t row, int64_t rows,
                  int64_t local) {
  using A = Acc<T>;
  const int64_t d = a.d, n = s.keys.count;
  T* context = a.context + (group * a.rows + row) * d;
  A* lse = a.lse + group * a.rows + row;
  A pivot[kQueryRows], total[kQueryRows];
  int64_t ldq, ldp;
  const Op<T>* q = as_rows<T>(rows, d, a.q + row * a.ldq, a.ldq, s.q, &ldq);
  for (int64_t first = 0; first < n; first += kKeyBlock) {
    const int64_t block = min_of(kKeyBlock, n - first), lds = round_up(block, kLanes<T>);
    gemm<T>(rows, lds, d, q, ldq, s.keys.scores_operand(first), s.s, lds);
    for (int64_t r = 0; r < rows; r++) {
      A* row_s = s.s + r * lds;
      if (a.mask) mask_row(block, row_s, a.mask + (local + r) * a.ldmask + first);
      const A old = first ? pivot[r] : -A(__builtin_inff()), seen = max_row(block, row_s);
      const A top = seen > old ? seen : old, at = top == -A(__builtin_inff()) ? A(0) : top;
      const A sum = exp_row(block, row_s, at);
      if (a.dropout.on) {
        dropout_row(a.dropout, uint32_t(row + r), a.site + uint32_t(group), first, block, s.keep);
        multiply_row(block, row_s, s.keep);
      }
      if (first) {
        const A shrink = old == at ? A(1) : exp_of(splat<A>(old - at))[0];
        total[r] = total[r] * shrink + sum;
        if (old != at) scale_row(d, s.sum + r * d, shrink);
      } else {
        total[r] = sum;
      }
      pivot[r] = top;
    }
    const Op<T>* p = as_rows<T>(rows, block, s.s, lds, s.p, &ldp);
    Epilogue<A> after;
    after.accumulate = first != 0;
    gemm<T>(rows, d, block, p, ldp, s.keys.nodes_operand(first, block), s.sum, d, after);
  }
  for (int64_t r = 0; r < rows; r++) {
    const A inverse = total[r] == 0 ? A(0) : A(1) / total[r];
    over_lanes<T>(
        d, [&](int64_t j, int64_t w) { store_n(context + r * d + j, load_n(s.sum + r * d + j, w) * inverse, w); });
    lse[r] = pivot[r] + log_of(total[r]);
  }
}

template <class T>
void forward(const AttentionArgs<T>& a, int64_t sample, int64_t begin, int64_t end, char* scratch) {
  int64_t longest = 0;
  for (int64_t g = 0; g < a.groups; g++) {
    const int64_t k = g * a.samples + sample;
    longest = max_of(longest, a.x_offsets[k + 1] - a.x_offsets[k]);
  }
  ForwardScratch<T> s(Arena(scratch), a.d, longest);
  for (int64_t g = 0; g < a.groups; g++) {
    s.keys.load(a, g * a.samples + sample);
    over_blocks(a, sample, begin, end, [&](int64_t row, int64_t rows, int64_t local, int64_t) {
      if (s.keys.count) return forward_rows(a, g, s, row, rows, local);
      memset((void*)(a.context + (g * a.rows + row) * a.d), 0, size_t(rows * a.d) * sizeof(T));
      for (int64_t r = 0; r < rows; r++) a.lse[g * a.rows + row + r] = -Acc<T>(__builtin_inff());
    });
  }
}

template <class T>
struct BackwardScratch {
  BackwardScratch(Arena a, int64_t d, int64_t longest, int64_t rows)
      : keys(a, d, longest),
        q(a.take<Op<T>>(kQueryRows * operand_width<T>(d))),
        g(a.take<Op<T>>(kQueryRows * operand_width<T>(d))),
        b(a.take<Op<T>>(packed_size<T>(kQueryRows, d))),
        s(a.take<Acc<T>>(kQueryRows * kKeyBlock)),
        ds(a.take<Acc<T>>(kQueryRows * kKeyBlock)),
        p(a.take<Op<T>>((kQueryRows + 1) * kKeyBlock)),
        keep(a.take<Acc<T>>(kKeyBlock)),
        dx(a.take<Acc<T>>(longest * d)),
        dq(a.take<Acc<T>>(rows * d)),
        bytes(a.bytes) {}
  Keys<T> keys;
  Op<T>*q, *g, *b;
  Acc<T>*s, *ds;
  Op<T>* p;
  Acc<T>*keep, *dx, *dq;
  int64_t bytes;
};

template <class T>
int64_t backward_scratch(int64_t d, int64_t longest, int64_t rows) {
  Arena arena(nullptr);
  return BackwardScratch<T>(arena, d, longest, rows).bytes;
}

// Adds one block of query rows to dq and to the segment's dx: P recomputed from lse, dS = P o (keep o dP - delta).
template <class T>
void backward_rows(const AttentionArgs<T>& a, int64_t group, BackwardScratch<T>& s, int64_t row, int64_t rows,
                   int64_t local, Acc<T>* dq, bool first_dq, bool first_dx) {
  using A = Acc<T>;
  const int64_t d = a.d, n = s.keys.count;
  const T* g = a.d_context + (group * a.rows + row) * d;
  const T* context = a.context + (group * a.rows + row) * d;
  const A* lse = a.lse + group * a.rows + row;
  A delta[kQueryRows];
  for (int64_t r = 0; r < rows; r++)
    delta[r] = dot_row(d, g + r * d, context + r * d) - (a.d_lse ? a.d_lse[group * a.rows + row + r] : A(0));
  int64_t ldq, ldg, ldp;
  const Op<T>* q = as_rows<T>(rows, d, a.q + row * a.ldq, a.ldq, s.q, &ldq);
  const Op<T>* dc = as_rows<T>(rows, d, g, d, s.g, &ldg);
  for (int64_t first = 0; first < n; first += kKeyBlock) {
    const int64_t block = min_of(kKeyBlock, n - first), lds = round_up(block, kLanes<T>);
    gemm<T>(rows, lds, d, q, ldq, s.keys.scores_operand(first), s.s, lds);
    gemm<T>(rows, lds, d, dc, ldg, s.keys.scores_operand(first), s.ds, lds);
    for (int64_t r = 0; r < rows; r++) {
      A *p = s.s + r * lds, *ds = s.ds + r * lds;
      if (a.mask) mask_row(block, p, a.mask + (local + r) * a.ldmask + first);
      const A pivot = lse[r] == -A(__builtin_inff()) ? A(0) : lse[r];
      if (a.dropout.on) {
        dropout_row(a.dropout, uint32_t(row + r), a.site + uint32_t(group), first, block, s.keep);
        multiply_row(block, ds, s.keep);
      }
      over_lanes<A>(block, [&](int64_t j, int64_t w) {
        const Vec<A> e = exp_of(load_n(p + j, w) - pivot);
        store_n(ds + j, e * (load_n(ds + j, w) - delta[r]), w);
        store_n(p + j, a.dropout.on ? e * load_n(s.keep + j, w) : e, w);
      });
    }
    Epilogue<A> after;
    after.accumulate = !first_dq || first != 0;
    const Op<T>* weights = as_rows<T>(rows, block, s.ds, lds, s.p, &ldp);
    gemm<T>(rows, d, block, weights, ldp, s.keys.nodes_operand(first, block), dq, d, after);
    after.accumulate = !first_dx;
    weights = as_columns<T>(block, rows, s.ds, lds, s.p, &ldp);
    gemm_tn<T>(block, d, rows, weights, ldp, as_b<T>(rows, d, a.q + row * a.ldq, a.ldq, s.b), s.dx + first * d, d,
               after);
    after.accumulate = true;
    weights = as_columns<T>(block, rows, s.s, lds, s.p, &ldp);
    gemm_tn<T>(block, d, rows, weights, ldp, as_b<T>(rows, d, g, d, s.b), s.dx + first * d, d, after);
  }
}

template <class T>
void backward(const AttentionArgs<T>& a, int64_t sample, char* scratch) {
  int64_t longest = 0, total = 0;
  for (int64_t g = 0; g < a.groups; g++) {
    const int64_t k = g * a.samples + sample;
    longest = max_of(longest, a.x_offsets[k + 1] - a.x_offsets[k]);
  }
  for (int64_t i = sample; i < a.queries; i += a.samples) total += a.q_offsets[i + 1] - a.q_offsets[i];
  BackwardScratch<T> s(Arena(scratch), a.d, longest, total);
  bool read = false;
  for (int64_t g = 0; g < a.groups; g++) {
    const int64_t segment = g * a.samples + sample;
    s.keys.load(a, segment);
    if (!s.keys.count) continue;
    bool first = true;
    over_blocks(a, sample, 0, total, [&](int64_t row, int64_t rows, int64_t local, int64_t inside) {
      backward_rows(a, g, s, row, rows, local, s.dq + inside * a.d, !read, first);
      first = false;
    });
    read = true;
    T* dx = a.dx + a.x_offsets[segment] * a.d;
    if (first) memset((void*)dx, 0, size_t(s.keys.count * a.d) * sizeof(T));
    else copy_row(s.keys.count * a.d, s.dx, dx);
  }
  over_blocks(a, sample, 0, total, [&](int64_t row, int64_t rows, int64_t, int64_t inside) {
    if (read) copy_row(rows * a.d, s.dq + inside * a.d, a.dq + row * a.d);
    else memset((void*)(a.dq + row * a.d), 0, size_t(rows * a.d) * sizeof(T));
  });
}

template <class T>
constexpr hhmpn::AttentionKernels<T> make_kernels() {
  return {forward_scratch<T>, forward<T>, backward_scratch<T>, backward<T>};
}

}  // namespace

HHMPN_EXPORT_UNIT(attention, AttentionKernels, make_kernels)
