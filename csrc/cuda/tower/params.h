// The label tower's arguments. Row tensors are (steps, modalities, batch, labels, d), but F2L's queries: those
// the modalities share. Weights have `sets` sets, one for all steps or one a step.
#pragma once
#include "base/launch.h"
#include "base/philox.cuh"

namespace hh {
// One MP + UPD pair.
#define HH_BLOCK_WEIGHTS(F)                      \
  F(In, void, query, "sets d d")                 \
  F(In, void, value, "sets d d")                 \
  F(In, void, hidden, "sets d d")                \
  F(In, void, b1, "sets d")                      \
  F(In, void, output, "sets d d")                \
  F(In, void, b2, "sets d")                      \
  F(Size, unsigned, attention_site, "at step 0") \
  F(Size, unsigned, update_site, "at step 0")
HH_RECORD(BlockWeights, Nothing, HH_BLOCK_WEIGHTS)

#define HH_BLOCK_KEEPS(F)                                         \
  F(OutOrNull, void, contexts, "steps modalities batch labels d") \
  F(OutOrNull, void, g, "steps modalities batch labels d")        \
  F(OutOrNull, void, h, "steps modalities batch labels d")        \
  F(OutOrNull, void, states, "steps modalities batch labels d")   \
  F(OutOrNull, float, lse, "steps modalities batch labels")
HH_RECORD(BlockForward, BlockWeights, HH_BLOCK_KEEPS)

#define HH_F2L_KEEPS(F) F(OutOrNull, void, queries, "steps batch labels d")
HH_RECORD(F2LForward, BlockForward, HH_F2L_KEEPS)
#define HH_L2L_KEEPS(F) F(OutOrNull, void, queries, "steps modalities batch labels d")
HH_RECORD(L2LForward, BlockForward, HH_L2L_KEEPS)

#define HH_BLOCK_GRADIENTS(F)                              \
  F(In, void, contexts, "steps modalities batch labels d") \
  F(In, void, h, "steps modalities batch labels d")        \
  F(In, void, states, "steps modalities batch labels d")   \
  F(In, float, lse, "steps modalities batch labels")       \
  F(Out, void, d_tail, "steps modalities batch labels d")  \
  F(Out, void, d_h, "steps modalities batch labels d")     \
  F(Out, void, d_g, "steps modalities batch labels d")
HH_RECORD(BlockBackward, BlockWeights, HH_BLOCK_GRADIENTS)

#define HH_F2L_GRADIENTS(F)                    \
  F(In, void, queries, "steps batch labels d") \
  F(Out, void, d_queries, "steps batch labels d")
HH_RECORD(F2LBackward, BlockBackward, HH_F2L_GRADIENTS)
#define HH_L2L_GRADIENTS(F)                               \
  F(In, void, queries, "steps modalities batch labels d") \
  F(Out, void, d_queries, "steps modalities batch labels d")
HH_RECORD(L2LBackward, BlockBackward, HH_L2L_GRADIENTS)

#define HH_TOWER(F)                                                     \
  F(In, void, z, "nodes d")                                             \
  F(In, int, offsets, "modalities*batch+1")                             \
  F(In, void, wl, "d")                                                  \
  F(In, void, wo, "labels d")                                           \
  F(InOrNull, unsigned char, mask, "labels labels")                     \
  F(Group, Dropout, dropout, "of every block")                          \
  F(Size, unsigned, sites_a_step, "between a site and its next step's") \
  F(Size, int, modalities, "M")                                         \
  F(Size, int, batch, "B")                                              \
  F(Size, int, labels, "L")                                             \
  F(Size, int, steps, "T")                                              \
  F(Size, int, sets, "of weights")                                      \
  F(Size, int, samples, "that share a block")
HH_RECORD(Tower, Call, HH_TOWER)

// scores: the readout's, scores_lse: their log-sum-exp over the modalities, fused: u after every step.
#define HH_TOWER_FORWARD(F)                                    \
  F(In, unsigned char, present, "modalities batch")            \
  F(In, void, label_embedding, "labels d")                     \
  F(Group, F2LForward, f2l, "labels read nodes")               \
  F(Group, L2LForward, l2l, "labels read labels")              \
  F(Out, float, logits, "steps batch labels")                  \
  F(OutOrNull, float, scores, "steps modalities batch labels") \
  F(OutOrNull, float, scores_lse, "steps batch labels")        \
  F(OutOrNull, void, fused, "steps batch labels d")
HH_RECORD(TowerForward, Tower, HH_TOWER_FORWARD)

// d_start: of every sample's first states.
#define HH_TOWER_BACKWARD(F)                               \
  F(Group, F2LBackward, f2l, "labels read nodes")          \
  F(Group, L2LBackward, l2l, "labels read labels")         \
  F(In, float, scores, "steps modalities batch labels")    \
  F(In, float, scores_lse, "steps batch labels")           \
  F(In, void, fused, "steps batch labels d")               \
  F(In, float, d_logits, "steps batch labels")             \
  F(Out, float, d_scores, "steps modalities batch labels") \
  F(Out, float, d_z, "nodes d")                            \
  F(Out, float, d_start, "batch labels d")
HH_RECORD(TowerBackward, Tower, HH_TOWER_BACKWARD)
}  // namespace hh
