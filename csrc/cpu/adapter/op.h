// How an op of the `cpu` backend is registered: its bodies over records, and one adapter for autograd and autocast.
//
//   Kept forward(const In& in, bool keep)     outputs, and what backward needs where `keep` is set
//   In backward(const Back& back)             gradients, each in the place of its input; undefined where there is none
//   HHMPN_OP(update, forward, backward)
//   HHMPN_SCALED_OP(joint_bce, forward)       its gradients are kept as d_<input>, and scaled when they are asked for
//   HHMPN_INFERENCE_OP(infer, forward)        no input has a gradient
//
// The schemas are Python's (hhmpn_fast/ops), read by name: a record and a schema that differ are refused at the first call.
#pragma once
#include <ATen/ops/empty.h>

#include "adapter/record.h"

namespace hhmpn {

// Which gradients a call asks for.
struct Needs {
  // Of one input: a flag a tensor.
  std::vector<bool> of(const char* input) const;
  const std::vector<std::string>* names = nullptr;
  std::vector<std::vector<bool>> flags;
};

struct OpBody {
  const char* name;
  std::vector<Field> inputs, results, back;  // of the records; `back` is empty where no body gives gradients
  std::vector<c10::IValue> (*forward)(const c10::IValue* values, const Order& in, const Order& out, bool keep);
  std::vector<c10::IValue> (*backward)(const c10::IValue* values, const Order& back, const Order& in,
                                       const Needs& needs);
  bool scaled = false;
};

// Adds an op to those that `register_ops` registers when the library is loaded.
struct OpEntry {
  explicit OpEntry(OpBody body);
};
void register_ops();

template <auto Run>
struct Forward;
template <class Out, class In, Out (*Run)(const In&, bool)>
struct Forward<Run> {
  using Inputs = In;
  using Results = Out;
  static std::vector<c10::IValue> call(const c10::IValue* values, const Order& in, const Order& out, bool keep) {
    In record{};
    Reader reader(values, in);
    record.each(reader);
    Out made = Run(record, keep);
    Writer writer(out, out.size());
    made.each(writer);
    return std::move(writer.values);
  }
};

template <auto Run>
struct Backward;
template <class In, class Back, In (*Run)(const Back&)>
struct Backward<Run> {
  using Record = Back;
  static std::vector<c10::IValue> call(const c10::IValue* values, const Order& back, const Order& in,
                                       const Needs& needs) {
    Back record{};
    Reader reader(values, back);
    record.each(reader);
    record.needs = needs;
    In gradients = Run(record);
    Writer writer(in, in.size());
    gradients.each(writer);
    return std::move(writer.values);
  }
};

#define HHMPN_OP(op, run, run_backward)                                                             \
  const ::hhmpn::OpEntry op##_entry({#op, ::hhmpn::fields_of<::hhmpn::Forward<run>::Inputs>(),      \
                                     ::hhmpn::fields_of<::hhmpn::Forward<run>::Results>(),          \
                                     ::hhmpn::fields_of<::hhmpn::Backward<run_backward>::Record>(), \
                                     ::hhmpn::Forward<run>::call, ::hhmpn::Backward<run_backward>::call});
#define HHMPN_FORWARD_OP(op, run, scaled)                                                  \
  const ::hhmpn::OpEntry op##_entry({#op,                                                  \
                                     ::hhmpn::fields_of<::hhmpn::Forward<run>::Inputs>(),  \
                                     ::hhmpn::fields_of<::hhmpn::Forward<run>::Results>(), \
                                     {},                                                   \
                                     ::hhmpn::Forward<run>::call,                          \
                                     nullptr,                                              \
                                     scaled});
#define HHMPN_SCALED_OP(op, run) HHMPN_FORWARD_OP(op, run, true)
#define HHMPN_INFERENCE_OP(op, run) HHMPN_FORWARD_OP(op, run, false)

}  // namespace hhmpn
