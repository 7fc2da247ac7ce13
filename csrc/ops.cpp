// Schemas of every op, in one place. csrc/cpu and csrc/cuda implement them; Python's `import hhmpn_fast._C` runs this file.
#include <Python.h>
#include <torch/library.h>

#include "cpu/infer.h"
#include "cpu/isa.h"

TORCH_LIBRARY(hhmpn_fast, m) {
  m.def("cpu_isa() -> str", [] { return std::string(hhmpn::isa_name(hhmpn::isa())); });
  m.def("embed(Tensor[] xs, Tensor[] weights, Tensor[] biases) -> Tensor");
  m.def("embed_backward(Tensor grad, Tensor[] xs, Tensor[] weights, int[] need_dx) -> Tensor[]");
  m.def("absorb(Tensor left, Tensor right, float scale, bool half=False) -> Tensor");
  m.def("absorb_backward(Tensor grad, Tensor left, Tensor right, float scale, bool half=False) -> (Tensor, Tensor)");
  m.def(
      "attention(Tensor q, Tensor x, Tensor q_offsets, Tensor x_offsets, int groups, Tensor? mask, float dropout, "
      "Tensor? rng, "
      "int site) -> (Tensor, Tensor)");
  m.def(
      "attention_backward(Tensor d_context, Tensor? d_lse, Tensor q, Tensor x, Tensor q_offsets, Tensor x_offsets, int "
      "groups, "
      "Tensor? mask, float dropout, Tensor? rng, int site, Tensor context, Tensor lse) -> (Tensor, Tensor)");
  m.def(
      "update(Tensor state, Tensor context, Tensor wv, Tensor wr, Tensor b1, Tensor wb, Tensor b2, float dropout, "
      "Tensor? rng, "
      "int site) -> Tensor");
  m.def(
      "update_forward(Tensor state, Tensor context, Tensor wv, Tensor wr, Tensor b1, Tensor wb, Tensor b2, float "
      "dropout, "
      "Tensor? rng, int site, bool save) -> (Tensor, Tensor, Tensor)");
  m.def(
      "update_backward(Tensor d_out, Tensor state, Tensor context, Tensor wv, Tensor wr, Tensor b1, Tensor wb, Tensor "
      "b2, "
      "float dropout, Tensor? rng, int site, Tensor mixed, Tensor hidden) -> Tensor[]");
  m.def(
      "f2f(Tensor v, Tensor offsets, Tensor a, Tensor c, Tensor wv, Tensor b1, Tensor wb, Tensor b2, float dropout, "
      "Tensor? rng, "
      "int attention_site, int update_site) -> Tensor");
  m.def(
      "f2f_forward(Tensor v, Tensor offsets, Tensor a, Tensor c, Tensor wv, Tensor b1, Tensor wb, Tensor b2, float "
      "dropout, "
      "Tensor? rng, int attention_site, int update_site, bool save) -> Tensor[]");
  m.def(
      "f2f_backward(Tensor dz, Tensor v, Tensor offsets, Tensor a, Tensor c, Tensor wv, Tensor b1, Tensor wb, Tensor "
      "b2, "
      "float dropout, Tensor? rng, int attention_site, int update_site, Tensor[] saved) -> Tensor[]");
  m.def("readout(Tensor u, Tensor present, Tensor? wl, Tensor wo) -> (Tensor, Tensor, Tensor)");
  m.def(
      "readout_backward(Tensor? d_fused, Tensor? d_logits, Tensor? d_alpha, Tensor u, Tensor present, Tensor? wl, "
      "Tensor wo, "
      "Tensor fused, Tensor alpha) -> (Tensor, Tensor, Tensor)");
  m.def("joint_bce(Tensor logits, Tensor targets, float intermediate_weight, Tensor? label_weights) -> Tensor");
  m.def(
      "joint_bce_save(Tensor logits, Tensor targets, float intermediate_weight, Tensor? label_weights) -> (Tensor, "
      "Tensor)");
  m.def("joint_bce_backward(Tensor upstream, Tensor grad, Tensor logits) -> Tensor");
  // f2l: [query,] wv, wr, b1, wb, b2   l2l: the same six or none   readout: label embedding, wo[, wl]
  m.def(
      "tower(Tensor z, Tensor offsets, Tensor present, Tensor[] f2l, Tensor[] l2l, Tensor[] readout, Tensor? mask, "
      "Tensor? rng, "
      "int steps, float dropout) -> Tensor");
  m.def(
      "tower_save(Tensor z, Tensor offsets, Tensor present, Tensor[] f2l, Tensor[] l2l, Tensor[] readout, Tensor? "
      "mask, "
      "Tensor? rng, int steps, float dropout) -> Tensor[]");
  m.def(
      "tower_backward(Tensor grad, Tensor[] saved, Tensor z, Tensor offsets, Tensor present, Tensor[] f2l, Tensor[] "
      "l2l, "
      "Tensor[] readout, Tensor? mask, Tensor? rng, int steps, float dropout, bool need_z) -> Tensor[]");
  // embed: weights, then biases   f2f: query, wv, C, b1, wb, b2 a layer   sites: of attention and update, a layer
  m.def(
      "joint_loss(Tensor[] xs, Tensor offsets, Tensor present, Tensor targets, Tensor? label_weights, Tensor[] embed, "
      "Tensor[] f2f, Tensor[] f2l, Tensor[] l2l, Tensor[] readout, Tensor? mask, Tensor? rng, int[] sites, int steps, "
      "float intermediate_weight, float dropout, int budget) -> (Tensor, Tensor)");
  m.def(
      "joint_loss_save(Tensor[] xs, Tensor offsets, Tensor present, Tensor targets, Tensor? label_weights, Tensor[] "
      "embed, "
      "Tensor[] f2f, Tensor[] f2l, Tensor[] l2l, Tensor[] readout, Tensor? mask, Tensor? rng, int[] sites, int steps, "
      "float intermediate_weight, float dropout, int budget) -> Tensor[]");
  m.def("joint_loss_backward(Tensor upstream, Tensor[] gradients, Tensor[] weights) -> Tensor[]");
  m.def("digest(Tensor[] tensors) -> int");
  m.def("pack_bytes(int rows, int columns, bool transposed, ScalarType dtype) -> int", hhmpn::pack_bytes);
  m.def("pack(Tensor weights, bool transposed) -> Tensor");
  // embed: packed weights, then biases   f2f: A, Wv, C, b1, Wb, b2 a layer   f2l, l2l, readout: as tower's; matrices packed
  m.def(
      "infer(Tensor[] xs, Tensor offsets, Tensor present, Tensor[] embed, Tensor[] f2f, Tensor[] f2l, Tensor[] l2l, "
      "Tensor[] readout, Tensor? mask, int steps) -> Tensor");
}

extern "C" PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&module);
}
