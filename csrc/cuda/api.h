// The library's C interface: every launcher takes tensors' addresses, sizes, reals and a stream, in the order that
// hhmpn_fast/ops/cuda_launch.py writes down, and returns 0 or a CUDA error. n[0] is the dtype (0 fp32, 1 bf16), n[1] d.
#pragma once
#include "device.cuh"

#define HH_LAUNCHER(name) int name(void* const* t, const long long* n, const double* f, void* stream)
extern "C" {
HH_LAUNCHER(hh_attention_forward);
HH_LAUNCHER(hh_attention_backward);
HH_LAUNCHER(hh_update_forward);
HH_LAUNCHER(hh_update_backward);
HH_LAUNCHER(hh_weight_gradients);
HH_LAUNCHER(hh_tower_forward);
HH_LAUNCHER(hh_tower_backward);
}

namespace hh {
constexpr int kUnsupported = -1;

template <class Op, class T, class Args>
int dispatch_size(long long d, const Args& args, void* stream) {
  if (d == 64) return Op::template run<T, 64>(args, stream);
#ifndef HH_SMALLEST_ONLY  // the mutation run builds every kernel many times
  if (d == 128) return Op::template run<T, 128>(args, stream);
  if (d == 256) return Op::template run<T, 256>(args, stream);
#endif
  return kUnsupported;
}
// Op::run<T, D>(args, stream) for the dtype n[0] and the size n[1].
template <class Op, class Args>
int dispatch(const long long* n, const Args& args, void* stream) {
  return n[0] ? dispatch_size<Op, bf16>(n[1], args, stream) : dispatch_size<Op, float>(n[1], args, stream);
}
}  // namespace hh
