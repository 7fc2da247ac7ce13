"""attention on the CPU: csrc/cpu/ops/attention."""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor

from hhmpn_fast.backends.cpu.library import accumulate_dtype
from hhmpn_fast.backends.record import Body
from hhmpn_fast.ops.attention import ATTENTION
from hhmpn_fast.ops.dropout import Dropout, arguments


def _shapes(i: SimpleNamespace) -> dict[str, Tensor]:
    lse = i.q.new_empty(i.groups, i.q.shape[0], dtype=accumulate_dtype(i.q.dtype))
    return {"context": i.q.new_empty(i.groups, *i.q.shape), "lse": lse}


ATTENTION.define("cpu", _shapes, saves=("context", "lse"))


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
    p, rng, site = arguments(dropout)
    return ATTENTION(
        "cpu",
        q=q,
        x=x,
        q_offsets=q_offsets,
        x_offsets=x_offsets,
        groups=groups,
        mask=mask,
        exclude_self=exclude_self,
        p=p,
        rng=rng,
        site=site,
    )


BODIES = {"attention": Body(attention)}
