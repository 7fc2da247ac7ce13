// The kernels as PyTorch ops, over the stable ABI and without a CUDA header: loads with any torch, CPU-only ones too.
//
//   hhmpn_cuda::open(path)                               loads libhhmpn_cuda.so
//   hhmpn_cuda::fields(kernel)                           the kernel's fields, a line each (params.h)
//   hhmpn_cuda::launch(kernel, tensors, sizes, reals)    starts a kernel on the current stream of the tensors' device
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <string>
#include <vector>

using torch::stable::Tensor;
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream) __attribute__((weak));

namespace {
using Fields = const char* (*)();
using Launcher = int (*)(void* const*, const long long*, const double*, void*);
void* library = nullptr;

void open(std::string path) {
  library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  STD_TORCH_CHECK(library != nullptr, dlerror());
}

void* symbol(const std::string& name) {
  STD_TORCH_CHECK(library != nullptr, "the CUDA library is not open");
  void* found = dlsym(library, name.c_str());
  STD_TORCH_CHECK(found != nullptr, "the CUDA library has no ", name);
  return found;
}

std::string fields(std::string kernel) { return reinterpret_cast<Fields>(symbol("hh_" + kernel + "_fields"))(); }

void launch(std::string kernel, std::vector<Tensor> tensors, std::vector<int64_t> sizes, std::vector<double> reals) {
  const auto run = reinterpret_cast<Launcher>(symbol("hh_" + kernel));
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this torch is a build without CUDA");
  const auto device = tensors.front().get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == 0, "no CUDA stream");
  std::vector<void*> pointers;
  for (const auto& t : tensors) pointers.push_back(t.numel() ? t.data_ptr() : nullptr);
  const std::vector<long long> n(sizes.begin(), sizes.end());
  const int error = run(pointers.data(), n.data(), reals.data(), stream);
  STD_TORCH_CHECK(error == 0, kernel, ": CUDA error ", error);
}
}  // namespace

STABLE_TORCH_LIBRARY(hhmpn_cuda, m) {
  m.def("open(str path) -> ()");
  m.def("fields(str kernel) -> str");
  m.def("launch(str kernel, Tensor(a!)[] tensors, int[] sizes, float[] reals) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(hhmpn_cuda, CompositeExplicitAutograd, m) {
  m.impl("open", TORCH_BOX(&open));
  m.impl("fields", TORCH_BOX(&fields));
}
STABLE_TORCH_LIBRARY_IMPL(hhmpn_cuda, CUDA, m) { m.impl("launch", TORCH_BOX(&launch)); }
