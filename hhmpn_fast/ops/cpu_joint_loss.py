"""The joint loss of the `cpu` backend from the features on, as one op whose forward pass has the gradients.

    loss, logits = joint_bce(tower(f2f(embed(x))), y)        Eqs 3-20, one chunk of samples after another

What a backward pass needs lives for one chunk only, so a training step's memory does not grow with the batch. The
chunks follow from the shapes; dropout draws the masks of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hhmpn_fast.ops.cpu_tower import block_weights, readout_weights
from hhmpn_fast.ops.dropout import Dropout, arguments, site
from hhmpn_fast.ops.readout import JointLoss
from hhmpn_fast.weights import ModelWeights

# Of what a chunk keeps: smaller ones leave threads waiting, larger ones gain no time.
CHUNK_BYTES = 48 << 20


def joint_loss(
    xs: Sequence[Tensor],
    offsets: Tensor,
    present: Tensor,
    targets: Tensor,
    w: ModelWeights,
    loss: JointLoss,
    dropout: Dropout | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor]:
    """Loss (), float32 for bfloat16, and logits (T, B, L), through which no gradient flows.

    Args:
        xs: features (N_m, e_m) of every modality; none may require a gradient.
        offsets: int32 (M*B+1,), segment m*B+b is modality m of sample b.
        present: bool (M, B); an absent modality sends nothing to the readout.
        targets: (B, L) in [0, 1].
        w: the model's weights.
        loss: steps, lambda, label weights and the labels' mask.
        dropout: rate and stream.
        chunk_bytes: about how much a chunk of samples may keep for its backward pass; one sample may exceed it.

    Raises:
        ValueError: shapes or dtypes that do not fit, or features that require a gradient.
    """
    p, rng, base = arguments(dropout)
    biases = [t.new_zeros(t.shape[0]) if b is None else b for t, b in zip(w.embed, w.embed_bias)]
    sites = [base + site(kind, layer) for layer in range(len(w.f2f)) for kind in ("f2f_attention", "f2f_update")]
    return torch.ops.hhmpn_fast.joint_loss(
        list(xs),
        offsets,
        present,
        targets,
        loss.label_weights,
        w.embed + biases,
        [t for block in w.f2f for t in block_weights(block)],
        block_weights(w.f2l),
        block_weights(w.l2l),
        readout_weights(w.label_embedding, w.wl, w.wo),
        loss.mask,
        rng,
        sites,
        loss.steps,
        float(loss.intermediate_weight),
        p,
        chunk_bytes,
    )
