"""The ops, each run by the chosen backend; one stem names an op here, in kernels/, csrc/, tests/ and bench/."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hhmpn_fast.backends import Call, choose, first
from hhmpn_fast.ops.attention import check as _check_attention
from hhmpn_fast.ops.dropout import Dropout, site
from hhmpn_fast.ops.embed import query_matrix, value_matrix
from hhmpn_fast.ops.readout import JointLoss
from hhmpn_fast.ops.readout import joint_bce as _plain_joint_bce
from hhmpn_fast.ops.update import EQUATIONS, UpdateOptions
from hhmpn_fast.weights import BlockWeights, Norms, TowerWeights

__all__ = [
    "BlockWeights",
    "Dropout",
    "JointLoss",
    "Norms",
    "TowerWeights",
    "UpdateOptions",
    "absorb",
    "attention",
    "embed",
    "joint_bce",
    "query_matrix",
    "readout",
    "site",
    "update_features",
    "update_labels",
    "value_matrix",
]


def embed(xs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """Nodes of all modalities in one tensor (N, d); see `hhmpn_fast.ops.embed`."""
    return choose("embed", Call(weights[0].device.type, weights[0].dtype, weights[0].shape[0]))(xs, weights, biases)


def absorb(left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
    """Batched products of weights, left @ right * scale; see `hhmpn_fast.ops.embed`."""
    return choose("absorb", Call.of(left))(left, right, scale)


def attention(
    q: Tensor,
    x: Tensor,
    q_offsets: Tensor,
    x_offsets: Tensor,
    groups: int = 1,
    *,
    mask: Tensor | None = None,
    exclude_self: bool = False,
    dropout: Dropout | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax messages between ragged sets: context (G, R, d), log-sum-exp (G, R); see `hhmpn_fast.ops.attention`."""
    _check_attention(q, x, q_offsets, x_offsets, groups, mask, exclude_self)
    run = choose("attention", Call.of(x, "exclude_self" if exclude_self else ""))
    return run(q, x, q_offsets, x_offsets, groups, mask=mask, exclude_self=exclude_self, dropout=dropout)


def _options(w: BlockWeights, context: Tensor, options: UpdateOptions) -> tuple[str, ...]:
    """What a call asks of an update beyond the equations' own: of its weights' shapes and of its options."""
    return (
        "heads" if context.shape[-1] != w.value.shape[-2] else "",
        "update_hidden" if w.b1.shape[-1] != w.b2.shape[-1] else "",
        "weights per modality" if w.value.dim() == 3 else "",
        *options.named(),
    )


def update_labels(
    u: Tensor,
    context: Tensor,
    w: BlockWeights,
    dropout: Dropout | None = None,
    options: UpdateOptions = EQUATIONS,
) -> Tensor:
    """Eqs 6-8 for label rows (M, B*L, d); see `hhmpn_fast.ops.update`."""
    return choose("update_labels", Call.of(u, *_options(w, context, options)))(u, context, w, dropout, options)


def update_features(
    v: Tensor,
    context: Tensor,
    w: BlockWeights,
    dropout: Dropout | None = None,
    options: UpdateOptions = EQUATIONS,
) -> Tensor:
    """Eqs 9-10 for nodes (N, d); see `hhmpn_fast.ops.update`."""
    return choose("update_features", Call.of(v, *_options(w, context, options)))(v, context, w, dropout, options)


def readout(
    u: Tensor, present: Tensor, wl: Tensor | None, wo: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Eqs 15-17: fused states (B, L, d), logits (B, L), modality weights (M, B, L); see `hhmpn_fast.ops.readout`."""
    run = choose("readout", Call.of(u, "m2l" if wl is None else "", "output_bias" if bias is not None else ""))
    return run(u, present, wl, wo, bias)


def joint_bce(
    logits: Tensor, targets: Tensor, intermediate_weight: float, label_weights: Tensor | None = None
) -> Tensor:
    """Eqs 18-20, the backend's own where it has one; see `hhmpn_fast.ops.readout`."""
    run = first("joint_bce", Call.of(logits)) or _plain_joint_bce
    return run(logits, targets, intermediate_weight, label_weights)
