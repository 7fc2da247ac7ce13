"""The `cpu` backend: the ops of csrc/cpu with the signatures that `hhmpn_fast.ops` and the model call.

float32, bfloat16 (fp32 accumulation) and float64; gradients in C++; a second derivative raises.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hhmpn_fast.backends import Call
from hhmpn_fast.ops.cpu_library import load_error
from hhmpn_fast.ops.dropout import Dropout

_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def why_not(op: str, call: Call) -> str | None:
    """None when the kernels run `op` as called, else the reason."""
    error = load_error()
    if error is not None:
        return error
    if call.device != "cpu":
        return f"the tensors are on {call.device}, the kernels run on the host"
    if call.dtype not in _DTYPES:
        return f"the dtype is {call.dtype}, the kernels hold float32, bfloat16 and float64"
    if call.options:
        return f"the kernels do not hold the option {', '.join(call.options)}"
    return None


def _drawn(dropout: Dropout | None, site: int = 0) -> tuple[float, Tensor | None, int]:
    """The rate, the stream and the site as the ops take them."""
    if dropout is None or dropout.p == 0.0:
        return 0.0, None, 0
    return dropout.p, dropout.rng, dropout.site + site


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
    return torch.ops.hhmpn_fast.attention(q, x, q_offsets, x_offsets, groups, mask, *_drawn(dropout))
