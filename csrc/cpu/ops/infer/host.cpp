// infer: the whole forward pass, inference only, on weights packed beforehand: what a frozen model calls.
// Logits (T, B, L), bit for bit what embed, f2f and tower give.
#include "adapter/op.h"
#include "ops/embed/rows.h"
#include "ops/f2f/samples.h"
#include "ops/tower/inputs.h"

namespace hhmpn {
namespace {

using at::Tensor;

struct Infer {
  std::vector<Tensor> xs, embed_weights, embed_biases;
  BlockLayers f2f;
  TowerBatch batch;
  LabelWeights labels;
  // Data all of them: nothing here has a gradient, and the weights' dtype is what is computed in.
  template <class V>
  void each(V& v) {
    v.data("xs", xs), v.data("embed_weights", embed_weights), v.data("embed_biases", embed_biases), batch.each(v);
    As<V, Kind::data> as_data(v);
    as_data.record("f2f_", f2f), labels.each(as_data);
  }
};

struct InferResult {
  Tensor logits;
  template <class V>
  void each(V& v) {
    v.exact("logits", logits);
  }
};

InferResult infer(const Infer& in, bool) {
  TORCH_CHECK_VALUE(!in.xs.empty() && in.embed_weights.size() == in.xs.size() && in.embed_biases.size() == in.xs.size(),
                    "infer: found ", in.xs.size(), " inputs, ", in.embed_weights.size(), " weights and ",
                    in.embed_biases.size(), " biases of embeddings; expected one each a modality.");
  std::vector<Tensor> rows;
  for (const Tensor& x : in.xs) rows.push_back(x.to(in.labels.label_embedding.scalar_type()));
  Tensor v = embed_packed(rows, in.embed_weights, in.embed_biases);
  for (int64_t i = 0; i < layers_of(in.f2f); i++)
    v = f2f_packed(v, in.batch.offsets, int64_t(in.xs.size()), layer_of(in.f2f, i));
  return {tower_packed(v, in.batch, in.labels)};
}

HHMPN_INFERENCE_OP(infer, infer)

}  // namespace
}  // namespace hhmpn
