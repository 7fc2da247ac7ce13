// The weights of one call, packed side by side in one block by all threads at once.
#pragma once
#include <vector>

#include <ATen/core/Tensor.h>

#include "base/dense.h"
#include "host/threads.h"

namespace hhmpn {

inline char* pack_memory(int64_t bytes, bool keep, at::Tensor& kept) {
  if (!keep) return call_scratch(bytes);
  kept = pooled_empty({bytes}, at::kByte);
  return static_cast<char*>(kept.data_ptr());
}

template <class T>
class PackedWeights {
 public:
  // Matrix `item` (rows, columns) of a tensor of T or of Acc<T>; transposed packs B = W^T (x W^T, forward), else B = W
  // (dy W, backward). Returns its number.
  int64_t add(const at::Tensor& weights, int64_t item, int64_t rows, int64_t columns, bool transposed) {
    const int64_t ld = weights.stride(-2),
                  at = item * (weights.dim() == 3 ? weights.stride(0) : 0) * weights.element_size();
    const bool wide = size_t(weights.element_size()) != sizeof(T);
    entries_.push_back({static_cast<const char*>(weights.const_data_ptr()) + at, wide, transposed ? columns : rows,
                        transposed ? rows : columns, ld, bytes_, transposed});
    bytes_ += dense<T>().packed_bytes(entries_.back().k, entries_.back().n);
    return int64_t(entries_.size()) - 1;
  }
  // Into the calling thread's scratch, until its next call, or where `keep` is set into memory of their own.
  void pack(bool keep = false) {
    block_ = pack_memory(bytes_, keep, kept_);
    parallel_tasks(int64_t(entries_.size()), 0, [&](int64_t i, char*) {
      const Entry& e = entries_[i];
      if (e.wide)
        dense<T>().pack_wide(e.k, e.n, reinterpret_cast<const Acc<T>*>(e.weight), e.ld, e.transposed, block_ + e.at);
      else dense<T>().pack(e.k, e.n, reinterpret_cast<const T*>(e.weight), e.ld, e.transposed, block_ + e.at);
    });
  }
  const void* operator[](int64_t i) const { return block_ + entries_[i].at; }
  int64_t bytes(int64_t i) const { return dense<T>().packed_bytes(entries_[i].k, entries_[i].n); }

 private:
  struct Entry {
    const char* weight;
    bool wide;
    int64_t k, n, ld, at;
    bool transposed;
  };
  std::vector<Entry> entries_;
  int64_t bytes_ = 0;
  char* block_ = nullptr;
  at::Tensor kept_;
};

// The first of `count` packed matrices of `bytes` each.
inline const char* packed_matrices(const char* name, const at::Tensor& t, int64_t count, int64_t bytes) {
  TORCH_CHECK_VALUE(t.scalar_type() == at::kByte && t.is_contiguous() && t.numel() == count * bytes, "infer: packed ",
                    name, " is ", t.scalar_type(), " ", t.sizes(), "; expected ", count, " x ", bytes,
                    " bytes of `pack` for these rows.");
  return reinterpret_cast<const char*>(t.const_data_ptr());
}

template <class T>
const Acc<T>* packed_bias(const char* name, const at::Tensor& t, int64_t count) {
  TORCH_CHECK_VALUE(t.is_contiguous() && t.numel() == count && size_t(t.element_size()) == sizeof(Acc<T>),
                    "infer: ", name, " is ", t.scalar_type(), " ", t.sizes(), "; expected ", count,
                    " accumulators of these rows.");
  return reinterpret_cast<const Acc<T>*>(t.const_data_ptr());
}

}  // namespace hhmpn
