// absorb: batched products of weights, C = scale * A B   (A = W1^T W2 / sqrt(d) of Eq 4, C_m = W^r_m W^v of Eq 10)
//
//   left (..., n, k)   right (..., k, m)   out (..., n, m)   each matrix as it lies or transposed in memory
//   d left = scale * g right^T   d right = scale * left^T g
//   half: float32 matrices are multiplied in bfloat16 with float32 sums, which is what autocast asks for
#include "base/dense.h"
#include "host/threads.h"
#include "host/memory.h"
#include "adapter/op.h"
#include "host/tensors.h"

namespace hhmpn {
namespace {

using at::Tensor;

// out = scale * a b over the leading axes; all three may be any strided view whose matrices have one unit stride.
void products(const Tensor& a_any, const Tensor& b_any, double scale, bool half, const Tensor& out) {
  if (out.stride(-1) != 1 && out.size(-1) > 1)
    return products(b_any.transpose(-1, -2), a_any.transpose(-1, -2), scale, half, out.transpose(-1, -2));
  constexpr int64_t kColumns = 128;
  const auto plain = [](const Tensor& t) {
    const int64_t s0 = t.stride(-2), s1 = t.stride(-1), r = t.size(-2), c = t.size(-1);
    return (s1 == 1 && s0 >= c) || (s0 == 1 && s1 >= r) ? t : t.contiguous();
  };
  const Tensor a = plain(a_any), b = plain(b_any);
  const int64_t m = out.size(-2), n = out.size(-1), k = a.size(-1);
  const int64_t items = m * n == 0 ? 0 : out.numel() / (m * n), blocks = (n + kColumns - 1) / kColumns;
  std::vector<int64_t> a_at(items), b_at(items), out_at(items);
  for (int64_t i = 0; i < items; i++) {
    int64_t rest = i;
    for (int64_t axis = out.dim() - 3; axis >= 0; axis--) {
      const int64_t at = rest % out.size(axis);
      rest /= out.size(axis);
      a_at[i] += at * a.stride(axis);
      b_at[i] += at * b.stride(axis);
      out_at[i] += at * out.stride(axis);
    }
  }
  const bool at = a.stride(-1) != 1, bt = b.stride(-1) != 1;
  const int64_t lda = at ? a.stride(-1) : a.stride(-2), ldb = bt ? b.stride(-1) : b.stride(-2), ld_out = out.stride(-2);
  const auto run = [&](auto type, const auto product, int64_t scratch_bytes) {
    using T = decltype(type);
    parallel_tasks(items * blocks, scratch_bytes, [&](int64_t task, char* scratch) {
      const int64_t item = task / blocks, j = task % blocks * kColumns;
      const Factor<T> left(data<T>(a) + a_at[item], lda, at);
      const Factor<T> right(data<T>(b) + b_at[item] + (bt ? j * ldb : j), ldb, bt);
      product({m, std::min(kColumns, n - j), k}, left, right, scale, {data<T>(out) + out_at[item] + j, ld_out},
              scratch);
    });
  };
  if (half) return run(float{}, dense<bf16>().product_wide, dense<bf16>().product_scratch(m, kColumns, k));
  with_dtype(out.scalar_type(), "absorb", [&](auto type) {
    const DenseKernels<decltype(type)>& kernels = dense<decltype(type)>();
    run(type, kernels.product, kernels.product_scratch(m, kColumns, k));
  });
}

// An empty tensor in t's own order of memory where that is a transposed matrix or swapped leading axes, so that the gradient of
// a parameter's view fits the parameter and is not copied once more.
Tensor like(const Tensor& t) {
  const auto swapped = [&](int64_t i, int64_t j) {
    return pooled_empty(t.transpose(i, j).sizes(), t.options()).transpose(i, j);
  };
  if (t.is_contiguous()) return pooled_empty(t.sizes(), t.options());
  if (t.transpose(-1, -2).is_contiguous()) return swapped(-1, -2);
  if (t.dim() == 3 && t.transpose(0, 1).is_contiguous()) return swapped(0, 1);
  return pooled_empty(t.sizes(), t.options());
}

struct Absorb {
  Tensor left, right;
  double scale;
  bool half;
  template <class V>
  void each(V& v) {
    v.weight("left", left), v.weight("right", right), v.data("scale", scale), v.half("half", half);
  }
};

void check(const char* op, const Absorb& in) {
  const Tensor &left = in.left, &right = in.right;
  TORCH_CHECK_VALUE(left.dim() >= 2 && left.dim() == right.dim() && left.size(-1) == right.size(-2) &&
                        left.sizes().slice(0, left.dim() - 2) == right.sizes().slice(0, right.dim() - 2) &&
                        left.scalar_type() == right.scalar_type(),
                    op, ": left is ", left.scalar_type(), " ", left.sizes(), " and right is ", right.scalar_type(), " ",
                    right.sizes(), "; expected one dtype, (..., n, k) and (..., k, m).");
  TORCH_CHECK_VALUE(!in.half || left.scalar_type() == at::kFloat, op, ": half products of ", left.scalar_type(),
                    "; expected float32.");
}

struct Product {
  Tensor product;
  template <class V>
  void each(V& v) {
    v.exact("product", product);
  }
};

struct AbsorbBack {
  Tensor d_product;
  Absorb in;
  Needs needs;
  template <class V>
  void each(V& v) {
    v.data("d_product", d_product), in.each(v);
  }
};

Product absorb(const Absorb& in, bool) {
  check("absorb", in);
  std::vector<int64_t> sizes = in.left.sizes().vec();
  sizes.back() = in.right.size(-1);
  Tensor out = pooled_empty(sizes, in.left.options());
  products(in.left, in.right, in.scale, in.half, out);
  return {out};
}

Absorb absorb_backward(const AbsorbBack& b) {
  const Absorb& in = b.in;
  check("absorb_backward", in);
  Absorb d{like(in.left), like(in.right), 0, false};
  products(b.d_product, in.right.transpose(-1, -2), in.scale, in.half, d.left);
  products(in.left.transpose(-1, -2), b.d_product, in.scale, in.half, d.right);
  return d;
}

HHMPN_OP(absorb, absorb, absorb_backward)

}  // namespace
}  // namespace hhmpn
