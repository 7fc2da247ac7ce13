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
) -> Tensor:
    """residual + [gate > 0] (D(a) w + b w_z[z]): (Z, rows, d), or (rows, d) without w_z."""
    from hhmpn_fast.kernels.update.backward import rows_product

    rows, dim = a.shape
    count = 1 if w_z is None else w_z.shape[0]
    out = a.new_empty(count, rows, dim)
    entry = chosen("rows_product", a, w)
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
    return out if w_z is not None else out[0]


def weight_gradient(y: Tensor, x: Tensor, *, summed: bool = False, drop: Drop = NO_DROPOUT) -> tuple[Tensor, Tensor]:
    """d_W[z] = D(y)^T x[z] (Z, d, d), d_b = column sums of D(y) (d,), fp32; `summed` takes sum_z x[z], Z = 1."""
    from hhmpn_fast.kernels.update.backward import weight_product

    rows, dim = y.shape
    x = x.view(-1, rows, dim)
    count, splits = 1 if summed else x.shape[0], blocks(rows, SPAN)
    partial = y.new_empty(splits, count, dim, dim, dtype=torch.float32)
    partial_bias = y.new_empty(splits, dim, dtype=torch.float32)
    entry = chosen("weight_product", y)
    form = GradientForm(
        BM=entry.m,
        BN=step(entry.n, dim),
        BK=step(entry.k, dim),
        SUM=summed,
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
        partial=partial,
        partial_bias=partial_bias,
        rows=rows,
        sources=x.shape[0],
        dim=dim,
        span=SPAN,
    )
    return partial.sum(0), partial_bias.sum(0)
