// Per-ISA side of kernels.h.
#include "ops/tower/kernels.h"

#include "ops/tower/backward.h"
#include "ops/tower/forward.h"

namespace {

template <class T>
void widen_row(int64_t count, const T* from, Acc<T>* to) {
  copy_row(count, from, to);
}

template <class T>
constexpr hhmpn::TowerKernels<T> make_kernels() {
  return {forward_scratch<T>, forward_block<T>,  backward_scratch<T>, backward_block<T>,
          nodes_scratch<T>,   nodes_backward<T>, widen_row<T>};
}

}  // namespace

HHMPN_EXPORT_UNIT(tower, TowerKernels, make_kernels)
