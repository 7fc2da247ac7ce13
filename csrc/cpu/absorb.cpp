// absorb: batched products of weights, C = scale * A B   (A = W1^T W2 / sqrt(d) of Eq 4, C_m = W^r_m W^v of Eq 10)
//
//   left (..., n, k)   right (..., k, m)   out (..., n, m)   each matrix as it lies or transposed in memory
//   d left = scale * g right^T   d right = scale * left^T g
#include "dense.h"
#include "parallel.h"
#include "scratch.h"
#include "torch_util.h"

namespace hhmpn {
namespace {

using at::Tensor;

// out = scale * a b over the leading axes; a and b may be any strided view whose matrices have one unit stride.
void products(const Tensor& a_any, const Tensor& b_any, double scale, const Tensor& out) {
  constexpr int64_t kColumns = 128;
  const auto plain = [](const Tensor& t) {
    const int64_t s0 = t.stride(-2), s1 = t.stride(-1), r = t.size(-2), c = t.size(-1);
    return (s1 == 1 && s0 >= c) || (s0 == 1 && s1 >= r) ? t : t.contiguous();
  };
  const Tensor a = plain(a_any), b = plain(b_any);
  const int64_t m = out.size(-2), n = out.size(-1), k = a.size(-1);
  const int64_t items = m * n == 0 ? 0 : out.numel() / (m * n), blocks = (n + kColumns - 1) / kColumns;
  std::vector<int64_t> a_at(items), b_at(items);
  for (int64_t i = 0; i < items; i++) {
    int64_t rest = i;
    for (int64_t axis = out.dim() - 3; axis >= 0; axis--) {
      const int64_t at = rest % out.size(axis);
      rest /= out.size(axis);
      a_at[i] += at * a.stride(axis);
      b_at[i] += at * b.stride(axis);
    }
  }
  const bool at = a.stride(-1) != 1, bt = b.stride(-1) != 1;
  const int64_t lda = at ? a.stride(-1) : a.stride(-2), ldb = bt ? b.stride(-1) : b.stride(-2);
  with_dtype(out.scalar_type(), "absorb", [&](auto type) {
    using T = decltype(type);
    const DenseKernels<T>& kernels = dense<T>();
    parallel_tasks(items * blocks, kernels.product_scratch(m, kColumns, k), [&](int64_t task, char* scratch) {
      const int64_t item = task / blocks, j = task % blocks * kColumns;
      kernels.product(m, std::min(kColumns, n - j), k, data<T>(a) + a_at[item], lda, at,
                      data<T>(b) + b_at[item] + (bt ? j * ldb : j), ldb, bt, scale, data<T>(out) + item * m * n + j, n, scratch);
    });
  });
}

void check(const char* op, const Tensor& left, const Tensor& right) {
  TORCH_CHECK_VALUE(left.dim() >= 2 && left.dim() == right.dim() && left.size(-1) == right.size(-2) &&
                        left.sizes().slice(0, left.dim() - 2) == right.sizes().slice(0, right.dim() - 2) &&
                        left.scalar_type() == right.scalar_type(),
                    op, ": left is ", left.scalar_type(), " ", left.sizes(), " and right is ", right.scalar_type(), " ",
                    right.sizes(), "; expected one dtype, (..., n, k) and (..., k, m).");
}

Tensor absorb(const Tensor& left, const Tensor& right, double scale) {
  check("absorb", left, right);
  std::vector<int64_t> sizes = left.sizes().vec();
  sizes.back() = right.size(-1);
  Tensor out = pooled_empty(sizes, left.options());
  products(left, right, scale, out);
  return out;
}

std::tuple<Tensor, Tensor> absorb_backward(const Tensor& grad, const Tensor& left, const Tensor& right, double scale) {
  check("absorb_backward", left, right);
  Tensor dl = pooled_empty(left.sizes(), left.options()), dr = pooled_empty(right.sizes(), right.options());
  products(grad, right.transpose(-1, -2), scale, dl);
  products(left.transpose(-1, -2), grad, scale, dr);
  return {dl, dr};
}

const auto& absorb_op() {
  static const auto op = find_op<Tensor(const Tensor&, const Tensor&, double)>("hhmpn_fast::absorb");
  return op;
}

struct AbsorbFunction : torch::autograd::Function<AbsorbFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& left, const Tensor& right, double scale) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({left, right});
    ctx->saved_data["scale"] = scale;
    return absorb_op().call(left, right, scale);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, torch::autograd::variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    static const auto op = find_op<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, double)>(
        "hhmpn_fast::absorb_backward");
    auto [dl, dr] = op.call(grads[0], saved[0], saved[1], ctx->saved_data["scale"].toDouble());
    return {dl, dr, Tensor()};
  }
};

Tensor absorb_autograd(const Tensor& left, const Tensor& right, double scale) {
  if (any_requires_grad({left, right})) return AbsorbFunction::apply(left, right, scale);
  at::AutoDispatchBelowADInplaceOrView guard;
  return absorb_op().call(left, right, scale);
}

Tensor absorb_autocast(const Tensor& left, const Tensor& right, double scale) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastCPU);
  return absorb_op().call(autocast_one(left), autocast_one(right), scale);
}

}  // namespace

TORCH_LIBRARY_IMPL(hhmpn_fast, CPU, m) {
  m.impl("absorb", absorb);
  m.impl("absorb_backward", absorb_backward);
}
TORCH_LIBRARY_IMPL(hhmpn_fast, Autograd, m) {
  m.impl("absorb", absorb_autograd);
  m.impl("absorb_backward", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(hhmpn_fast, AutocastCPU, m) { m.impl("absorb", absorb_autocast); }

}  // namespace hhmpn
