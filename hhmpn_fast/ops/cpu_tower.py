"""The label tower of the `cpu` backend: every label step of Eqs 11-17 as one op, forward and backward.

for t < T:  q = u A_xy[t]                      u (B, L, d), shared by the modalities
            s = softmax(q z^T) z               (M, B, L, d), over the segments of z
            x = update(u, s; xy[t])            Eqs 11-12
            x = update(x, L2L(x A_yy[t], x))   Eqs 13-14
            u, logits[t] = readout(x)          Eqs 15-17
"""

from __future__ import annotations

import torch
from torch import Tensor

from hhmpn_fast.ops.dropout import Dropout, arguments
from hhmpn_fast.weights import BlockWeights, TowerWeights


def block_weights(block: BlockWeights | None) -> list[Tensor]:
    """[query,] value, hidden, b1, output, b2 of one block, or nothing."""
    return [] if block is None else [t for t in block if t is not None]


def readout_weights(label_embedding: Tensor, wl: Tensor | None, wo: Tensor) -> list[Tensor]:
    """Label embedding, W^o[, W^l]."""
    return [label_embedding, wo] if wl is None else [label_embedding, wo, wl]


def tower(
    z: Tensor,
    offsets: Tensor,
    present: Tensor,
    label_embedding: Tensor,
    w: TowerWeights,
    steps: int,
    mask: Tensor | None = None,
    dropout: Dropout | None = None,
) -> Tensor:
    """Logits (T, B, L) of all label steps.

    Args:
        z: (N, d) nodes, modality-major; float32, bfloat16 (fp32 accumulation) or float64.
        offsets: int32 (M*B+1,), segment m*B+b is modality m of sample b.
        present: bool (M, B); an absent modality sends nothing to the readout.
        label_embedding: (L, d), every sample's first label states.
        w: both blocks' weights (S, ...), S = T, or 1 for tied steps, and the readout's.
        steps: T.
        mask: bool (L, L), entry [i, j] says label i reads label j.
        dropout: rate and stream; the call's sites are those of the label steps.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    p, rng, _ = arguments(dropout)
    readout = readout_weights(label_embedding, w.wl, w.wo)
    return torch.ops.hhmpn_fast.tower(
        z, offsets, present, block_weights(w.f2l), block_weights(w.l2l), readout, mask, rng, steps, p
    )
