// Rows between global and shared memory in 16-byte pieces, and which rows a block works on.
#pragma once
#include "base/tile.cuh"

namespace hh {
// kRows rows of D elements, `pitch` apart, to shared memory (kStride<T, D>), asynchronously; rows from `count` on
// become zeros.
template <class T, int D, int kRows>
HH_DEV void load_rows(T* dst, const T* src, int count, int pitch = D) {
  constexpr int kPieces = D / kVec<T>;
#pragma unroll 4
  for (int i = threadIdx.x; i < kRows * kPieces; i += kThreads) {
    const int row = i / kPieces, c = i % kPieces * kVec<T>;
    const bool inside = row < count;
    cp_async16(dst + row * kStride<T, D> + c, src + int64_t(inside ? row : 0) * pitch + c, inside);
  }
}

// `count` rows of D elements from shared memory (kStride<T, D>) to global memory.
template <class T, int D>
HH_DEV void store_rows(T* dst, const T* src, int count) {
  constexpr int kPieces = D / kVec<T>;
  for (int i = threadIdx.x; i < count * kPieces; i += kThreads) {
    const int row = i / kPieces, c = i % kPieces * kVec<T>;
    *reinterpret_cast<uint4*>(dst + int64_t(row) * D + c) =
        *reinterpret_cast<const uint4*>(src + row * kStride<T, D> + c);
  }
}

struct Span {
  int segment, first, count;  // rows first .. first + count - 1 of the packed tensor, `begin` the segment's first
  int begin;
};

// Tile `t` of kRows rows: segment i owns the tile numbers from offsets[i] / kRows + i on, at least as many as it needs,
// and rows behind the last offset are one segment more, number `segments`, which reads nothing. So rows / kRows +
// segments + 1 tiles suffice and nobody has to count them first. A tile too many has count <= 0.
template <int kRows>
HH_DEV Span find_span(const int* offsets, int segments, int rows, int t, int* shared) {
  for (int i = threadIdx.x; i <= segments; i += kThreads) {
    const int from = offsets[i], to = i < segments ? offsets[i + 1] : rows;
    if (from / kRows + i <= t && t < to / kRows + i + 1) *shared = i;
  }
  __syncthreads();
  const int i = *shared, begin = offsets[i], end = i < segments ? offsets[i + 1] : rows;
  const int first = begin + (t - begin / kRows - i) * kRows;
  return {i, first, min(kRows, end - first), begin};
}
inline int span_tiles(int64_t rows, int64_t segments, int tile) { return int(rows / tile + segments + 1); }
}  // namespace hh
