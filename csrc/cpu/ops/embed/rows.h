// What the ops of the embedding, inference and the joint loss share.
#pragma once
#include <functional>
#include <vector>

#include "host/weight_gradients.h"
#include "host/tensors.h"

namespace hhmpn {

void embed_check(const char* op, at::TensorList xs, at::TensorList weights, at::TensorList biases);

// v (N, d) = x B + b for every modality; packed(m) is that of W_m, biases in accumulators or none.
template <class T>
void embed_rows(const std::vector<at::Tensor>& x, const std::function<const void*(int64_t)>& packed,
                at::TensorList biases, int64_t d, T* v);

// Gradients of every modality's weight and bias from the rows d_v (N, d); see OuterJob.
template <class T>
void embed_weight_jobs(const std::vector<at::Tensor>& x, const T* d_v, int64_t d, at::TensorList weights,
                       at::TensorList biases, bool add, std::vector<OuterJob<T>>& jobs);

// On weights that `pack` packed: xs[m] (N_m, e_m), packed (d, e_m) matrices, biases (d) -> v (N, d)
at::Tensor embed_packed(at::TensorList xs, at::TensorList packed, at::TensorList biases);

}  // namespace hhmpn
