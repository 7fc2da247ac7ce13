// Per-ISA side of kernels.h.
#include "ops/f2f/backward.h"
#include "ops/f2f/forward.h"
#include "ops/f2f/team.h"

namespace {

template <class T>
constexpr hhmpn::F2fKernels<T> make_kernels() {
  return {forward_scratch<T>, forward<T>, team_scratch<T>, forward_team<T>, backward_scratch<T>, backward<T>};
}

}  // namespace

HHMPN_EXPORT_UNIT(f2f, F2fKernels, make_kernels)
