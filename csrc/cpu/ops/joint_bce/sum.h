// joint_bce   J = BCE(logits[T-1]) + lambda sum_{t<T-1} BCE(logits[t]), mean over labels and samples          (Eqs 18-20)
//             with y targets, p label weights: (1 - y) x + (1 + (p - 1) y) log(1 + e^-x); its gradient comes with it
#pragma once
#include "host/tensors.h"

namespace hhmpn {

// `sizes`: of the logits.
void joint_bce_check(const char* op, at::IntArrayRef sizes, const at::Tensor& targets, const at::Tensor& label_weights);

// The sum over the logits given of their terms, each divided by `terms` (B * L of the whole batch), in double; and their gradient,
// into `grad` of the logits' shape.
double joint_bce_sum(const at::Tensor& logits, const at::Tensor& targets, double lambda,
                     const at::Tensor& label_weights, int64_t terms, const at::Tensor& grad);

}  // namespace hhmpn
