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

// dW_m and db_m of every modality from the rows `grad` (N, d); see OuterJob.
template <class T>
void embed_weight_jobs(const std::vector<at::Tensor>& x, const T* grad, int64_t ld, int64_t d, at::TensorList weights,
                       at::TensorList biases, bool add, std::vector<OuterJob<T>>& jobs);

}  // namespace hhmpn
