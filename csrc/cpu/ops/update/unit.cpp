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
  UpdateScratch(Arena a, int64_t d, int64_t width)
      : op(a.take<Op<T>>(kUpdateRows * operand_width<T>(d > width ? d : width))),
        g(a.take<Acc<T>>(kUpdateRows * d)),
        t(a.take<Acc<T>>(kUpdateRows * d)),
        h(a.take<Acc<T>>(kUpdateRows * width)),
        b1(a.take<Acc<T>>(width)),
        b2(a.take<Acc<T>>(d)),
        keep(a.take<Acc<T>>(d)),
        bytes(a.bytes) {}
  Op<T>* op;
  Acc<T>*g, *t, *h, *b1, *b2, *keep;
  int64_t bytes;
};

template <class T>
int64_t scratch_bytes(int64_t d, int64_t width) {
  return UpdateScratch<T>(Arena(nullptr), d, width).bytes;
}

// y (m, n) (+)= x (m, k) W
template <class T, class S>
void product(const Shape& shape, const S* x, const void* packed, Acc<T>* y, UpdateScratch<T>& s,
             Epilogue<Acc<T>> after) {
  const View<Op<T>> a = as_rows<T>(shape.m, shape.k, View{x, shape.k}, s.op);
  gemm<T>(shape, a, (const Op<T>*)packed, {y, shape.n}, after);
}

template <class T>
void forward(const UpdateArgs<T>& a, int64_t begin, int64_t rows, char* scratch) {
  using A = Acc<T>;
  const int64_t d = a.d, width = a.width;
  UpdateScratch<T> s(Arena(scratch), d, width);
  copy_row(width, a.b1, s.b1);
  copy_row(d, a.b2, s.b2);
  for (int64_t r = 0; r < rows; r++) copy_row(d, a.state + (begin + r) % a.state_rows * d, s.g + r * d);
  Epilogue<A> add, to_h, last;
  add.accumulate = true;
  to_h.bias = s.b1;
  to_h.relu = true;
  last.bias = s.b2;
  if (a.modalities) {
    Epilogue<A> partial;
    for (int64_t m = 0; m < a.modalities; m++) {
      const T* context = a.context + (m * a.rows + begin) * d;
      for (int64_t i = 0; i < rows * d; i += d)
        over_lanes<T>(d, [&](int64_t j, int64_t w) {
          const Vec<A> x = load_n(context + i + j, w);
          store_n(s.t + i + j, m ? load_n(s.t + i + j, w) + x : x, w);
        });
      Epilogue<A> after = m + 1 == a.modalities ? to_h : partial;
      after.accumulate = m > 0;
      product<T>({rows, width, d}, context, (const char*)a.hidden + m * a.hidden_bytes, s.h, s, after);
    }
    if (a.g) copy_row(rows * d, s.t, a.g + begin * d);
    product<T>({rows, d, d}, s.t, a.value, s.g, s, add);
  } else {
    product<T>({rows, d, d}, a.context + begin * d, a.value, s.g, s, add);
    if (a.g) copy_row(rows * d, s.g, a.g + begin * d);
    product<T>({rows, width, d}, s.g, a.hidden, s.h, s, to_h);
  }
  if (a.h) copy_row(rows * width, s.h, a.h + begin * width);
  product<T>({rows, d, width}, s.h, a.output, s.t, s, last);
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
  const int64_t d = a.d, width = a.width;
  UpdateScratch<T> s(Arena(scratch), d, width);
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
  product<T>({rows, width, d}, d_tail, a.output, s.h, s, {});
  const T* h = a.h + begin * width;
  T* d_h = a.d_h + begin * width;
  over_lanes<T>(rows * width, [&](int64_t j, int64_t w) {
    const Vec<A> open = load_n(h + j, w), x = load_n(s.h + j, w);
    store_n(d_h + j, open > 0 ? x : Vec<A>{}, w);
  });
  Epilogue<A> add;
  add.accumulate = true;
  if (a.modalities) {
    product<T>({rows, d, d}, d_out, a.value, s.g, s, {});
    for (int64_t m = 0; m < a.modalities; m++) {
      copy_row(rows * d, s.g, s.t);
      product<T>({rows, d, width}, d_h, (const char*)a.hidden + m * a.hidden_bytes, s.t, s, add);
      copy_row(rows * d, s.t, a.d_context + (m * a.rows + begin) * d);
    }
  } else {
    copy_row(rows * d, d_out, s.g);
    product<T>({rows, d, width}, d_h, a.hidden, s.g, s, add);
    copy_row(rows * d, s.g, a.d_g + begin * d);
    product<T>({rows, d, d}, s.g, a.value, s.t, s, {});
    copy_row(rows * d, s.t, a.d_context + begin * d);
  }
}

template <class T>
constexpr hhmpn::UpdateKernels<T> make_kernels() {
  return {scratch_bytes<T>, forward<T>, backward<T>};
}

}  // namespace

HHMPN_EXPORT_UNIT(update, UpdateKernels, make_kernels)
