"""attention on a GPU: shapes, launches of both passes, registration."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hhmpn_fast.kernels.launch import Entry, chosen, run
from hhmpn_fast.kernels.launch_table import SHORT
from hhmpn_fast.kernels.records import AttentionForm, Drop, Pull, Ragged, Rows, Sizes
from hhmpn_fast.kernels.runtime import aligned, product_constants, row_constants, step
from hhmpn_fast.ops.attention import ATTENTION
from hhmpn_fast.ops.bodies import implement


def attention(q: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
    """The op with its log-sum-exp in the rows' dtype."""
    context, lse = ATTENTION("triton", q=q, **rest)
    return context, lse.to(context.dtype)


def length(rows: int, segments: int, mask: Tensor | None) -> str:
    """Which tiles: those for segments of few rows or under a mask, or for long ones; by shapes alone.

    A mask's addresses take the registers that the long tiles need.
    """
    return "_short" if rows <= SHORT * segments or mask is not None else ""


def shapes(i: SimpleNamespace) -> dict[str, Tensor]:
    """Outputs, empty; the log-sum-exp is fp32 whatever the rows are."""
    return {
        "context": i.q.new_empty(i.groups, *i.q.shape),
        "lse": i.q.new_empty(i.groups, i.q.shape[0], dtype=torch.float32),
    }


def forward(i: SimpleNamespace, keep: bool) -> dict[str, Tensor]:
    """context and lse."""
    return forward_into(shapes(i), i)


def forward_into(out: dict[str, Tensor], i: SimpleNamespace) -> dict[str, Tensor]:
    """context and lse in the given tensors; see forward.py."""
    from hhmpn_fast.kernels.attention.forward import attention_forward

    shared = _Shared(i)
    if shared.empty:
        return {"context": out["context"].zero_(), "lse": out["lse"].fill_(float("-inf"))}
    entry = shared.chosen("attention_forward")
    run(
        attention_forward,
        (shared.rows // entry.m + shared.queries + 1, i.groups),
        entry,
        shared.form(entry),
        **shared.arguments,
        context=out["context"],
        lse=out["lse"],
        dim=shared.dim,
    )
    return out


def backward(d: SimpleNamespace, i: SimpleNamespace, saved: SimpleNamespace) -> dict[str, Tensor]:
    """Gradients of q and x."""
    d_context = i.q.new_zeros(i.groups, *i.q.shape) if d.context is None else d.context.contiguous()
    d_lse = torch.zeros_like(saved.lse) if d.lse is None else d.lse.contiguous()
    out = {"q": i.q.new_empty(i.q.shape), "x": i.x.new_empty(i.x.shape)}
    return backward_into(out, SimpleNamespace(context=d_context, lse=d_lse), i, saved)


def backward_into(
    out: dict[str, Tensor], d: SimpleNamespace, i: SimpleNamespace, saved: SimpleNamespace
) -> dict[str, Tensor]:
    """Gradients of q and x in the given tensors, from both outputs' gradients; see backward.py."""
    from hhmpn_fast.kernels.attention.backward import attention_d_q, attention_d_x

    shared = _Shared(i)
    if shared.empty or shared.nodes == 0:
        return {name: t.zero_() for name, t in out.items()}
    both = {
        **shared.arguments,
        "d_out": Pull(d.context, d.lse, saved.lse, torch.empty_like(saved.lse)),
        "sizes": Sizes(shared.dim, i.groups),
    }
    entry = shared.chosen("attention_d_q")
    run(attention_d_q, (shared.rows // entry.m + shared.queries + 1,), entry, shared.form(entry), **both, d_q=out["q"])
    entry = shared.chosen("attention_d_x")
    grid, both["nodes"] = (shared.nodes // entry.n + shared.keys + 1,), shared.nodes
    run(attention_d_x, grid, entry, shared.form(entry), **both, d_x=out["x"])
    return out


class _Shared:
    """What the launches of both passes share: sizes, arguments, constants."""

    def __init__(self, i: SimpleNamespace) -> None:
        self.q, self.x, self.rng, self.exclude_self = aligned(i.q), aligned(i.x), i.rng, i.exclude_self
        self.mask = None if i.mask is None else i.mask.contiguous()
        self.rows, self.dim = self.q.shape
        self.nodes, self.queries, self.keys = self.x.shape[0], i.q_offsets.numel() - 1, i.x_offsets.numel() - 1
        self.empty = self.rows == 0 or self.keys == 0
        self.arguments = {
            "q": Ragged(self.q, self.q.stride(0), i.q_offsets),
            "x": Ragged(self.x, self.x.stride(0), i.x_offsets),
            "mask": Rows.of(self.mask),
            "drop": Drop.of(i.p, i.rng, i.site),
            "rows": self.rows,
            "queries": self.queries,
            "samples": self.keys // i.groups,
        }

    def chosen(self, kernel: str) -> Entry:
        """The launch table's entry."""
        return chosen(kernel + length(self.rows, self.queries, self.mask), self.q)

    def form(self, entry: Entry) -> AttentionForm:
        """The constants of a launch."""
        return AttentionForm(
            **row_constants(self.dim),
            BM=entry.m,
            BN=entry.n,
            BK=step(entry.k, self.dim),
            MASK=self.mask is not None,
            SELF=self.exclude_self,
            **product_constants(self.q, self.rng),
        )


implement(ATTENTION, "triton", forward, backward, shapes, saves=("lse",))
