// The weight gradients' arguments: a job is one weight matrix, with its bias.
#pragma once
#include "base/launch.h"

namespace hh {
#define HH_WEIGHT_GRADIENTS(F)               \
  F(InList, void, d_out, "rows d")           \
  F(InList, void, inputs, "rows d")          \
  F(SizeList, int, rows, "of each job")      \
  F(Size, int, splits, "of a job's rows")    \
  F(Out, float, parts, "splits jobs d d")    \
  F(Out, float, bias_parts, "splits jobs d") \
  F(OutList, float, d_weight, "d d")         \
  F(OutList, float, d_bias, "d")
HH_RECORD(WeightGradients, Call, HH_WEIGHT_GRADIENTS)
}  // namespace hh
