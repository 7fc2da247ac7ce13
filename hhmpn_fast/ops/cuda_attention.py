"""attention on CUDA: csrc/cuda/attention.cu and attention_backward.cu behind one autograd function.

Forward saves the context and the row log-sum-exp; backward recomputes the probabilities, once by query tiles (dq)
and once by key tiles (dx), so nothing is summed by atomics and every run gives the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hhmpn_fast.ops.cuda_launch import DTYPES, launch
from hhmpn_fast.ops.dropout import Dropout, threshold


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
    """Softmax messages between ragged sets: context (G, R, d), log-sum-exp (G, R); see `hhmpn_fast.ops.attention`.

    q (R, d) and x (N, d) share one dtype, float32 or bfloat16, and d is 64, 128 or 256.
    """
    context, lse = _Attention.apply(q, x, q_offsets, x_offsets, groups, mask, exclude_self, dropout)
    return context, lse.to(q.dtype)


def dropout_args(dropout: Dropout | None, device: torch.device) -> tuple[Tensor | None, int, int, float]:
    """What a kernel needs of a dropout: rng, threshold, site, scale of what is kept."""
    if dropout is None or dropout.p == 0.0:
        return None, 0, 0, 1.0
    return dropout.rng.to(device), threshold(dropout.p), dropout.site, 1.0 / (1.0 - dropout.p)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        x: Tensor,
        q_offsets: Tensor,
        x_offsets: Tensor,
        groups: int,
        mask: Tensor | None,
        exclude_self: bool,
        dropout: Dropout | None,
    ) -> tuple[Tensor, Tensor]:
        q, x = q.contiguous(), x.contiguous()
        mask = None if mask is None else mask.contiguous()
        tables = [t.to(torch.int32).contiguous() for t in (q_offsets, x_offsets)]
        rng, limit, site, scale = dropout_args(dropout, q.device)
        context = q.new_empty(groups, *q.shape)
        lse = q.new_empty(groups, q.shape[0], dtype=torch.float32)
        sizes = [DTYPES[q.dtype], q.shape[1], q.shape[0], x.shape[0], q_offsets.numel() - 1, x_offsets.numel() - 1]
        sizes += [groups, 0 if mask is None else mask.shape[1], int(exclude_self), limit, site]
        reads = [q, x, *tables, mask, rng]
        if context.numel() and x_offsets.numel() > 1:
            launch("hh_attention_forward", reads, [context, lse], sizes, [scale])
        else:
            context.zero_()
            lse.fill_(float("-inf"))
        ctx.save_for_backward(*reads, context, lse)
        ctx.sizes, ctx.scale = sizes, scale
        return context, lse

    @staticmethod
    def backward(ctx: Any, d_context: Tensor, d_lse: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("attention: the CUDA backend has no double backward.")
        *reads, context, lse = ctx.saved_tensors
        q, x = reads[:2]
        delta = torch.empty_like(lse)
        if context.numel() and x.numel():
            dq, dx = torch.empty_like(q), torch.empty_like(x)
            d_lse = None if d_lse is None else d_lse.contiguous()
            reads += [context, lse, d_context.contiguous(), d_lse]
            launch("hh_attention_backward", reads, [dq, dx, delta], ctx.sizes, [ctx.scale])
        else:
            dq, dx = torch.zeros_like(q), torch.zeros_like(x)
        return dq, dx, None, None, None, None, None, None
