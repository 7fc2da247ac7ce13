// Ops as the dispatcher calls them: schemas read by name, bodies run.
#include "adapter/registered.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>

#include <algorithm>

#include "adapter/libraries.h"

namespace hhmpn {

using at::Tensor;
using c10::IValue;
using c10::OperatorHandle;
using torch::jit::Stack;

std::vector<bool> Needs::of(const char* input) const {
  const auto at = std::find(names->begin(), names->end(), input);
  return at == names->end() ? std::vector<bool>() : flags[size_t(at - names->begin())];
}

namespace {

// Every field's place among `names`, which hold the fields and nothing else but `more` others.
Order order_of(const char* op, const std::vector<Field>& fields, const std::vector<std::string>& names, size_t more) {
  TORCH_CHECK(fields.size() + more == names.size(), op, ": the schema has ", names.size(), " names where the body has ",
              fields.size() + more, "; expected one build of the library and its Python sources.");
  Order order;
  for (const Field& field : fields) {
    const auto at = std::find(names.begin(), names.end(), field.name);
    TORCH_CHECK(at != names.end(), op, ": the schema has no '", field.name,
                "'; expected one build of the library and its Python sources.");
    order.push_back(size_t(at - names.begin()));
  }
  return order;
}

std::vector<std::string> names_of(const std::vector<c10::Argument>& list) {
  std::vector<std::string> names;
  for (const c10::Argument& a : list) names.push_back(a.name());
  return names;
}

}  // namespace

void Registered::resolve() {
  std::call_once(once, [this] {
    auto& dispatcher = c10::Dispatcher::singleton();
    forward.emplace(dispatcher.findSchemaOrThrow(("hhmpn_fast::" + std::string(body.name) + "_cpu").c_str(), ""));
    inputs = names_of(forward->schema().arguments());
    inputs.pop_back();  // keep
    in = order_of(body.name, body.inputs, inputs, 0);
    kinds.resize(inputs.size());
    for (size_t i = 0; i < in.size(); i++) kinds[in[i]] = body.inputs[i].kind;
    results = names_of(forward->schema().returns());
    if (results.size() == 1) results[0] = body.results[0].name;  // a single return has no name
    out = order_of(body.name, body.results, results, 0);
    is_kept.resize(results.size());
    for (size_t i = 0; i < out.size(); i++) is_kept[out[i]] = body.results[i].kind == Kind::kept;
    has_gradient.resize(inputs.size());
    if (!body.backward && !body.scaled) return;
    for (size_t i = 0; i < inputs.size(); i++)
      has_gradient[i] = kinds[i] == Kind::rows || kinds[i] == Kind::weight || kinds[i] == Kind::exact;
    backward.emplace(
        dispatcher.findSchemaOrThrow(("hhmpn_fast::" + std::string(body.name) + "_backward_cpu").c_str(), ""));
    const std::vector<std::string> names = names_of(backward->schema().arguments());
    const auto place = [](const std::vector<std::string>& list, const std::string& name) {
      return size_t(std::find(list.begin(), list.end(), name) - list.begin());
    };
    for (const c10::Argument& argument : backward->schema().arguments()) {
      const std::string type = argument.type()->str();
      is_list.push_back(type == "Tensor[]");
      is_tensor.push_back(type == "Tensor" || type == "Tensor?");
    }
    if (body.backward) back = order_of(body.name, body.back, names, 1);  // needs
    else
      for (const std::string& input : inputs) kept.push_back(place(names, "d_" + input));
    first_input = place(names, inputs.front());
    for (size_t i = first_input + inputs.size(); i + 1 < names.size(); i++) saved.push_back(place(results, names[i]));
  });
}

std::vector<Tensor> Registered::gradients(const Stack& stack, bool scale) const {
  const IValue* values = &stack.end()[-int64_t(is_list.size())];
  const c10::List<bool> flags = stack.back().toBoolList();
  Needs needs{&inputs, {}};
  size_t at = 0;
  for (size_t i = 0; i < inputs.size(); i++) {
    needs.flags.emplace_back();
    each_tensor(values[first_input + i], [&](const Tensor&) { needs.flags.back().push_back(flags.get(at++)); });
  }
  std::vector<IValue> found(inputs.size());
  if (body.backward) found = body.backward(values, back, in, needs);
  else
    for (size_t i = 0; i < kept.size(); i++)
      if (kept[i] < is_list.size()) found[i] = values[kept[i]];
  std::vector<Tensor> asked;
  for (size_t i = 0; i < inputs.size(); i++) {
    size_t item = 0;
    for (bool need : needs.flags[i]) {
      const IValue& g = found[i];
      if (need) asked.push_back(g.isTensorList() ? g.toTensorList().get(item) : g.isTensor() ? g.toTensor() : Tensor());
      TORCH_CHECK_VALUE(!need || asked.back().defined(), body.name, ": ", inputs[i],
                        " requires a gradient; expected one that needs none.");
      item++;
    }
  }
  if (body.scaled && scale)
    for (Tensor& g : asked) g = at::mul(g, values[0].toTensor()).to(g.scalar_type());
  return asked;
}

std::vector<std::unique_ptr<Registered>>& registry() {
  static std::vector<std::unique_ptr<Registered>> ops;
  return ops;
}

namespace {

// hhmpn_fast::<op>_cpu
struct RunForward : Functor {
  using Functor::Functor;
  void operator()(const OperatorHandle&, c10::DispatchKeySet, Stack* stack) {
    Registered& r = get();
    const bool keep = stack->back().toBool();
    std::vector<IValue> made = r.body.forward(&stack->end()[-int64_t(r.inputs.size() + 1)], r.in, r.out, keep);
    torch::jit::drop(*stack, r.inputs.size() + 1);
    const at::TensorOptions options = made.front().toTensor().options();
    for (IValue& value : made) stack->push_back(value.isNone() ? IValue(at::empty({0}, options)) : std::move(value));
  }
};

// hhmpn_fast::<op>_backward_cpu
struct RunBackward : Functor {
  using Functor::Functor;
  void operator()(const OperatorHandle&, c10::DispatchKeySet, Stack* stack) {
    const Registered& r = get();
    std::vector<Tensor> gradients = r.gradients(*stack, true);
    torch::jit::drop(*stack, r.is_list.size());
    stack->emplace_back(std::move(gradients));
  }
};

}  // namespace

OpEntry::OpEntry(OpBody body) { registry().push_back(std::make_unique<Registered>(std::move(body))); }

void register_ops() {
  static Libraries to;
  for (size_t i = 0; i < registry().size(); i++) {
    const OpBody& body = registry()[i]->body;
    to.cpu.impl((std::string(body.name) + "_cpu").c_str(), boxed<RunForward>(int64_t(i)));
    add_autograd(to, int64_t(i));
    if (!body.backward && !body.scaled) continue;
    const std::string backward = std::string(body.name) + "_backward_cpu";
    to.cpu.impl(backward.c_str(), boxed<RunBackward>(int64_t(i)));
    to.autograd.impl(backward.c_str(), torch::autograd::autogradNotImplementedFallback());
  }
}

}  // namespace hhmpn
