// The one adapter between the ops and autograd and autocast.
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <utility>

#include "adapter/libraries.h"
#include "adapter/registered.h"
#include "base/isa.h"

namespace hhmpn {

using at::Tensor;
using c10::IValue;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using torch::jit::Stack;

namespace {

struct Call {
  const Functor* functor;
  Stack* stack;
  c10::List<bool> needs;  // a flag a tensor of the inputs
};

struct Node : torch::autograd::Function<Node> {
  // `inputs` are those that need a gradient; leaves all results on the stack and returns the outputs.
  static variable_list forward(AutogradContext* ctx, at::TensorList, Call* call) {
    at::AutoDispatchBelowADInplaceOrView guard;
    Registered& r = call->functor->get();
    std::vector<IValue> values(call->stack->end() - int64_t(r.inputs.size() + 1), call->stack->end() - 1);
    call->stack->back() = true;
    r.forward->callBoxed(call->stack);
    const IValue* results = &call->stack->end()[-int64_t(r.results.size())];
    for (size_t i : r.saved) values.push_back(results[i]);
    variable_list outputs, saved;
    for (size_t i = 0; i < r.results.size(); i++)
      if (!r.is_kept[i]) outputs.push_back(results[i].toTensor());
    for (IValue& value : values) {  // a tensor leaves a place, a list its length
      const size_t before = saved.size();
      each_tensor(value, [&](const Tensor& t) { saved.push_back(t); });
      if (value.isTensorList() || saved.size() > before) value = int64_t(saved.size() - before);
    }
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["op"] = call->functor->op;
    ctx->saved_data["needs"] = call->needs;
    ctx->saved_data["values"] = c10::ivalue::Tuple::create(std::move(values));
    ctx->set_materialize_grads(false);
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    Registered& r = *registry()[size_t(ctx->saved_data["op"].toInt())];
    const variable_list saved = ctx->get_saved_variables();
    const c10::List<bool> needs = ctx->saved_data["needs"].toBoolList();
    variable_list out(size_t(std::count(needs.begin(), needs.end(), true)));
    const auto is_defined = [](const Tensor& g) { return g.defined(); };
    if (r.body.scaled ? grads.front().defined() : std::any_of(grads.begin(), grads.end(), is_defined)) {
      Stack stack;
      for (const Tensor& g : grads) stack.push_back(g.defined() ? IValue(g) : IValue());
      auto next = saved.begin();
      for (const IValue& value : ctx->saved_data["values"].toTupleRef().elements().vec()) {
        const bool is_list = r.is_list[stack.size()], is_tensor = r.is_tensor[stack.size()] && !value.isNone();
        const auto begin = std::exchange(next, next + (is_list ? value.toInt() : int64_t(is_tensor)));
        stack.push_back(is_list ? IValue(variable_list(begin, next)) : is_tensor ? IValue(*begin) : value);
      }
      stack.emplace_back(needs);
      // The gradient that `loss.backward()` has asks for no copy of every weight's size; a traced one has no value.
      if (r.body.scaled && !grads.front().key_set().has(c10::DispatchKey::Python) && !at::GradMode::is_enabled() &&
          grads.front().item<double>() == 1.0) {
        out = r.gradients(stack, false);
      } else {
        r.backward->callBoxed(&stack);
        out = stack.back().toTensorVector();
      }
    }
    out.emplace_back();  // of `call`
    return out;
  }
};

struct Autograd : Functor {
  using Functor::Functor;
  void operator()(const c10::OperatorHandle&, c10::DispatchKeySet, Stack* stack) {
    Registered& r = get();
    std::vector<Tensor> asked;
    Call call{this, stack, c10::List<bool>()};
    const IValue* values = &stack->end()[-int64_t(r.inputs.size() + 1)];
    for (size_t i = 0; i < r.inputs.size(); i++)
      each_tensor(values[i], [&](const Tensor& t) {
        const bool need = at::GradMode::is_enabled() && t.requires_grad();
        TORCH_CHECK_VALUE(!need || r.has_gradient[i], r.body.name, ": ", r.inputs[i],
                          " requires a gradient; expected one that needs none.");
        call.needs.push_back(need);
        if (need) asked.push_back(t);
      });
    if (asked.empty()) {
      // With gradients switched off the caller knows what to keep: a compiled graph keeps for its own backward pass.
      if (at::GradMode::is_enabled()) stack->back() = false;
      at::AutoDispatchBelowADInplaceOrView guard;
      return r.forward->callBoxed(stack);
    }
    const variable_list outputs = Node::apply(at::TensorList(asked), &call);
    auto next = outputs.begin();
    for (size_t i = 0; i < r.results.size(); i++)
      if (!r.is_kept[i]) stack->end()[-int64_t(r.results.size()) + int64_t(i)] = *next++;
  }
};

struct Autocast : Functor {
  using Functor::Functor;
  void operator()(const c10::OperatorHandle&, c10::DispatchKeySet, Stack* stack) {
    c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastCPU);
    Registered& r = get();
    const auto dtype = at::autocast::get_autocast_dtype(at::kCPU);
    IValue* values = &stack->end()[-int64_t(r.inputs.size() + 1)];
    // Units without the bf16 product pack floats as they are: there every input is rounded first, for the same forward bits.
    bool keeps = dtype == at::kBFloat16 && isa() == Isa::avx512_bf16;
    for (size_t i = 0; i < r.inputs.size(); i++)
      if (r.kinds[i] == Kind::weight)
        each_tensor(values[i], [&](const Tensor& t) { keeps = keeps && t.scalar_type() == at::kFloat; });
    for (size_t i = 0; i < r.inputs.size(); i++) {
      const Kind kind = r.kinds[i];
      if (kind == Kind::half && keeps) values[i] = true;
      if (kind != Kind::rows && kind != Kind::features && (kind != Kind::weight || keeps)) continue;
      variable_list list;
      each_tensor(values[i], [&](const Tensor& t) { list.push_back(at::autocast::cached_cast(dtype, t, at::kCPU)); });
      if (!list.empty()) values[i] = values[i].isTensorList() ? IValue(std::move(list)) : IValue(list.front());
    }
    r.forward->callBoxed(stack);
  }
};

}  // namespace

void add_autograd(Libraries& to, int64_t op) {
  const std::string name = std::string(registry()[size_t(op)]->body.name) + "_cpu";
  to.autograd.impl(name.c_str(), boxed<Autograd>(op));
  to.autocast.impl(name.c_str(), boxed<Autocast>(op));
}

}  // namespace hhmpn
