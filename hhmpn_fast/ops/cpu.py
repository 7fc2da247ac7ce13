"""The `cpu` backend: the ops of csrc/cpu with the signatures that `hhmpn_fast.ops` and the model call.

float32, bfloat16 (fp32 accumulation) and float64; gradients in C++; a second derivative raises.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hhmpn_fast.backends import Backend, Op
from hhmpn_fast.errors import InputError
from hhmpn_fast.ops.cpu_infer import digest, infer, pack
from hhmpn_fast.ops.cpu_joint_loss import joint_loss
from hhmpn_fast.ops.cpu_library import describe, load_error
from hhmpn_fast.ops.cpu_readout import joint_bce, readout
from hhmpn_fast.ops.cpu_tower import tower
from hhmpn_fast.ops.dropout import Dropout, arguments
from hhmpn_fast.ops.dropout import site as _site
from hhmpn_fast.ops.update import EQUATIONS, UpdateOptions
from hhmpn_fast.weights import BlockWeights

load_error()  # loads the library, so that torch.ops.hhmpn_fast is there; the record says why where it is not


def embed(xs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """v = concatenation over m of x_m W_m^T + b_m: xs[m] (N_m, e_m), weights[m] (d, e_m) -> (N, d)."""
    if any(b is None for b in biases):
        d = weights[0].shape[0]
        biases = [w.new_zeros(d) if b is None else b for w, b in zip(weights, biases)]
    return torch.ops.hhmpn_fast.embed(list(xs), list(weights), list(biases))


def absorb(left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
    """Batched products of weights, left (..., n, k) @ right (..., k, m) * scale."""
    return torch.ops.hhmpn_fast.absorb(left, right, scale)


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
    """context (G, R, d) and log-sum-exp (G, R), float32 for bfloat16; see `hhmpn_fast.ops.attention`."""
    if exclude_self:
        raise InputError("attention: found exclude_self; expected none, which is all that these kernels hold.")
    return torch.ops.hhmpn_fast.attention(q, x, q_offsets, x_offsets, groups, mask, *arguments(dropout))


def update_labels(
    u: Tensor,
    context: Tensor,
    w: BlockWeights,
    dropout: Dropout | None = None,
    options: UpdateOptions = EQUATIONS,
) -> Tensor:
    """u (B*L, d) or (M, B*L, d), context (M, B*L, d) -> (M, B*L, d); see `hhmpn_fast.ops.update`."""
    options.must_be_own("update_labels")
    return _update(u, context, w, dropout)


def update_features(
    v: Tensor,
    context: Tensor,
    w: BlockWeights,
    dropout: Dropout | None = None,
    options: UpdateOptions = EQUATIONS,
) -> Tensor:
    """v (N, d), context (M, N, d), w.hidden holding C (M, h, d) -> z (N, d); see `hhmpn_fast.ops.update`."""
    options.must_be_own("update_features")
    return _update(v, context, w, dropout)


def f2f(v: Tensor, offsets: Tensor, w: BlockWeights, dropout: Dropout | None = None, layer: int = 0) -> Tensor:
    """Eqs 3-5 and 9-10 for all nodes v (N, d) in one op -> z (N, d); w.query is A (d, d), w.hidden is C (M, d, d).

    With one modality the projected form costs more than the contexts', so the two single ops run instead.
    """
    if w.hidden.shape[0] == 1:
        at = dropout and dropout.at("f2f_attention", layer)
        context, _ = attention(v @ w.query, v, offsets, offsets, 1, dropout=at)
        return update_features(v, context, w, dropout and dropout.at("f2f_update", layer))
    p, rng, base = arguments(dropout)
    sites = base + _site("f2f_attention", layer), base + _site("f2f_update", layer)
    return torch.ops.hhmpn_fast.f2f(v, offsets, w.query, w.hidden, w.value, w.b1, w.output, w.b2, p, rng, *sites)


def _update(state: Tensor, context: Tensor, w: BlockWeights, dropout: Dropout | None) -> Tensor:
    p, rng, site = arguments(dropout)
    return torch.ops.hhmpn_fast.update(state, context, w.value, w.hidden, w.b1, w.output, w.b2, p, rng, site)


def _unavailable(device: str) -> str | None:
    on = None if device == "cpu" else f"the tensors are on {device}, the kernels run on the host"
    return load_error() or on


_F2F = ("dropout", "f2f_layers")
_TOWER = (
    *("dropout", "sharing=tied", "exclude_self", "label_graph=prior", "output_weight=tied", "intermediate=none"),
    *("without=f2f", "without=f2l", "without=l2l", "without=m2l"),
)
_NETWORK = ("embed_bias", *_F2F, *_TOWER)
BACKEND = Backend(
    "cpu",
    device="cpu",
    ops={
        "absorb": Op(absorb),
        "attention": Op(attention),
        "digest": Op(digest),
        "embed": Op(embed),
        "f2f": Op(f2f, (*_F2F, "one modality")),
        "infer": Op(infer, _NETWORK),
        "joint_bce": Op(joint_bce),
        "joint_loss": Op(joint_loss, (*_NETWORK, "intermediate_weight")),
        "pack": Op(pack),
        "readout": Op(readout, ("m2l", "output_bias")),
        "tower": Op(tower, _TOWER),
        "update_features": Op(update_features),
        "update_labels": Op(update_labels),
    },
    unavailable=_unavailable,
    dtypes=(torch.float32, torch.bfloat16, torch.float64),
    describe=describe,
)
