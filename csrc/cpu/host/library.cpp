// The library as Python loads it: `import hhmpn_fast._C` runs this file. Ops register through adapter/op.h; what has neither
// tensors to differentiate nor a second backend is defined here, its schema read from its signature.
#include <Python.h>
#include <torch/library.h>

#include "base/isa.h"
#include "adapter/op.h"
#include "host/utilities.h"

TORCH_LIBRARY_FRAGMENT(hhmpn_fast, m) {
  m.def("cpu_isa", [] { return std::string(hhmpn::isa_name(hhmpn::isa())); });
  m.def("digest", torch::dispatch(c10::DispatchKey::CPU, hhmpn::digest));
  m.def("pack_bytes", hhmpn::pack_bytes);
  m.def("pack", torch::dispatch(c10::DispatchKey::CPU, hhmpn::pack));
}

extern "C" PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  hhmpn::register_ops();
  return PyModule_Create(&module);
}
