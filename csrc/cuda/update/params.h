// update's arguments, from contexts to the next state, and its rows' gradients; see forward.cu and backward.cu.
#pragma once
#include "base/launch.h"
#include "base/philox.cuh"

namespace hh {
#define HH_UPDATE(F)                                \
  F(In, void, value, "d d")                         \
  F(In, void, hidden, "hidden_sets d d")            \
  F(In, void, output, "d d")                        \
  F(Group, Dropout, dropout, "of the output layer") \
  F(Size, unsigned, site, "of the output layer")    \
  F(Size, int, rows, "of the result")               \
  F(Size, int, modalities, "summed by features, 0 for labels")
HH_RECORD(Update, Call, HH_UPDATE)

#define HH_UPDATE_FORWARD(F)                                                   \
  F(In, void, state, "state_rows d")                                           \
  F(In, void, context, "contexts rows d")                                      \
  F(In, void, b1, "d")                                                         \
  F(In, void, b2, "d")                                                         \
  F(Size, int, state_rows, "of the states, which repeat where they are fewer") \
  F(Out, void, out, "rows d")                                                  \
  F(OutOrNull, void, g, "rows d")                                              \
  F(OutOrNull, void, h, "rows d")
HH_RECORD(UpdateForward, Update, HH_UPDATE_FORWARD)

#define HH_UPDATE_BACKWARD(F)          \
  F(In, void, d_out, "rows d")         \
  F(In, void, h, "rows d")             \
  F(OutOrNull, void, d_tail, "rows d") \
  F(Out, void, d_h, "rows d")          \
  F(OutOrNull, void, d_g, "rows d")    \
  F(Out, void, d_context, "contexts rows d")
HH_RECORD(UpdateBackward, Update, HH_UPDATE_BACKWARD)
}  // namespace hh
