// Records: structs that list their own fields once, by name, and everything that crosses a language border goes through that.
//
//   struct Attention {
//     at::Tensor q, x, mask;
//     int64_t groups;
//     template <class V>
//     void each(V& v) { v.rows("q", q), v.rows("x", x), v.data("mask", mask), v.data("groups", groups); }
//   };
//
// A field's kind says what autograd and autocast do with it. A record may hold records: v.record("f2l_", f2l).
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>

#include <string>
#include <vector>

namespace hhmpn {

enum class Kind {
  rows,      // has a gradient; cast to the autocast dtype
  weight,    // has a gradient; stays float32 beside bfloat16 rows where the kernels round it themselves
  features,  // has no gradient; cast to the autocast dtype
  exact,     // has a gradient; never cast
  data,      // neither
  half,      // a flag that says so where weights stayed float32
  kept       // of a result: for the backward pass only
};

template <class Self>
struct Visitor {
  template <class F>
  void rows(const char* name, F& field) {
    self().field(Kind::rows, name, field);
  }
  template <class F>
  void weight(const char* name, F& field) {
    self().field(Kind::weight, name, field);
  }
  template <class F>
  void features(const char* name, F& field) {
    self().field(Kind::features, name, field);
  }
  template <class F>
  void exact(const char* name, F& field) {
    self().field(Kind::exact, name, field);
  }
  template <class F>
  void data(const char* name, F& field) {
    self().field(Kind::data, name, field);
  }
  template <class F>
  void half(const char* name, F& field) {
    self().field(Kind::half, name, field);
  }
  template <class F>
  void kept(const char* name, F& field) {
    self().field(Kind::kept, name, field);
  }
  template <class R>
  void record(const char*, R& record) {
    record.each(self());
  }

 private:
  Self& self() { return static_cast<Self&>(*this); }
};

// The visitor V for a record whose every field has one kind.
template <class V, Kind kKind>
struct As : Visitor<As<V, kKind>> {
  explicit As(V& visitor) : visitor(visitor) {}
  template <class F>
  void field(Kind, const char* name, F& field) {
    visitor.field(kKind, name, field);
  }
  template <class R>
  void record(const char* prefix, R& record) {
    Under<R> under{record};
    visitor.record(prefix, under);
  }
  template <class R>
  struct Under {
    R& record;
    template <class Inner>
    void each(Inner& inner) {
      As<Inner, kKind> as(inner);
      record.each(as);
    }
  };
  V& visitor;
};

struct Field {
  std::string name;
  Kind kind;
};

// The names of a record, in its own order.
struct Names : Visitor<Names> {
  template <class F>
  void field(Kind kind, const char* name, F&) {
    fields.push_back({prefix + name, kind});
  }
  template <class R>
  void record(const char* before, R& record) {
    const std::string outer = prefix;
    prefix += before;
    record.each(*this);
    prefix = outer;
  }
  std::vector<Field> fields;
  std::string prefix;
};
template <class R>
std::vector<Field> fields_of() {
  R record{};
  Names names;
  record.each(names);
  return names.fields;
}

// Where each field of a record lies in a schema's list.
using Order = std::vector<size_t>;

// Fills a record from the values of a call; None leaves a tensor undefined.
struct Reader : Visitor<Reader> {
  Reader(const c10::IValue* values, const Order& order) : values(values), at(order.data()) {}
  void field(Kind, const char*, at::Tensor& t) {
    const c10::IValue& v = values[*at++];
    if (v.isTensor()) t = v.toTensor();
  }
  void field(Kind, const char*, std::vector<at::Tensor>& list) { list = values[*at++].toTensorVector(); }
  void field(Kind, const char*, std::vector<int64_t>& list) { list = values[*at++].toIntVector(); }
  void field(Kind, const char*, int64_t& number) { number = values[*at++].toInt(); }
  void field(Kind, const char*, double& number) { number = values[*at++].toDouble(); }
  void field(Kind, const char*, bool& flag) { flag = values[*at++].toBool(); }
  const c10::IValue* values;
  const size_t* at;
};

// A record's tensors as values in a schema's order; numbers are left out.
struct Writer : Visitor<Writer> {
  Writer(const Order& order, size_t count) : values(count), at(order.data()) {}
  void field(Kind, const char*, at::Tensor& t) { values[*at++] = t.defined() ? c10::IValue(t) : c10::IValue(); }
  void field(Kind, const char*, std::vector<at::Tensor>& list) { values[*at++] = c10::IValue(list); }
  template <class N>
  void field(Kind, const char*, N&) {
    at++;
  }
  std::vector<c10::IValue> values;
  const size_t* at;
};

}  // namespace hhmpn
