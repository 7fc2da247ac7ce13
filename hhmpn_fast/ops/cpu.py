"""The `cpu` backend: the ops of csrc/cpu with the signatures that `hhmpn_fast.ops` and the model call.

float32, bfloat16 (fp32 accumulation) and float64; gradients in C++; a second derivative raises.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hhmpn_fast.backends import Call
from hhmpn_fast.ops.cpu_infer import digest as digest
from hhmpn_fast.ops.cpu_infer import infer as infer
from hhmpn_fast.ops.cpu_infer import pack as pack
from hhmpn_fast.ops.cpu_joint_loss import joint_loss as joint_loss
from hhmpn_fast.ops.cpu_library import describe as describe
from hhmpn_fast.ops.cpu_library import load_error
from hhmpn_fast.ops.cpu_readout import joint_bce as joint_bce
from hhmpn_fast.ops.cpu_readout import readout as readout
from hhmpn_fast.ops.cpu_tower import tower as tower
from hhmpn_fast.ops.dropout import Dropout, arguments
from hhmpn_fast.ops.dropout import site as _site
from hhmpn_fast.ops.update import EQUATIONS, UpdateOptions
from hhmpn_fast.weights import BlockWeights

load_error()  # loads the library, so that torch.ops.hhmpn_fast is there; `why_not` gives the reason where it is not

_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
_HELD = {"readout": ("m2l", "output_bias")}  # options that a kernel has, by op


def why_not(op: str, call: Call) -> str | None:
    """None when the kernels run `op` as called, else the reason."""
    error = load_error()
    if error is not None:
        return error
    if call.device != "cpu":
        return f"the tensors are on {call.device}, the kernels run on the host"
    if call.dtype not in _DTYPES:
        return f"the dtype is {call.dtype}, the kernels hold float32, bfloat16 and float64"
    missing = [o for o in call.options if o not in _HELD.get(op, ())]
    if missing:
        return f"the kernels do not hold the option {', '.join(missing)}"
    return None


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
    dropout: Dropout | None = None,
) -> tuple[Tensor, Tensor]:
    """context (G, R, d) and log-sum-exp (G, R), float32 for bfloat16; see `hhmpn_fast.ops.attention`."""
    return torch.ops.hhmpn_fast.attention(q, x, q_offsets, x_offsets, groups, mask, *arguments(dropout))


def update_labels(
    u: Tensor,
    context: Tensor,
    w: BlockWeights,
    dropout: Dropout | None = None,
    options: UpdateOptions = EQUATIONS,
) -> Tensor:
    """u (B*L, d) or (M, B*L, d), context (M, B*L, d) -> (M, B*L, d); see `hhmpn_fast.ops.update`."""
    return _update(u, context, w, dropout)


def update_features(
    v: Tensor,
    context: Tensor,
    w: BlockWeights,
    dropout: Dropout | None = None,
    options: UpdateOptions = EQUATIONS,
) -> Tensor:
    """v (N, d), context (M, N, d), w.hidden holding C (M, h, d) -> z (N, d); see `hhmpn_fast.ops.update`."""
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
