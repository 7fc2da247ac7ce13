// From a kernel's record to its launch: the dtype and size of the call pick the instantiation.
//
// HH_KERNEL(name, Record) makes the two functions that the binding finds by name:
//   hh_<name>_fields()                            the record's fields, a line each (params.h)
//   hh_<name>(tensors, sizes, reals, stream)      fills the record and calls start(Form<T, D>, record, stream);
//                                                 0, a CUDA error, or kUnsupported
#pragma once
#include "base/device.cuh"
#include "base/params.h"

namespace hh {
constexpr int kUnsupported = -1;

template <class T, int D>
struct Form {};

template <class T, class F>
int dispatch_size(int d, F&& f) {
  if (d == 64) return f(Form<T, 64>{});
#ifndef HH_SMALLEST_ONLY  // the mutation run builds every kernel many times
  if (d == 128) return f(Form<T, 128>{});
  if (d == 256) return f(Form<T, 256>{});
#endif
  return kUnsupported;
}
template <class F>
int dispatch(const Call& call, F&& f) {
  switch (call.dtype) {
    case 0:
      return dispatch_size<float>(call.d, f);
    case 1:
      return dispatch_size<bf16>(call.d, f);
    case 2:
      return dispatch_size<fp16>(call.d, f);
  }
  return kUnsupported;
}

template <class Record>
int start_record(Fill fill, void* stream) {
  Record record{};
  record.each(fill);
  if (!fill.fits) return kUnsupported;
  return dispatch(record, [&](auto form) { return start(form, record, stream); });
}
}  // namespace hh

#define HH_KERNEL(name, Record)                                                                               \
  extern "C" const char* hh_##name##_fields() { return hh::fields_of<hh::Record>(); }                         \
  extern "C" int hh_##name(void* const* tensors, const long long* sizes, const double* reals, void* stream) { \
    return hh::start_record<hh::Record>({tensors, sizes, reals}, stream);                                     \
  }
