// Baseline side of the tower: checks, plan, packing.
#include "ops/tower/inputs.h"

#include <algorithm>

#include "host/cuts.h"

namespace hhmpn {

using at::Tensor;
using at::TensorList;

namespace {

std::string shape_of(const Tensor& t) { return c10::str(t.scalar_type(), " of shape ", t.sizes()); }

// A leading axis of S sets, then `shape`; contiguous.
Tensor weight(const char* op, const char* name, const Tensor& t, int64_t sets, at::IntArrayRef shape,
              at::ScalarType dtype) {
  TORCH_CHECK_VALUE(t.dim() == int64_t(shape.size()) + 1 && t.sizes().slice(1) == shape &&
                        (sets < 0 || t.size(0) == sets) && t.scalar_type() == dtype,
                    op, ": ", name, " is ", shape_of(t), "; expected ", dtype, ", sets in front of ", shape, ".");
  return t.contiguous();
}

// Matrices as they are, biases in the rows' dtype.
void block_weights(const char* op, TensorList list, int64_t d, at::ScalarType dtype, at::ScalarType rows, int64_t sets,
                   Tensor& query, std::vector<Tensor>& rest) {
  static const char* names[] = {"query", "wv", "wr", "b1", "wb", "b2"};
  const size_t skip = list.size() == 6 ? 0 : 1;
  for (size_t i = 0; i < list.size(); i++) {
    const char* name = names[i + skip];
    const Tensor t = name[0] == 'b' ? weight(op, name, list[i], sets, {d}, dtype).to(rows)
                                    : weight(op, name, list[i], sets, {d, d}, dtype);
    if (i + skip == 0) query = t;
    else rest.push_back(t);
  }
}

}  // namespace

Tensor tower_rows(const char* op, const Tensor& z) {
  TORCH_CHECK_VALUE(z.dim() == 2, op, ": z is ", shape_of(z), "; expected (nodes, d).");
  return z.contiguous();
}

TowerInputs::TowerInputs(const char* op, const TowerNodes& nodes_, const Tensor& offsets_, const Tensor& present_,
                         TensorList readout, const std::optional<Tensor>& mask_, int64_t steps_)
    : nodes(nodes_), steps(steps_), sets(0), dropout{} {
  const int64_t d = dim();
  TORCH_CHECK_VALUE(
      present_.dim() == 2 && present_.scalar_type() == at::kBool && offsets_.numel() == present_.numel() + 1, op,
      ": present is ", shape_of(present_), " with ", offsets_.numel(),
      " offsets; expected bool (M, B) and M * B + 1 offsets.");
  present = present_.contiguous();
  offsets = offsets_.contiguous();
  check_offsets(op, "offsets", offsets, nodes.count);
  TORCH_CHECK_VALUE(steps >= 1, op, ": steps is ", steps, "; expected at least 1.");
  TORCH_CHECK_VALUE(readout.size() == 2 || readout.size() == 3, op, ": readout holds ", readout.size(),
                    " tensors; expected 2 or 3.");
  const at::ScalarType dtype = hhmpn::weight_dtype(readout[0], this->dtype());
  const int64_t rows = readout[0].dim() ? readout[0].size(0) : 0;
  check_matrix(op, "the label embedding", readout[0], rows, d, dtype);
  check_matrix(op, "wo", readout[1], rows, d, dtype);
  const auto rounded = [&](const Tensor& t) { return t.to(this->dtype()).contiguous(); };
  label_embedding = rounded(readout[0]);
  wo = rounded(readout[1]);
  if (readout.size() == 3) {
    check_vector(op, "wl", readout[2], d, dtype);
    wl = rounded(readout[2]);
  }
  if (mask_) {
    TORCH_CHECK_VALUE(mask_->sizes() == at::IntArrayRef({rows, rows}) && mask_->scalar_type() == at::kBool, op,
                      ": mask is ", shape_of(*mask_), "; expected bool (", rows, ", ", rows, ").");
    mask = mask_->contiguous();
  }
}

TowerInputs::TowerInputs(const char* op, const TowerNodes& nodes_, const Tensor& offsets_, const Tensor& present_,
                         TensorList f2l_, TensorList l2l_, TensorList readout, const std::optional<Tensor>& mask_,
                         const std::optional<Tensor>& rng, int64_t steps_, double p)
    : TowerInputs(op, nodes_, offsets_, present_, readout, mask_, steps_) {
  TORCH_CHECK_VALUE(f2l_.size() == 5 || f2l_.size() == 6, op, ": f2l holds ", f2l_.size(),
                    " tensors; expected 5 or 6.");
  TORCH_CHECK_VALUE(l2l_.empty() || l2l_.size() == 6, op, ": l2l holds ", l2l_.size(), " tensors; expected none or 6.");
  const at::ScalarType dtype = hhmpn::weight_dtype(f2l_[0], this->dtype());
  TORCH_CHECK_VALUE(readout[0].scalar_type() == dtype, op, ": the readout is ", readout[0].scalar_type(), "; expected ",
                    dtype, " like f2l.");
  sets = f2l_[0].dim() ? f2l_[0].size(0) : 0;
  TORCH_CHECK_VALUE(sets == 1 || sets == steps, op, ": found ", sets, " sets of weights; expected 1 or ", steps, ".");
  block_weights(op, f2l_, dim(), dtype, this->dtype(), sets, f2l_query, f2l);
  block_weights(op, l2l_, dim(), dtype, this->dtype(), sets, l2l_query, l2l);
  TORCH_CHECK_VALUE(p == 0 || rng, op, ": dropout is ", p, " without rng; expected int64 (2,): seed and step.");
  dropout = make_dropout(op, p, rng ? *rng : Tensor());
}

TowerPlan::TowerPlan(const TowerInputs& in) {
  // Rows of one block: its intermediates fit the second-level cache, and a packed weight is streamed once for them.
  constexpr int64_t kRows = 160;
  const int64_t samples = in.samples(), modalities = in.present.size(0), labels = in.labels();
  const bool* present = in.present.const_data_ptr<bool>();
  const int32_t* offsets = in.offsets.const_data_ptr<int32_t>();
  pair_at.assign(samples + 1, 0);
  std::vector<double> cost(samples + 1, 0);
  for (int64_t b = 0; b < samples; b++) {
    int64_t nodes = 0;
    for (int64_t m = 0; m < modalities; m++) {
      const int64_t segment = m * samples + b, n = offsets[segment + 1] - offsets[segment];
      longest = std::max(longest, n);
      if (!present[segment]) {
        skips_nodes |= n > 0;
        continue;
      }
      pair_modality.push_back(int32_t(m));
      nodes += n;
    }
    pair_at[b + 1] = int32_t(pair_modality.size());
    // Rows of 14 d^2 operations a step each, beside 4 L d a node.
    cost[b + 1] = cost[b] + double(pair_at[b + 1] - pair_at[b]) * double(labels) * 14 * double(in.dim()) +
                  4.0 * double(labels * nodes) + 1;
  }
  const int64_t rows = int64_t(pair_modality.size()) * labels;
  const int64_t count = (rows + kRows - 1) / kRows;
  if (samples == 0) return;
  for (const Cut& cut : even_cuts(cost, std::max<int64_t>(count + count % 2, 2)))  // even: two threads end together
    blocks.push_back({int64_t(blocks.size()), cut.begin, cut.end});
}

template <class T>
TowerPacks<T>::TowerPacks(const TowerInputs& in, bool forward, bool keep) {
  const DenseKernels<T>& k = dense<T>();
  const int64_t d = in.dim(), bytes = k.packed_bytes(d, d), wide = (d * int64_t(sizeof(Acc<T>)) + 127) / 64 * 64;
  const int64_t each = 4 * bytes + 2 * wide, blocks = in.l2l.empty() ? 1 : 2;
  const bool held = in.weight_dtype() != in.dtype();  // in accumulators
  char* at = pack_memory(blocks * in.sets * each, keep, kept_);
  const auto place = [&](int64_t block, int64_t set) { return at + (block * in.sets + set) * each; };
  // y = x W reads the query as it lies and the others transposed; the gradients the other way round.
  parallel_tasks(blocks * in.sets * 4, 0, [&](int64_t i, char*) {
    const int64_t block = i / 4 / in.sets, set = i / 4 % in.sets, which = i % 4;
    const std::vector<Tensor>& w = block ? in.l2l : in.f2l;
    const Tensor& query = block ? in.l2l_query : in.f2l_query;
    const Tensor& t = which == 0 ? query : w[which == 3 ? 3 : which - 1];
    char* to = place(block, set);
    const bool transposed = (which != 0) == forward;
    if (t.defined() && held) k.pack_wide(d, d, data<Acc<T>>(t) + set * d * d, d, transposed, to + which * bytes);
    else if (t.defined()) k.pack(d, d, data<T>(t) + set * d * d, d, transposed, to + which * bytes);
    if (which == 0 && forward)
      for (int64_t b = 0; b < 2; b++)
        tower<T>().widen(d, data<T>(w[2 + 2 * b]) + set * d, (Acc<T>*)(to + 4 * bytes + b * wide));
  });
  for (int64_t t = 0; t < in.steps; t++)
    for (int64_t block = 0; block < blocks; block++) {
      const char* p = place(block, in.set(t));
      const bool query = (block ? in.l2l_query : in.f2l_query).defined();
      (block ? label : f2l)
          .push_back(
              {query ? p : nullptr, p + bytes, p + 2 * bytes, p + 3 * bytes, p + 4 * bytes, p + 4 * bytes + wide});
    }
}

template <class T>
TowerCall<T> tower_call(const TowerInputs& in, const TowerPlan& plan, const T* z) {
  TowerCall<T> c{};
  c.samples = c.batch = in.samples();
  c.labels = in.labels();
  c.modalities = in.present.size(0);
  c.dim = in.dim();
  c.steps = in.steps;
  c.nodes = in.nodes.count;
  c.cap = in.cap();
  c.z = z;
  c.offsets = in.offsets.const_data_ptr<int32_t>();
  c.pair_at = plan.pair_at.data();
  c.pair_modality = plan.pair_modality.data();
  c.longest = plan.longest;
  c.label_embedding = data<T>(in.label_embedding);
  c.wl = data<T>(in.wl);
  c.wo = data<T>(in.wo);
  c.mask = in.mask.defined() ? in.mask.const_data_ptr<bool>() : nullptr;
  c.has_query = in.f2l_query.defined();
  c.has_l2l = !in.l2l.empty();
  c.dropout = in.dropout;
  return c;
}

#define HHMPN_INSTANTIATE(T)     \
  template struct TowerPacks<T>; \
  template TowerCall<T> tower_call(const TowerInputs&, const TowerPlan&, const T*);
HHMPN_INSTANTIATE(float)
HHMPN_INSTANTIATE(double)
HHMPN_INSTANTIATE(bf16)
#undef HHMPN_INSTANTIATE

}  // namespace hhmpn
