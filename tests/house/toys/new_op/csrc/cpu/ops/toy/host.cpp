// Host side of kernels.h, which holds the equations.
#include "ops/toy/kernels.h"

#include "adapter/op.h"
#include "host/memory.h"
#include "host/tensors.h"
#include "host/threads.h"

namespace hhmpn {
namespace {

using at::Tensor;

struct Toy {
  Tensor x, w;
  template <class V>
  void each(V& v) {
    v.rows("x", x), v.rows("w", w);
  }
};

struct ToyResult {
  Tensor y;
  template <class V>
  void each(V& v) {
    v.exact("y", y);
  }
};

struct ToyBack {
  Tensor d_y;
  Toy in;
  Needs needs;
  template <class V>
  void each(V& v) {
    v.data("d_y", d_y), in.each(v);
  }
};

Toy checked(const Toy& in) {
  TORCH_CHECK_VALUE(in.x.dim() == 2, "toy: x has shape ", in.x.sizes(), "; expected (rows, d).");
  check_vector("toy", "w", in.w, in.x.size(1), in.x.scalar_type());
  return {in.x.contiguous(), in.w.contiguous()};
}

template <class T>
ToyArgs<T> toy_args(const Toy& in) {
  ToyArgs<T> a{};
  a.rows = in.x.size(0);
  a.dim = in.x.size(1);
  a.x = data<T>(in.x);
  a.w = data<T>(in.w);
  return a;
}

// body(task, row) for every row; a task has kToyRows of them.
template <class F>
void each_row(int64_t rows, const F& body) {
  parallel_tasks((rows + kToyRows - 1) / kToyRows, 0, [&](int64_t i, char*) {
    for (int64_t r = i * kToyRows; r < std::min(rows, (i + 1) * kToyRows); r++) body(i, r);
  });
}

ToyResult toy_forward(const Toy& any, bool) {
  const Toy in = checked(any);
  const ToyResult out{pooled_empty(in.x.sizes(), in.x.options())};
  with_dtype(in.x.scalar_type(), "toy", [&](auto type) {
    using T = decltype(type);
    ToyArgs<T> a = toy_args<T>(in);
    a.y = data<T>(out.y);
    each_row(a.rows, [&](int64_t, int64_t r) { toy<T>().forward(a, r); });
  });
  return out;
}

Toy toy_backward(const ToyBack& back) {
  const Toy in = checked(back.in);
  const Tensor d_y = back.d_y.contiguous();
  const auto dtype = in.x.scalar_type();
  const int64_t tasks = (in.x.size(0) + kToyRows - 1) / kToyRows;
  Tensor sums = at::zeros({tasks, in.x.size(1)}, in.x.options().dtype(accumulate_dtype(dtype)));
  Toy d{pooled_empty(in.x.sizes(), in.x.options()), {}};
  with_dtype(dtype, "toy_backward", [&](auto type) {
    using T = decltype(type);
    ToyArgs<T> a = toy_args<T>(in);
    a.d_y = data<T>(d_y);
    a.d_x = data<T>(d.x);
    each_row(a.rows, [&](int64_t i, int64_t r) { toy<T>().backward(a, r, data<Acc<T>>(sums) + i * a.dim); });
  });
  d.w = sums.sum(0).to(dtype);
  return d;
}

HHMPN_OP(toy, toy_forward, toy_backward)

}  // namespace
}  // namespace hhmpn
