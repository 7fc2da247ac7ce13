"""The two products of update's backward pass, as its op calls them: gradients of rows and gradients of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

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
    """residual + [gate > 0] (D(a) w + b w_z[z]): (Z, rows, d), or (rows, d) without w_z; into `out`, (Z, rows, d)."""
    from hhmpn_fast.kernels.update.backward import rows_product

    rows, dim = a.shape
    count = 1 if w_z is None else w_z.shape[0]
    out = a.new_empty(count, rows, dim) if out is None else out
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
    return out if w_z is not None else out.view(rows, dim)


class Job(NamedTuple):
    """A weight matrix's two factors: y (rows, d), x (Z, rows, d); `summed` takes sum_z x[z], Z = 1.

    A stack y (Z, rows, d) has a gradient, a bias and a dropout site of its own for every z, `sites` apart.
    """

    y: Tensor
    x: Tensor
    drop: Drop = NO_DROPOUT
    summed: bool = False
    sites: int = 0

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the gradients of W and of b."""
        *stack, rows, dim = self.y.shape
        return (1 if self.summed else self.x.numel() // (rows * dim), dim, dim), (*stack, dim)


class Gradients(NamedTuple):
    """d_W[z] = D(y)^T x[z] (Z, d, d), d_b = column sums of D(y) (d,), or (Z, d) of a stack; fp32."""

    weight: Tensor
    bias: Tensor


def weight_gradients(jobs: Mapping[str, Job]) -> dict[str, Gradients]:
    """The gradients of every job, a launch a job; the parts of jobs of equally many rows are added up by one."""
    made: dict[str, Gradients] = {}
    for rows in dict.fromkeys(job.y.shape[-2] for job in jobs.values()):
        made |= _of_as_many({name: job for name, job in jobs.items() if job.y.shape[-2] == rows})
    return made


def _of_as_many(jobs: Mapping[str, Job]) -> dict[str, Gradients]:
    y = next(iter(jobs.values())).y
    sizes = [math.prod(shape) for job in jobs.values() for shape in job.shapes]
    parts = y.new_empty(blocks(y.shape[-2], SPAN), sum(sizes), dtype=torch.float32)
    own = [sum(map(math.prod, job.shapes)) for job in jobs.values()]  # a bias's parts lie behind its weight's
    for job, part in zip(jobs.values(), parts.split(own, 1)):
        _weight_product(job, part)
    sums = iter(parts.sum(0).split(sizes))
    return {name: Gradients(*(next(sums).view(shape) for shape in job.shapes)) for name, job in jobs.items()}


def _weight_product(job: Job, parts: Tensor) -> None:
    from hhmpn_fast.kernels.update.backward import weight_product

    y, (rows, dim) = job.y, job.y.shape[-2:]
    x = job.x.view(-1, rows, dim)
    entry = chosen("weight_product", y)
    form = GradientForm(
        BM=entry.m,
        BN=step(entry.n, dim),
        BK=step(entry.k, dim),
        SUM=job.summed,
        STACKED=y.dim() == 3,
        **product_constants(y, job.drop.rng),
    )
    run(
        weight_product,
        (blocks(dim, form.BN) * blocks(dim, form.BK), job.shapes[0][0], parts.shape[0]),
        entry,
        form,
        y=y,
        x=x,
        drop=job.drop,
        parts=parts,
        stride=parts.stride(0),
        rows=rows,
        sources=x.shape[0],
        dim=dim,
        span=SPAN,
        sites=job.sites,
    )
