"""attention on CUDA: csrc/cuda/attention.

Backward recomputes the probabilities from the row log-sum-exp, once by query tiles (d_q) and once by key tiles (d_x),
so nothing is summed by atomics and every run gives the same bits.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hhmpn_fast.backends.cuda.launch import dropout_fields, launch
from hhmpn_fast.backends.record import Body
from hhmpn_fast.ops.attention import ATTENTION
from hhmpn_fast.ops.bodies import implement


def attention(q: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
    """The op with its log-sum-exp in the rows' dtype."""
    context, lse = ATTENTION("cuda", q=q, **rest)
    return context, lse.to(context.dtype)


def shapes(i: SimpleNamespace) -> dict[str, Tensor]:
    """context (G, R, d) in the call's dtype, lse (G, R) in float32; empty."""
    rows = i.q.shape[0]
    return {
        "context": i.q.new_empty(i.groups, *i.q.shape),
        "lse": i.q.new_empty(i.groups, rows, dtype=torch.float32),
    }


def forward(i: SimpleNamespace, keep: bool) -> dict[str, Tensor]:
    """context and lse; backward needs no more than these."""
    out = shapes(i)
    if out["context"].numel() and i.x_offsets.numel() > 1:
        launch("attention_forward", **_fields(i), **out)
    else:
        out["context"].zero_()
        out["lse"].fill_(float("-inf"))
    return out


def backward(d: SimpleNamespace, i: SimpleNamespace, saved: SimpleNamespace) -> dict[str, Tensor]:
    """The gradients of q and x."""
    if not (saved.context.numel() and i.x.numel()):
        return {"q": torch.zeros_like(i.q), "x": torch.zeros_like(i.x)}
    fields = _fields(i)
    d_context = torch.zeros_like(saved.context) if d.context is None else d.context.contiguous()
    d_lse = None if d.lse is None else d.lse.contiguous()
    d_q, d_x = torch.empty_like(fields["q"]), torch.empty_like(fields["x"])
    kept = {"context": saved.context, "lse": saved.lse, "delta": torch.empty_like(saved.lse)}
    launch("attention_backward", **fields, **kept, d_context=d_context, d_lse=d_lse, d_q=d_q, d_x=d_x)
    return {"q": d_q, "x": d_x}


def _fields(i: SimpleNamespace) -> dict[str, Any]:
    """What both passes read."""
    return {
        "dtype": i.q.dtype,
        "d": i.q.shape[1],
        "q": i.q.contiguous(),
        "x": i.x.contiguous(),
        "q_offsets": i.q_offsets.to(torch.int32).contiguous(),
        "x_offsets": i.x_offsets.to(torch.int32).contiguous(),
        "mask": None if i.mask is None else i.mask.contiguous(),
        **dropout_fields(i.p, i.rng, i.q.device),
        "site": i.site,
        "rows": i.q.shape[0],
        "nodes": i.x.shape[0],
        "q_segments": i.q_offsets.numel() - 1,
        "x_segments": i.x_offsets.numel() - 1,
        "groups": i.groups,
        "mask_columns": 0 if i.mask is None else i.mask.shape[1],
        "exclude_self": int(i.exclude_self),
    }


implement(ATTENTION, "cuda", forward, backward, shapes, saves=("context", "lse"))
BODIES = {"attention": Body(attention, ("exclude_self",))}
