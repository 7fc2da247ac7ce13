// Checks, plan, packing of the tower.
#include "ops/tower/inputs.h"

#include <algorithm>
#include <functional>

#include "host/threads.h"

namespace hhmpn {

using at::Tensor;

namespace {

std::string shape_of(const Tensor& t) { return c10::str(t.scalar_type(), " of shape ", t.sizes()); }

// Matrices as they are, biases in the rows' dtype; contiguous, `sets` of each in front.
BlockWeights checked(const std::string& op, const BlockWeights& given, const TowerInputs& in, at::ScalarType dtype) {
  const auto check = [&](const char* name, const Tensor& t, at::IntArrayRef shape) {
    TORCH_CHECK_VALUE(t.defined() && t.sizes() == shape && t.scalar_type() == dtype, op, name, " is ",
                      t.defined() ? shape_of(t) : "missing", "; expected ", dtype, ", sets in front of ",
                      shape.slice(1), ".");
  };
  BlockWeights out;
  BlockWeights::matrices(out, given, [&](const char* name, Tensor& to, const Tensor& t) {
    if (&t == &given.query && !t.defined()) return;
    check(name, t, {in.sets, in.dim(), in.dim()});
    to = t.contiguous();
  });
  BlockWeights::biases(out, given, [&](const char* name, Tensor& to, const Tensor& t) {
    check(name, t, {in.sets, in.dim()});
    to = t.contiguous().to(in.dtype());
  });
  return out;
}

}  // namespace

Tensor tower_rows(const char* op, const Tensor& z) {
  TORCH_CHECK_VALUE(z.dim() == 2, op, ": z is ", shape_of(z), "; expected (nodes, d).");
  return z.contiguous();
}

TowerInputs::TowerInputs(const char* op, const TowerNodes& nodes_, const TowerBatch& batch, const LabelWeights& readout)
    : nodes(nodes_), steps(batch.steps), sets(0), dropout{} {
  const int64_t d = dim();
  TORCH_CHECK_VALUE(batch.present.dim() == 2 && batch.present.scalar_type() == at::kBool &&
                        batch.offsets.numel() == batch.present.numel() + 1,
                    op, ": present is ", shape_of(batch.present), " with ", batch.offsets.numel(),
                    " offsets; expected bool (M, B) and M * B + 1 offsets.");
  present = batch.present.contiguous();
  offsets = batch.offsets.contiguous();
  check_offsets(op, "offsets", offsets, nodes.count);
  TORCH_CHECK_VALUE(steps >= 1, op, ": steps is ", steps, "; expected at least 1.");
  const Tensor& u0 = readout.label_embedding;
  const at::ScalarType dtype = hhmpn::weight_dtype(u0, this->dtype());
  const int64_t rows = u0.dim() ? u0.size(0) : 0;
  check_matrix(op, "the label embedding", u0, rows, d, dtype);
  check_matrix(op, "wo", readout.wo, rows, d, dtype);
  const auto rounded = [&](const Tensor& t) { return t.to(this->dtype()).contiguous(); };
  label_embedding = rounded(u0);
  wo = rounded(readout.wo);
  if (readout.wl.defined()) {
    check_vector(op, "wl", readout.wl, d, dtype);
    wl = rounded(readout.wl);
  }
  if (batch.mask.defined()) {
    TORCH_CHECK_VALUE(batch.mask.sizes() == at::IntArrayRef({rows, rows}) && batch.mask.scalar_type() == at::kBool, op,
                      ": mask is ", shape_of(batch.mask), "; expected bool (", rows, ", ", rows, ").");
    mask = batch.mask.contiguous();
  }
}

TowerInputs::TowerInputs(const char* op, const TowerNodes& nodes_, const TowerBatch& batch, const LabelWeights& weights,
                         const DropoutInput& drop)
    : TowerInputs(op, nodes_, batch, weights) {
  const Tensor& value = weights.f2l.value;
  const at::ScalarType dtype = hhmpn::weight_dtype(value, this->dtype());
  TORCH_CHECK_VALUE(weights.label_embedding.scalar_type() == dtype, op, ": the readout is ",
                    weights.label_embedding.scalar_type(), "; expected ", dtype, " like f2l.");
  sets = value.dim() ? value.size(0) : 0;
  TORCH_CHECK_VALUE(sets == 1 || sets == steps, op, ": found ", sets, " sets of weights; expected 1 or ", steps, ".");
  f2l = checked(std::string(op) + ": f2l_", weights.f2l, *this, dtype);
  if (weights.l2l.value.defined()) {
    TORCH_CHECK_VALUE(weights.l2l.query.defined(), op, ": l2l_query is missing; expected one beside l2l_value.");
    l2l = checked(std::string(op) + ": l2l_", weights.l2l, *this, dtype);
  }
  dropout = make_dropout(op, drop);
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
  const int64_t each = 4 * bytes + 2 * wide, blocks = in.has_l2l() ? 2 : 1;
  const bool held = in.weight_dtype() != in.dtype();  // in accumulators
  char* at = pack_memory(blocks * in.sets * each, keep, kept_);
  std::vector<std::function<void()>> tasks;
  const auto pack_sets = [&](const BlockWeights& from) {
    std::vector<TowerWeights> packed(size_t(in.sets));
    for (int64_t set = 0; set < in.sets; set++) {
      TowerWeights& to = packed[size_t(set)];
      const auto matrix = [&](const Tensor& t, const void*& place, bool transposed) {
        if (!t.defined()) return;
        char* memory = at;
        at += bytes;
        place = memory;
        tasks.push_back([=, &k] {
          if (held) k.pack_wide(d, d, data<Acc<T>>(t) + set * d * d, d, transposed, memory);
          else k.pack(d, d, data<T>(t) + set * d * d, d, transposed, memory);
        });
      };
      const auto bias = [&](const Tensor& t, const void*& place) {
        char* memory = at;
        at += wide;
        place = memory;
        tasks.push_back([=] { tower<T>().widen(d, data<T>(t) + set * d, (Acc<T>*)memory); });
      };
      // y = x W reads the query as it lies and the others transposed; the gradients the other way round.
      matrix(from.query, to.query, !forward);
      matrix(from.value, to.value, forward);
      matrix(from.hidden, to.hidden, forward);
      matrix(from.output, to.output, forward);
      if (forward) bias(from.b1, to.b1), bias(from.b2, to.b2);
    }
    return packed;
  };
  const std::vector<TowerWeights> f2l_sets = pack_sets(in.f2l);
  const std::vector<TowerWeights> l2l_sets = in.has_l2l() ? pack_sets(in.l2l) : std::vector<TowerWeights>();
  parallel_tasks(int64_t(tasks.size()), 0, [&](int64_t i, char*) { tasks[size_t(i)](); });
  for (int64_t t = 0; t < in.steps; t++) {
    f2l.push_back(f2l_sets[size_t(in.set(t))]);
    if (in.has_l2l()) l2l.push_back(l2l_sets[size_t(in.set(t))]);
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
  c.has_query = in.has_query();
  c.has_l2l = in.has_l2l();
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
