// toy's arguments; see passes.cu.
#pragma once
#include "base/launch.h"

namespace hh {
#define HH_TOY(F)          \
  F(In, void, x, "rows d") \
  F(In, void, w, "d")      \
  F(Size, int, rows, "of x")
HH_RECORD(Toy, Call, HH_TOY)

#define HH_TOY_FORWARD(F) F(Out, void, y, "rows d")
HH_RECORD(ToyForward, Toy, HH_TOY_FORWARD)

#define HH_TOY_BACKWARD(F)    \
  F(In, void, d_y, "rows d")  \
  F(Out, void, d_x, "rows d") \
  F(Out, void, d_w, "d")
HH_RECORD(ToyBackward, Toy, HH_TOY_BACKWARD)
}  // namespace hh
