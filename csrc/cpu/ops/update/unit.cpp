// Per-ISA side of kernels.h: a block of rows stays in cache from the context to the next state.
#include "ops/update/kernels.h"

#include "base/arena.h"
#include "simd/operands.h"
#include "simd/softmax.h"

namespace {

using hhmpn::kUpdateRows;
using hhmpn::UpdateArgs;

template <class T>
struct UpdateScratch {
  UpdateScratch(Arena a, int64_t d, int64_t h)
      : op(a.take<Op<T>>(kUpdateRows * operand_width<T>(d > h ? d : h))),
        g(a.take<Acc<T>>(kUpdateRows * d)),
        t(a.take<Acc<T>>(kUpdateRows * d)),
        hidden(a.take<Acc<T>>(kUpdateRows * h)),
        b1(a.take<Acc<T>>(h)),
        b2(a.take<Acc<T>>(d)),
        keep(a.take<Acc<T>>(d)),
        bytes(a.bytes) {}
  Op<T>* op;
  Acc<T>*g, *t, *hidden, *b1, *b2, *keep;
  int64_t bytes;
};

template <class T>
int64_t scratch_bytes(int64_t d, int64_t h) {
  return UpdateScratch<T>(Arena(nullptr), d, h).bytes;
}

template <class T, class S>
void product(int64_t rows, int64_t n, int64_t k, const S* x, int64_t ld, const void* packed, Acc<T>* y,
             UpdateScratch<T>& s, Epilogue<Acc<T>> after) {
  int64_t lda;
  const Op<T>* a = as_rows<T>(rows, k, x, ld, s.op, &lda);
  gemm<T>(rows, n, k, a, lda, (const Op<T>*)packed, y, n, after);
}

template <class T>
void forward(const UpdateArgs<T>& a, int64_t begin, int64_t rows, char* scratch) {
  using A = Acc<T>;
  const int64_t d = a.d, h = a.width;
  UpdateScratch<T> s(Arena(scratch), d, h);
  copy_row(h, a.b1, s.b1);
  copy_row(d, a.b2, s.b2);
  for (int64_t r = 0; r < rows; r++) copy_row(d, a.state + (begin + r) % a.state_rows * d, s.g + r * d);
  Epilogue<A> add, hidden;
  add.accumulate = true;
  hidden.bias = s.b1;
  hidden.relu = true;
  if (a.modalities) {
    Epilogue<A> partial;
    for (int64_t m = 0; m < a.modalities; m++) {
      const T* context = a.context + (m * a.rows + begin) * d;
      for (int64_t i = 0; i < rows * d; i += d)
        over_lanes<T>(d, [&](int64_t j, int64_t w) {
          const Vec<A> x = load_n(context + i + j, w);
          store_n(s.t + i + j, m ? load_n(s.t + i + j, w) + x : x, w);
        });
      Epilogue<A> after = m + 1 == a.modalities ? hidden : partial;
      after.accumulate = m > 0;
      product<T>(rows, h, d, context, d, (const char*)a.hidden + m * a.hidden_bytes, s.hidden, s, after);
    }
    if (a.g) copy_row(rows * d, s.t, a.g + begin * d);
    product<T>(rows, d, d, s.t, d, a.value, s.g, s, add);
  } else {
    product<T>(rows, d, d, a.context + begin * d, d, a.value, s.g, s, add);
    if (a.g) copy_row(rows * d, s.g, a.g + begin * d);
    product<T>(rows, h, d, s.g, d, a.hidden, s.hidden, s, hidden);
  }
  if (a.h) copy_row(rows * h, s.hidden, a.h + begin * h);
  Epilogue<A> last;
  last.bias = s.b2;
  product<T>(rows, d, h, s.hidden, h, a.output, s.t, s, last);
  for (int64_t r = 0; r < rows; r++) {
    A* t = s.t + r * d;
    if (a.dropout.on) {
      dropout_row(a.dropout, uint32_t(begin + r), a.site, 0, d, s.keep);
      multiply_row(d, t, s.keep);
    }
    T* out = a.out + (begin + r) * d;
    over_lanes<T>(d, [&](int64_t j, int64_t w) { store_n(out + j, load_n(s.g + r * d + j, w) + load_n(t + j, w), w); });
  }
}

template <class T>
void backward(const UpdateArgs<T>& a, int64_t begin, int64_t rows, char* scratch) {
  using A = Acc<T>;
  const int64_t d = a.d, h = a.width;
  UpdateScratch<T> s(Arena(scratch), d, h);
  const T* d_out = a.d_out + begin * d;
  const T* d_tail = d_out;
  if (a.dropout.on) {
    for (int64_t r = 0; r < rows; r++) {
      dropout_row(a.dropout, uint32_t(begin + r), a.site, 0, d, s.keep);
      T* to = a.d_tail + (begin + r) * d;
      over_lanes<T>(
          d, [&](int64_t j, int64_t w) { store_n(to + j, load_n(d_out + r * d + j, w) * load_n(s.keep + j, w), w); });
    }
    d_tail = a.d_tail + begin * d;
  }
  product<T>(rows, h, d, d_tail, d, a.output, s.hidden, s, {});
  over_lanes<T>(rows * h, [&](int64_t j, int64_t w) {
    const Vec<A> open = load_n(a.h + begin * h + j, w), x = load_n(s.hidden + j, w);
    store_n(a.d_h + begin * h + j, open > 0 ? x : Vec<A>{}, w);
  });
  const T* d_h = a.d_h + begin * h;
  Epilogue<A> add;
  add.accumulate = true;
  if (a.modalities) {
    product<T>(rows, d, d, d_out, d, a.value, s.g, s, {});
    for (int64_t m = 0; m < a.modalities; m++) {
      copy_row(rows * d, s.g, s.t);
      product<T>(rows, d, h, d_h, h, (const char*)a.hidden + m * a.hidden_bytes, s.t, s, add);
      copy_row(rows * d, s.t, a.d_context + (m * a.rows + begin) * d);
    }
  } else {
    copy_row(rows * d, d_out, s.g);
    product<T>(rows, d, h, d_h, h, a.hidden, s.g, s, add);
    copy_row(rows * d, s.g, a.d_g + begin * d);
    product<T>(rows, d, d, s.g, d, a.value, s.t, s, {});
    copy_row(rows * d, s.t, a.d_context + begin * d);
  }
}

template <class T>
constexpr hhmpn::UpdateKernels<T> make_kernels() {
  return {scratch_bytes<T>, forward<T>, backward<T>};
}

}  // namespace

HHMPN_EXPORT_UNIT(update, UpdateKernels, make_kernels)
