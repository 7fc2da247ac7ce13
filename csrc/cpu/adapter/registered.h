// The ops that bodies registered, each with its schemas' orders: what the adapter's kernels share.
#pragma once
#include <ATen/core/dispatch/Dispatcher.h>

#include <memory>
#include <mutex>
#include <optional>

#include "adapter/op.h"

namespace hhmpn {

template <class F>
void each_tensor(const c10::IValue& value, const F& f) {
  if (value.isTensor() && value.toTensor().defined()) f(value.toTensor());
  else if (value.isTensorList())
    for (const at::Tensor& t : value.toTensorVector()) f(t);
}

// One op with its schemas' orders, found when it is first called.
struct Registered {
  explicit Registered(OpBody b) : body(std::move(b)) {}
  void resolve();
  // What <op>_backward_cpu gives for its arguments; a scaled op's kept gradients themselves where `scale` is not set.
  std::vector<at::Tensor> gradients(const torch::jit::Stack& stack, bool scale) const;

  OpBody body;
  std::once_flag once;
  std::optional<c10::OperatorHandle> forward, backward;
  std::vector<std::string> inputs, results;
  std::vector<Kind> kinds;               // of the inputs
  std::vector<bool> has_gradient;        // of the inputs
  std::vector<bool> is_kept;             // of the results
  std::vector<bool> is_list, is_tensor;  // of the backward schema's arguments
  Order in, out, back;                   // of the body's records in the schemas
  Order saved;                           // which results the backward pass reads
  Order kept;                            // of a scaled op: each input's gradient in the backward schema
  size_t first_input = 0;                // of the backward schema
};

std::vector<std::unique_ptr<Registered>>& registry();

struct Functor : c10::OperatorKernel {
  explicit Functor(int64_t op) : op(op) {}
  Registered& get() const {
    Registered& r = *registry()[size_t(op)];
    r.resolve();
    return r;
  }
  int64_t op;
};

// Adds the kernels between autograd and autocast and the op `op` of the registry (autograd.cpp).
struct Libraries;
void add_autograd(Libraries& to, int64_t op);

}  // namespace hhmpn
