// attention's arguments: s[g, r] = sum_j D(a_rj) x_j,  a_rj = softmax_j(q_r . x_j).
//
// Row r of query segment i reads, in group g, key segment g * S + (i mod S), S = x_segments / groups.
#pragma once
#include "base/launch.h"
#include "base/philox.cuh"

namespace hh {
#define HH_ATTENTION(F)                                       \
  F(In, void, q, "rows d")                                    \
  F(In, void, x, "nodes d")                                   \
  F(In, int, q_offsets, "q_segments+1")                       \
  F(In, int, x_offsets, "x_segments+1")                       \
  F(InOrNull, unsigned char, mask, "mask_rows mask_columns")  \
  F(Group, Dropout, dropout, "of the probabilities")          \
  F(Size, unsigned, site, "of group 0; a group has its own")  \
  F(Size, int, rows, "of q")                                  \
  F(Size, int, nodes, "rows of x")                            \
  F(Size, int, q_segments, "of q's rows")                     \
  F(Size, int, x_segments, "of the nodes")                    \
  F(Size, int, groups, "key segments that a query row reads") \
  F(Size, int, mask_columns, "rows of a key segment")         \
  F(Size, int, exclude_self, "1: no row reads the key at its place")
HH_RECORD(Attention, Call, HH_ATTENTION)

#define HH_ATTENTION_FORWARD(F)          \
  F(Out, void, context, "groups rows d") \
  F(Out, float, lse, "groups rows")
HH_RECORD(AttentionForward, Attention, HH_ATTENTION_FORWARD)

#define HH_ATTENTION_BACKWARD(F)           \
  F(In, void, context, "groups rows d")    \
  F(In, float, lse, "groups rows")         \
  F(In, void, d_context, "groups rows d")  \
  F(InOrNull, float, d_lse, "groups rows") \
  F(Out, float, delta, "groups rows")      \
  F(Out, void, d_q, "rows d")              \
  F(Out, void, d_x, "nodes d")
HH_RECORD(AttentionBackward, Attention, HH_ATTENTION_BACKWARD)

// Whether query row `row` of segment `query` may read key `key` (of `keys`) of segment `source`; places inside the
// segments.
HH_DEV bool may_read(const Attention& p, int query, int row, int source, int key, int keys) {
  if (key >= keys) return false;
  if (p.mask && !p.mask[int64_t(row) * p.mask_columns + key]) return false;
  return !(p.exclude_self && query == source && row == key);
}
}  // namespace hh
