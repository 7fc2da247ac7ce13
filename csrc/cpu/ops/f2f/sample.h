// A sample's nodes gathered from its segments, and the scratch of one block of its rows; f2f forward and backward share them.
#pragma once
#include "base/arena.h"
#include "ops/f2f/kernels.h"
#include "simd/operands.h"
#include "simd/softmax.h"

namespace {

using hhmpn::F2fArgs;

constexpr int64_t kF2fRows = 96;  // rows whose scores are held at once
constexpr int64_t kMostModalities = 64;

template <class T>
int64_t sample_nodes(const F2fArgs<T>& a, int64_t sample) {
  int64_t count = 0;
  for (int64_t m = 0; m < a.modalities; m++)
    count += a.offsets[m * a.samples + sample + 1] - a.offsets[m * a.samples + sample];
  return count;
}

template <class T>
struct Sample {
  Sample() = default;
  Sample(Arena& arena, int64_t d, int64_t longest)
      : x(arena.take<T>(longest * d)), node(arena.take<int32_t>(longest)), row(arena.take<uint32_t>(longest)) {}

  // Which nodes the sample has, without their rows.
  void place(const F2fArgs<T>& a, int64_t sample) {
    count = 0;
    for (int64_t m = 0; m < a.modalities; m++) {
      const int64_t first = a.offsets[m * a.samples + sample], rows = a.offsets[m * a.samples + sample + 1] - first;
      start[m] = count;
      for (int64_t i = 0; i < rows; i++) node[count + i] = int32_t(first + i);
      if (a.dropout.on)
        for (int64_t i = 0; i < rows; i++) row[count + i] = uint32_t(first + i + (a.row_shift ? a.row_shift[m] : 0));
      count += rows;
    }
    start[a.modalities] = count;
  }
  void gather(const F2fArgs<T>& a, int64_t sample) {
    place(a, sample);
    gather_rows(a, a.v, x);
  }
  // Rows of another (N, d) tensor, in the sample's order.
  void gather_rows(const F2fArgs<T>& a, const T* from, T* to) const {
    for (int64_t m = 0; m < a.modalities; m++)
      if (start[m + 1] > start[m])
        memcpy((void*)(to + start[m] * a.d), from + int64_t(node[start[m]]) * a.d,
               size_t((start[m + 1] - start[m]) * a.d) * sizeof(T));
  }

  T* x;           // (count, d)
  int32_t* node;  // its row in v
  uint32_t* row;  // its row in the dropout masks, where dropout is on
  int64_t count = 0;
  int64_t start[kMostModalities + 1];
};

template <class T>
struct RowScratch {
  RowScratch() = default;
  RowScratch(Arena& a, int64_t d, int64_t longest)
      : op(a.take<Op<T>>(kF2fRows * operand_width<T>(d))),
        scores(a.take<Acc<T>>(kF2fRows * round_up(longest, kLanes<T>))),
        weights(a.take<Op<T>>((kF2fRows + 1) * round_up(longest, 2 * kLanes<T>))),
        keep(a.take<Acc<T>>(round_up(longest > d ? longest : d, kPhiloxColumns))) {}
  Op<T>* op;
  Acc<T>* scores;
  Op<T>* weights;
  Acc<T>* keep;
};

}  // namespace
