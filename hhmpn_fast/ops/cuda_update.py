"""update on CUDA: csrc/cuda/update.cu, update_backward.cu and weight_gradients.cu behind autograd functions.

Forward keeps g and the hidden layer; backward makes the rows' gradients in one launch and the weights' in another,
summed in a fixed order, so every run gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hhmpn_fast.errors import InputError
from hhmpn_fast.ops.cuda_attention import dropout_args
from hhmpn_fast.ops.cuda_launch import DTYPES, launch
from hhmpn_fast.ops.dropout import Dropout
from hhmpn_fast.ops.update import EQUATIONS, UpdateOptions
from hhmpn_fast.weights import BlockWeights

JOBS = 48
_ROWS_A_SPLIT = 512


def update_labels(
    u: Tensor,
    context: Tensor,
    w: BlockWeights,
    dropout: Dropout | None = None,
    options: UpdateOptions = EQUATIONS,
) -> Tensor:
    """Eqs 6-8 for label rows: u (B*L, d) or (M, B*L, d), context (M, B*L, d) -> (M, B*L, d)."""
    options.must_be_own("update_labels")
    return _Update.apply(u, context, w.value, w.hidden, w.b1, w.output, w.b2, dropout, False)


def update_features(
    v: Tensor,
    context: Tensor,
    w: BlockWeights,
    dropout: Dropout | None = None,
    options: UpdateOptions = EQUATIONS,
) -> Tensor:
    """Eqs 9-10 for nodes: v (N, d), context (M, N, d), weights with C (M, d, d) -> z (N, d)."""
    options.must_be_own("update_features")
    return _Update.apply(v, context, w.value, w.hidden, w.b1, w.output, w.b2, dropout, True)


def weight_gradients(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """dW = dY^T X (J, d, d) and db = sum of dY's rows (J, d) of J pairs (dY, X), each (rows_j, d)."""
    first = pairs[0][0]
    d = first.shape[-1]
    dw, db = first.new_zeros(len(pairs), d, d), first.new_zeros(len(pairs), d)
    for j in range(0, len(pairs), JOBS):
        part = pairs[j : j + JOBS]
        rows = [x.numel() // d for _, x in part]
        if max(rows) == 0:
            continue
        splits = min(max(-(-max(rows) // _ROWS_A_SPLIT), 1), 16)
        parts = first.new_empty(splits, len(part), d, d, dtype=torch.float32)
        bias_parts = first.new_empty(splits, len(part), d, dtype=torch.float32)
        sizes = [DTYPES[first.dtype], d, splits, len(part), *rows]
        writes = [dw[j : j + JOBS], db[j : j + JOBS], parts, bias_parts]
        launch("hh_weight_gradients", [t.contiguous() for pair in part for t in pair], writes, sizes)
    return dw, db


class _Update(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        context: Tensor,
        wv: Tensor,
        wr: Tensor,
        b1: Tensor,
        wb: Tensor,
        b2: Tensor,
        dropout: Dropout | None,
        features: bool,
    ) -> Tensor:
        check_dtypes("update", u, context, wv, wr, b1, wb, b2)
        u, context, *weights = (t.contiguous() for t in (u, context, wv, wr, b1, wb, b2))
        d = u.shape[-1]
        rows, u_rows = (u if features else context).numel() // d, u.numel() // d
        out = u.new_empty(u.shape if features else context.shape)
        keep = any(ctx.needs_input_grad)
        g, h = (torch.empty_like(out), torch.empty_like(out)) if keep else (None, None)
        rng, limit, site, scale = dropout_args(dropout, u.device)
        sizes = [DTYPES[u.dtype], d, rows, max(u_rows, 1), context.shape[0] if features else 0, limit, site]
        if rows:
            launch("hh_update_forward", [u, context, *weights, rng], [out, g, h], sizes, [scale])
        ctx.save_for_backward(context, *weights, rng, g, h)
        ctx.sizes, ctx.scale, ctx.features, ctx.u_shape = sizes, scale, features, u.shape
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("update: the CUDA backend has no double backward.")
        context, wv, wr, _, wb, _, rng, g, h = ctx.saved_tensors
        dy, ds = dy.contiguous(), torch.empty_like(context)
        dz = dy if rng is None else torch.empty_like(dy)
        dh = torch.empty_like(dy)
        dg = dy if ctx.features else torch.empty_like(dy)
        if dy.numel():
            writes = [None if rng is None else dz, dh, None if ctx.features else dg, ds]
            launch("hh_update_backward", [dy, h, wv, wr, wb, rng], writes, ctx.sizes, [ctx.scale])
        if ctx.features:
            pairs = [(dz, h), (dy, g), *((dh, s) for s in context)]
        else:
            pairs = [(dz, h), (dg, context), (dh, g)]
        dw, db = weight_gradients(pairs)
        dwr = dw[2:] if ctx.features else dw[2]
        du = dg if dg.shape == ctx.u_shape else dg.view(-1, *ctx.u_shape).sum(0)
        return du, ds, dw[1], dwr, db[2], dw[0], db[0], None, None


def check_dtypes(op: str, *tensors: Tensor) -> None:
    """Refuses weights of another dtype than the states': a kernel reads one."""
    for t in tensors:
        if t.dtype != tensors[0].dtype:
            raise InputError(
                f"{op}: found {t.dtype} beside {tensors[0].dtype}; expected one dtype for states and weights."
            )
