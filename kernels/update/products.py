"""The two products of update's backward pass, as its op calls them: gradients of rows and gradients of weights."""

from __future__ import annotations

import torch
from torch import Tensor

from hhmpn_fast.kernels.launch import blocks, chosen, run
from hhmpn_fast.kernels.records import Drop, GradientForm, ProductForm
from hhmpn_fast.kernels.runtime import product_constants, step

SPAN = 512  # rows a split of a weight gradient
NO_DROPOUT = Drop.of(0.0, None, 0)


def rows_gradient(
    a: Tensor,
    w: Tensor,
    *,
    b: Tensor | None = None,
    w_z: Tensor | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    drop: Drop = NO_DROPOUT,
    out: Tensor | None = None,
) -> Tensor:
    """residual + [gate > 0] (D(a) w + b w_z[z]): (Z, rows, d), or (rows, d) without w_z; `out` (Z, rows, d) takes it."""
    from hhmpn_fast.kernels.update.backward import rows_product

    rows, dim = a.shape
    count = 1 if w_z is None else w_z.shape[0]
    out = a.new_empty(count, rows, dim) if out is None else out
    entry = chosen("rows_product", a)
    form = ProductForm(
        BM=entry.m,
        BN=step(entry.n, dim),
        BK=step(entry.k, dim),
        TWO=w_z is not None,
        GATE=gate is not None,
        RESIDUAL=residual is not None,
        **product_constants(a, drop.rng),
    )
    run(
        rows_product,
        (blocks(rows, form.BM), blocks(dim, form.BN), count),
        entry,
        form,
        a=a,
        w=w.contiguous(),
        b=b,
        w_z=None if w_z is None else w_z.contiguous(),
        gate=gate,
        residual=residual,
        drop=drop,
        out=out,
        rows=rows,
        dim=dim,
    )
    return out if w_z is not None else out.view(rows, dim)


def weight_gradient(
    y: Tensor, x: Tensor, *, summed: bool = False, drop: Drop = NO_DROPOUT, sites: int = 0
) -> tuple[Tensor, Tensor]:
    """d_W[z] = D(y)^T x[z] (Z, d, d), d_b = column sums of D(y) (d,), fp32; `summed` takes sum_z x[z], Z = 1.

    A stack y (Z, rows, d) has its gradients z by z, d_b (Z, d) too, and a dropout site every `sites` from the first.
    """
    from hhmpn_fast.kernels.update.backward import weight_product

    *stack, rows, dim = y.shape
    x = x.view(-1, rows, dim)
    count, splits = 1 if summed else x.shape[0], blocks(rows, SPAN)
    biases = count if stack else 1
    parts = y.new_empty(splits, count * dim * dim + biases * dim, dtype=torch.float32)
    entry = chosen("weight_product", y)
    form = GradientForm(
        BM=entry.m,
        BN=step(entry.n, dim),
        BK=step(entry.k, dim),
        SUM=summed,
        STACKED=bool(stack),
        **product_constants(y, drop.rng),
    )
    run(
        weight_product,
        (blocks(dim, form.BN) * blocks(dim, form.BK), count, splits),
        entry,
        form,
        y=y,
        x=x,
        drop=drop,
        parts=parts,
        stride=parts.shape[1],
        rows=rows,
        sources=x.shape[0],
        dim=dim,
        span=SPAN,
        sites=sites,
    )
    weights, bias = parts.sum(0).split((count * dim * dim, biases * dim))
    return weights.view(count, dim, dim), bias.view(*stack, dim)
