"""attention as a registered op: checks, launches, shapes for torch.compile, gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from hhmpn_fast.kernels.attention_bwd import attention_dq, attention_dx
from hhmpn_fast.kernels.attention_fwd import attention_fwd
from hhmpn_fast.kernels.configs import SHORT, launch
from hhmpn_fast.kernels.library import define, no_second_derivative
from hhmpn_fast.kernels.runtime import (
    aligned,
    architecture,
    dropout_scalars,
    kind,
    product_constants,
    row_constants,
    step,
)
from hhmpn_fast.ops.dropout import Dropout, arguments


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
    """`hhmpn_fast.ops.attention` on a GPU: context (G, R, d), log-sum-exp (G, R)."""
    p, rng, site = arguments(dropout)
    context, lse = torch.ops.hhmpn_fast_triton.attention(
        q, x, q_offsets, x_offsets, mask, rng, groups, exclude_self, p, site
    )
    return context, lse.to(q.dtype)


def _constants(q: Tensor, mask: Tensor | None, rng: Tensor | None, exclude_self: bool) -> dict:
    """The constants both passes compile with."""
    flags = {"MASK": mask is not None, "SELF": exclude_self}
    return row_constants(q.shape[1]) | product_constants(q, rng) | flags


def _length(rows: int, queries: int, mask: Tensor | None) -> str:
    """Which tiles: those for segments of few rows or under a mask, or for long ones; by shapes alone.

    A mask's addresses take the registers that the long tiles need.
    """
    return "_short" if rows <= SHORT * queries or mask is not None else ""


def _forward(
    q: Tensor,
    x: Tensor,
    q_offsets: Tensor,
    x_offsets: Tensor,
    mask: Tensor | None,
    rng: Tensor | None,
    groups: int,
    exclude_self: bool,
    p: float,
    site: int,
) -> tuple[Tensor, Tensor]:
    q, x = aligned(q), aligned(x)
    (rows, dim), queries = q.shape, q_offsets.numel() - 1
    context = q.new_empty(groups, rows, dim)
    lse = q.new_empty(groups, rows, dtype=torch.float32)
    if rows == 0 or x_offsets.numel() == 1:
        return context.zero_(), lse.fill_(float("-inf"))
    mask = None if mask is None else mask.contiguous()
    least, scale = dropout_scalars(p)
    config = launch("attention_fwd" + _length(rows, queries, mask), kind(q.dtype), dim, architecture(q))
    grid = (rows // config.m + queries, groups)
    attention_fwd[grid](
        q,
        x,
        q_offsets,
        x_offsets,
        mask,
        rng,
        context,
        lse,
        q.stride(0),
        x.stride(0),
        0 if mask is None else mask.stride(0),
        rows,
        dim,
        queries,
        (x_offsets.numel() - 1) // groups,
        least,
        scale,
        site,
        BM=config.m,
        BN=config.n,
        BK=step(config.k, dim),
        **_constants(q, mask, rng, exclude_self),
        **config.options,
    )
    return context, lse


def _backward(
    dcontext: Tensor,
    dlse: Tensor,
    q: Tensor,
    x: Tensor,
    q_offsets: Tensor,
    x_offsets: Tensor,
    mask: Tensor | None,
    rng: Tensor | None,
    lse: Tensor,
    groups: int,
    exclude_self: bool,
    p: float,
    site: int,
) -> tuple[Tensor, Tensor]:
    q, x, dcontext, dlse = aligned(q), aligned(x), dcontext.contiguous(), dlse.contiguous()
    (rows, dim), queries = q.shape, q_offsets.numel() - 1
    dq, dx, delta = q.new_empty(q.shape), x.new_empty(x.shape), torch.empty_like(lse)
    if rows == 0 or x.shape[0] == 0 or x_offsets.numel() == 1:
        return dq.zero_(), dx.zero_()
    keys = x_offsets.numel() - 1
    mask = None if mask is None else mask.contiguous()
    stride_mask = 0 if mask is None else mask.stride(0)
    least, scale = dropout_scalars(p)
    shared = _constants(q, mask, rng, exclude_self)
    strides = (q.stride(0), x.stride(0), stride_mask)
    config = launch("attention_dq" + _length(rows, queries, mask), kind(q.dtype), dim, architecture(q))
    attention_dq[(rows // config.m + queries,)](
        q,
        x,
        q_offsets,
        x_offsets,
        mask,
        rng,
        lse,
        dcontext,
        dlse,
        delta,
        dq,
        *strides,
        rows,
        dim,
        queries,
        keys // groups,
        groups,
        least,
        scale,
        site,
        BM=config.m,
        BN=config.n,
        BK=step(config.k, dim),
        **shared,
        **config.options,
    )
    config = launch("attention_dx" + _length(rows, queries, mask), kind(q.dtype), dim, architecture(q))
    attention_dx[(x.shape[0] // config.n + keys,)](
        q,
        x,
        q_offsets,
        x_offsets,
        mask,
        rng,
        lse,
        dcontext,
        delta,
        dx,
        *strides,
        rows,
        dim,
        queries,
        keys,
        keys // groups,
        least,
        scale,
        site,
        BM=config.m,
        BN=config.n,
        BK=step(config.k, dim),
        **shared,
        **config.options,
    )
    return dq, dx


def _forward_fake(q: Tensor, x: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    groups = rest[4]
    return q.new_empty(groups, *q.shape), q.new_empty(groups, q.shape[0], dtype=torch.float32)


def _backward_fake(dcontext: Tensor, dlse: Tensor, q: Tensor, x: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), x.new_empty(x.shape)


def _setup(ctx: object, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.groups, ctx.exclude_self, ctx.p, ctx.site = inputs
    ctx.save_for_backward(*tensors, output[1])


def _gradient(ctx: object, dcontext: Tensor | None, dlse: Tensor | None) -> tuple:
    *inputs, lse = ctx.saved_tensors
    dcontext = inputs[0].new_zeros(ctx.groups, *inputs[0].shape) if dcontext is None else dcontext
    dlse = torch.zeros_like(lse) if dlse is None else dlse
    dq, dx = torch.ops.hhmpn_fast_triton.attention_backward(
        dcontext, dlse, *inputs, lse, ctx.groups, ctx.exclude_self, ctx.p, ctx.site
    )
    return dq, dx, *(None,) * 8


define(
    "attention(Tensor q, Tensor x, Tensor q_offsets, Tensor x_offsets, Tensor? mask, Tensor? rng, int groups, "
    "bool exclude_self, float p, int site) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    _gradient,
    _setup,
)
define(
    "attention_backward(Tensor dcontext, Tensor dlse, Tensor q, Tensor x, Tensor q_offsets, Tensor x_offsets, "
    "Tensor? mask, Tensor? rng, Tensor lse, int groups, bool exclude_self, float p, int site) "
    "-> (Tensor, Tensor)",
    _backward,
    _backward_fake,
    no_second_derivative,
)
