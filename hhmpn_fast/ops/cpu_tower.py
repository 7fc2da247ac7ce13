"""The label tower of the `cpu` backend: every label step of Eqs 11-17 as one op, forward and backward.

for t < T:  q = u A_xy[t]                      u (B, L, d), shared by the modalities
            s = softmax(q z^T) z               (M, B, L, d), over the segments of z
            x = update(u, s; xy[t])            Eqs 11-12
            x = update(x, L2L(x A_yy[t], x))   Eqs 13-14
            u, logits[t] = readout(x)          Eqs 15-17
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hhmpn_fast.ops.dropout import Dropout, arguments

if TYPE_CHECKING:
    from hhmpn_fast.blocks import Absorbed


def block_weights(block: Absorbed | None) -> list[Tensor]:
    """[query,] wv, wr, b1, wb, b2 of one block, or nothing."""
    if block is None:
        return []
    update = list(block.update[:5])
    return update if block.query is None else [block.query, *update]


def tower(
    z: Tensor,
    offsets: Tensor,
    present: Tensor,
    label_embedding: Tensor,
    f2l: Absorbed,
    l2l: Absorbed | None,
    wl: Tensor | None,
    wo: Tensor,
    steps: int,
    l2l_mask: Tensor | None = None,
    dropout: Dropout | None = None,
) -> Tensor:
    """Logits (T, B, L) of all label steps.

    Args:
        z: (N, d) nodes, modality-major; float32, bfloat16 (fp32 accumulation) or float64.
        offsets: int32 (M*B+1,), segment m*B+b is modality m of sample b.
        present: bool (M, B); an absent modality sends nothing to the readout.
        label_embedding: (L, d), every sample's first label states.
        f2l: query (S, d, d), or None for the uniform mean, and the update's weights; S = T, or 1 for tied steps.
        l2l: the same, or None without label-to-label messages.
        wl: (d,), or None for the plain sum over the modalities present.
        wo: (L, d).
        steps: T.
        l2l_mask: bool (L, L), entry [i, j] says label i reads label j.
        dropout: rate and stream; the call's sites are those of the label steps.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    p, rng, _ = arguments(dropout)
    readout = [label_embedding, wo] if wl is None else [label_embedding, wo, wl]
    return torch.ops.hhmpn_fast.tower(
        z, offsets, present, block_weights(f2l), block_weights(l2l), readout, l2l_mask, rng, steps, p
    )
