// The dispatch keys that the cpu backend's kernels are registered for.
#pragma once
#include <torch/library.h>

namespace hhmpn {

struct Libraries {
  torch::Library cpu{torch::Library::IMPL, "hhmpn_fast", c10::DispatchKey::CPU, __FILE__, __LINE__};
  torch::Library autograd{torch::Library::IMPL, "hhmpn_fast", c10::DispatchKey::Autograd, __FILE__, __LINE__};
  torch::Library autocast{torch::Library::IMPL, "hhmpn_fast", c10::DispatchKey::AutocastCPU, __FILE__, __LINE__};
};

template <class F>
torch::CppFunction boxed(int64_t op) {
  return torch::CppFunction::makeFromBoxedFunctor(std::make_unique<F>(op));
}

}  // namespace hhmpn
