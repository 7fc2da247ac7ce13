"""The joint loss of the `cpu` backend from the features on, as one op whose forward pass has the gradients.

    loss, logits = joint_bce(tower(f2f(embed(x))), y)        Eqs 3-20, one chunk of samples after another

What a backward pass needs lives for one chunk only, so a training step's memory does not grow with the batch. The
chunks follow from the shapes; dropout draws the masks of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hhmpn_fast.ops.cpu_tower import block_weights
from hhmpn_fast.ops.dropout import Dropout, arguments, site

if TYPE_CHECKING:
    from hhmpn_fast.blocks import Absorbed

# Of what a chunk keeps: smaller ones leave threads waiting, larger ones gain no time.
CHUNK_BYTES = 48 << 20


def joint_loss(
    xs: Sequence[Tensor],
    offsets: Tensor,
    present: Tensor,
    targets: Tensor,
    embed: Sequence[tuple[Tensor, Tensor | None]],
    f2f: Sequence[Absorbed],
    f2l: Absorbed,
    l2l: Absorbed | None,
    readout: Sequence[Tensor],
    steps: int,
    intermediate_weight: float,
    label_weights: Tensor | None = None,
    l2l_mask: Tensor | None = None,
    dropout: Dropout | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor]:
    """Loss (), float32 for bfloat16, and logits (T, B, L), through which no gradient flows.

    Args:
        xs: features (N_m, e_m) of every modality; none may require a gradient.
        offsets: int32 (M*B+1,), segment m*B+b is modality m of sample b.
        present: bool (M, B); an absent modality sends nothing to the readout.
        targets: (B, L) in [0, 1].
        embed: weight (d, e_m) and bias (d,) or None of every modality.
        f2f: absorbed weights of every layer, C (M, d, d) as w_r.
        f2l, l2l: absorbed weights of the label steps; see `hhmpn_fast.ops.cpu_tower.tower`.
        readout: label embedding (L, d), W^o (L, d)[, W^l (d,)].
        steps: T.
        intermediate_weight: lambda of Eq 20.
        label_weights: (L,) weight of each label's positive term.
        l2l_mask: bool (L, L), entry [i, j] says label i reads label j.
        dropout: rate and stream.
        chunk_bytes: about how much a chunk of samples may keep for its backward pass; one sample may exceed it.

    Raises:
        ValueError: shapes or dtypes that do not fit, or features that require a gradient.
    """
    p, rng, base = arguments(dropout)
    weights = [w for w, _ in embed]
    biases = [w.new_zeros(w.shape[0]) if b is None else b for w, b in embed]
    sites = [base + site(kind, layer) for layer in range(len(f2f)) for kind in ("f2f_attention", "f2f_update")]
    return torch.ops.hhmpn_fast.joint_loss(
        list(xs),
        offsets,
        present,
        targets,
        label_weights,
        weights + biases,
        [t for block in f2f for t in block_weights(block)],
        block_weights(f2l),
        block_weights(l2l),
        list(readout),
        l2l_mask,
        rng,
        sites,
        steps,
        float(intermediate_weight),
        p,
        chunk_bytes,
    )
