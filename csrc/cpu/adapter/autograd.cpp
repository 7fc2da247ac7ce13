// The one adapter between the ops and autograd and autocast.
#include <ATen/autocast_mode.h>
#include <ATen/ops/mul.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "adapter/libraries.h"
#include "adapter/registered.h"
#include "base/isa.h"

namespace hhmpn {

using at::Tensor;
using c10::IValue;
using c10::OperatorHandle;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using torch::jit::Stack;

namespace {

struct Call {
  const Functor* functor;
  Stack* stack;
  std::vector<bool> needs;  // a flag a tensor of the inputs
};

// Ties gradients to the weights, so that a second derivative raises.
struct Once : torch::autograd::Function<Once> {
  static variable_list forward(AutogradContext* ctx, at::TensorList gradients, at::TensorList, std::string op) {
    ctx->saved_data["op"] = op;
    return gradients.vec();
  }
  static variable_list backward(AutogradContext* ctx, variable_list) {
    TORCH_CHECK(false, "derivative for hhmpn_fast::", ctx->saved_data["op"].toStringRef(),
                "_backward_cpu is not implemented");
  }
};

struct Node : torch::autograd::Function<Node> {
  // `inputs` are those that need a gradient; leaves all results on the stack and returns the outputs.
  static variable_list forward(AutogradContext* ctx, at::TensorList inputs, Call* call) {
    at::AutoDispatchBelowADInplaceOrView guard;
    Registered& r = call->functor->get();
    const size_t count = r.inputs.size();
    std::vector<IValue> values(call->stack->end() - int64_t(count + 1), call->stack->end() - 1);
    call->stack->back() = true;
    r.forward->callBoxed(call->stack);
    const IValue* results = &call->stack->end()[-int64_t(r.results.size())];
    variable_list outputs, saved;
    for (size_t i = 0; i < r.results.size(); i++)
      if (!r.is_kept[i]) outputs.push_back(results[i].toTensor());
    if (!r.body.backward) {
      // The gradients that are asked for, then what they belong to.
      size_t at = 0;
      for (size_t i = 0; i < count; i++) {
        const auto kept = std::find(r.results.begin(), r.results.end(), "d_" + r.inputs[i]) - r.results.begin();
        size_t item = 0;
        each_tensor(values[i], [&](const Tensor&) {
          if (call->needs[at++]) {
            const IValue& g = results[kept];
            saved.push_back(g.isTensorList() ? g.toTensorList().get(item) : g.toTensor());
          }
          item++;
        });
      }
      saved.insert(saved.end(), inputs.begin(), inputs.end());
    } else {
      for (IValue& value : values) {
        const size_t before = saved.size();
        each_tensor(value, [&](const Tensor& t) { saved.push_back(t); });
        const int64_t own = int64_t(saved.size() - before);
        if (value.isTensorList()) value = own;
        else if (own > 0) value = true;  // its place
      }
      for (size_t i : r.saved) saved.push_back(results[i].toTensor());
      ctx->saved_data["values"] = c10::ivalue::Tuple::create(std::move(values));
      c10::List<bool> needs;
      for (bool need : call->needs) needs.push_back(need);
      ctx->saved_data["needs"] = std::move(needs);
    }
    ctx->saved_data["op"] = call->functor->op;
    ctx->save_for_backward(std::move(saved));
    ctx->set_materialize_grads(false);
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    Registered& r = *registry()[size_t(ctx->saved_data["op"].toInt())];
    const variable_list saved = ctx->get_saved_variables();
    const bool none = std::none_of(grads.begin(), grads.end(), [](const Tensor& g) { return g.defined(); });
    if (!r.body.backward) return scaled(r, grads.front(), saved);
    const std::vector<IValue>& values = ctx->saved_data["values"].toTupleRef().elements().vec();
    const IValue needs = ctx->saved_data["needs"];
    const c10::List<bool> flags = needs.toBoolList();
    variable_list out(size_t(std::count(flags.begin(), flags.end(), true)) + 1);
    if (none) return out;
    Stack stack;
    for (Tensor& g : grads) stack.push_back(g.defined() ? IValue(g) : IValue());
    size_t at = 0;
    for (size_t i = 0; i < values.size(); i++) {
      if (r.is_list[i]) {
        c10::List<Tensor> list;
        for (int64_t k = values[i].toInt(); k > 0; k--) list.push_back(saved[at++]);
        stack.emplace_back(std::move(list));
      } else if (r.is_tensor[i] && !values[i].isNone()) {
        stack.emplace_back(saved[at++]);
      } else {
        stack.push_back(values[i]);
      }
    }
    for (; at < saved.size(); at++) stack.emplace_back(saved[at]);
    stack.push_back(needs);
    r.backward->callBoxed(&stack);
    const std::vector<Tensor> found = stack.back().toTensorVector();
    std::copy(found.begin(), found.end(), out.begin());
    return out;
  }

  // The gradients themselves where the upstream gradient is 1, which is what `loss.backward()` has: no copy of every weight's
  // size.
  static variable_list scaled(const Registered& r, const Tensor& upstream, const variable_list& saved) {
    const int64_t count = int64_t(saved.size() / 2);
    variable_list out(saved.begin(), saved.begin() + count);
    if (!upstream.defined()) out.assign(size_t(count), Tensor());
    else if (upstream.key_set().has(c10::DispatchKey::Python) || at::GradMode::is_enabled() ||
             upstream.item<double>() != 1.0)
      for (Tensor& g : out) g = at::mul(g, upstream).to(g.scalar_type());
    if (upstream.defined() && at::GradMode::is_enabled())
      out = Once::apply(at::TensorList(out), at::TensorList(saved).slice(size_t(count)), std::string(r.body.name));
    out.emplace_back();
    return out;
  }
};

struct Autograd : Functor {
  using Functor::Functor;
  void operator()(const OperatorHandle&, c10::DispatchKeySet, Stack* stack) {
    Registered& r = get();
    const size_t count = r.inputs.size();
    std::vector<Tensor> asked;
    Call call{this, stack, {}};
    for (size_t i = 0; i < count; i++)
      each_tensor(stack->end()[-int64_t(count + 1) + int64_t(i)], [&](const Tensor& t) {
        const bool need = at::GradMode::is_enabled() && t.requires_grad();
        const bool has = r.kinds[i] == Kind::rows || r.kinds[i] == Kind::weight || r.kinds[i] == Kind::exact;
        TORCH_CHECK_VALUE(!need || has, r.body.name, ": ", r.inputs[i],
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
    size_t at = 0;
    IValue* results = &stack->end()[-int64_t(r.results.size())];
    for (size_t i = 0; i < r.results.size(); i++)
      if (!r.is_kept[i]) results[i] = outputs[at++];
  }
};

struct Autocast : Functor {
  using Functor::Functor;
  void operator()(const OperatorHandle&, c10::DispatchKeySet, Stack* stack) {
    c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastCPU);
    Registered& r = get();
    const auto dtype = at::autocast::get_autocast_dtype(at::kCPU);
    IValue* values = &stack->end()[-int64_t(r.inputs.size() + 1)];
    // Units without the bf16 product pack floats as they are: there every input is rounded first, for the same forward bits.
    bool keeps = dtype == at::kBFloat16 && isa() == Isa::avx512_bf16;
    for (size_t i = 0; i < r.inputs.size(); i++)
      if (r.kinds[i] == Kind::weight)
        each_tensor(values[i], [&](const Tensor& t) { keeps = keeps && t.scalar_type() == at::kFloat; });
    const auto cast = [&](const Tensor& t) { return at::autocast::cached_cast(dtype, t, at::kCPU); };
    for (size_t i = 0; i < r.inputs.size(); i++) {
      const Kind kind = r.kinds[i];
      if (kind == Kind::half && keeps) values[i] = true;
      if (kind != Kind::rows && kind != Kind::features && (kind != Kind::weight || keeps)) continue;
      if (values[i].isTensor()) {
        values[i] = cast(values[i].toTensor());
      } else if (values[i].isTensorList()) {
        std::vector<Tensor> list;
        for (const Tensor& t : values[i].toTensorVector()) list.push_back(cast(t));
        values[i] = std::move(list);
      }
    }
    r.forward->callBoxed(stack);
  }
};

}  // namespace

void add_autograd(Libraries& to, int64_t op) {
  const OpBody& body = registry()[size_t(op)]->body;
  const std::string name = std::string(body.name) + "_cpu";
  to.autograd.impl(name.c_str(), boxed<Autograd>(op));
  const bool casts = std::any_of(body.inputs.begin(), body.inputs.end(), [](const Field& f) {
    return f.kind == Kind::rows || f.kind == Kind::features || f.kind == Kind::weight;
  });
  if (casts) to.autocast.impl(name.c_str(), boxed<Autocast>(op));
}

}  // namespace hhmpn
