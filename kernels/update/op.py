"""update on a GPU, labels and features: shapes, launches of both passes, registration."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hhmpn_fast.errors import InputError
from hhmpn_fast.kernels.launch import blocks, chosen, run
from hhmpn_fast.kernels.records import Drop, Kept, UpdateForm
from hhmpn_fast.kernels.runtime import product_constants, row_constants, step
from hhmpn_fast.kernels.update.products import rows_gradient, weight_gradient
from hhmpn_fast.ops.bodies import implement
from hhmpn_fast.ops.update import UPDATE, UpdateOptions
from hhmpn_fast.weights import BlockWeights

WEIGHTS = ("value", "hidden", "b1", "output", "b2")  # all of a block's but the query


def body(op: str) -> Callable[..., Tensor]:
    """The body of update_labels or update_features: the op, whose kernels take square weights."""

    def run(options: UpdateOptions, **inputs: Any) -> Tensor:
        options.must_be_own(op)
        dim = inputs["state"].shape[-1]
        sources = inputs["context"].shape[:1] if op == "update_features" else ()
        square = {"value": (dim, dim), "hidden": (*sources, dim, dim), "b1": (dim,), "output": (dim, dim), "b2": (dim,)}
        for name, shape in square.items():
            if inputs[name].shape != shape:
                raise InputError(f"{op}: {name} is {tuple(inputs[name].shape)}; the triton kernels expect {shape}.")
        return UPDATE("triton", **inputs)

    return run


def _features(i: SimpleNamespace) -> bool:
    return i.hidden.dim() == 3


def shapes(i: SimpleNamespace) -> dict[str, Tensor]:
    """The output and what is kept, empty; features keep no mixed state."""
    out = _output(i)
    rows = (out.shape[:-1].numel(), out.shape[-1])
    return {"out": out, "g": out.new_empty(0 if _features(i) else rows), "h": out.new_empty(rows)}


def _output(i: SimpleNamespace) -> Tensor:
    return torch.empty_like(i.state if _features(i) else i.context, memory_format=torch.contiguous_format)


def forward(i: SimpleNamespace, keep: bool) -> dict[str, Tensor]:
    """out and, where asked, g and h; see forward.py."""
    from hhmpn_fast.kernels.update.forward import update_features_forward, update_labels_forward

    made = shapes(i) if keep else {"out": _output(i)}
    out, dim = made["out"], made["out"].shape[-1]
    rows = out.numel() // dim
    if rows == 0:
        return made
    entry = chosen("update_features_forward" if _features(i) else "update_labels_forward", out, i.value)
    form = UpdateForm(
        **row_constants(dim),
        BM=entry.m,
        BH=step(entry.n, dim),
        BK=step(entry.k, dim),
        SAVE=keep,
        **product_constants(out, i.rng),
    )
    both = {
        "s": i.context.contiguous(),
        "w": BlockWeights(None, **{name: getattr(i, name).contiguous() for name in WEIGHTS}),
        "drop": Drop.of(i.p, i.rng, i.site),
        "kept": Kept(made.get("g"), made.get("h")),
        "out": out,
        "rows": rows,
        "dim": dim,
    }
    grid, state = (blocks(rows, entry.m),), i.state.contiguous()
    if _features(i):
        run(update_features_forward, grid, entry, form, v=state, sources=i.context.shape[0], **both)
    else:
        run(update_labels_forward, grid, entry, form, u=state, rows_u=state.numel() // dim, **both)
    return made


def backward(d: SimpleNamespace, i: SimpleNamespace, saved: SimpleNamespace) -> dict[str, Tensor]:
    """Gradients of the states, the contexts and the weights; see backward.py."""
    if d.out.numel() == 0:
        return {name: torch.zeros_like(getattr(i, name)) for name in ("state", "context", *WEIGHTS)}
    return (_features_backward if _features(i) else _labels_backward)(d, i, saved)


def _labels_backward(d: SimpleNamespace, i: SimpleNamespace, saved: SimpleNamespace) -> dict[str, Tensor]:
    dim, drop = d.out.shape[-1], Drop.of(i.p, i.rng, i.site)
    d_out, s = d.out.reshape(-1, dim).contiguous(), i.context.reshape(-1, dim).contiguous()
    d_h = rows_gradient(d_out, i.output, gate=saved.h, drop=drop)
    d_g = rows_gradient(d_h, i.hidden, residual=d_out)
    d_s = rows_gradient(d_g, i.value)
    d_output, d_b2 = weight_gradient(d_out, saved.h, drop=drop)
    d_hidden, d_b1 = weight_gradient(d_h, saved.g)
    d_value, _ = weight_gradient(d_g, s)
    shared = i.state.numel() < d_g.numel()
    d_state = d_g.view(-1, i.state.numel() // dim, dim).float().sum(0).to(d_g.dtype) if shared else d_g
    return {
        "state": d_state.view(i.state.shape),
        "context": d_s.view(i.context.shape),
        "value": d_value[0],
        "hidden": d_hidden[0],
        "b1": d_b1,
        "output": d_output[0],
        "b2": d_b2,
    }


def _features_backward(d: SimpleNamespace, i: SimpleNamespace, saved: SimpleNamespace) -> dict[str, Tensor]:
    d_out, s, drop = d.out.contiguous(), i.context.contiguous(), Drop.of(i.p, i.rng, i.site)
    d_h = rows_gradient(d_out, i.output, gate=saved.h, drop=drop)
    d_s = rows_gradient(d_out, i.value, b=d_h, w_z=i.hidden)
    d_output, d_b2 = weight_gradient(d_out, saved.h, drop=drop)
    d_hidden, d_b1 = weight_gradient(d_h, s)
    d_value, _ = weight_gradient(d_out, s, summed=True)
    return {
        "state": d.out.clone(),  # an op's output may not be its input
        "context": d_s,
        "value": d_value[0],
        "hidden": d_hidden,
        "b1": d_b1,
        "output": d_output[0],
        "b2": d_b2,
    }


implement(UPDATE, "triton", forward, backward, shapes, keeps=("Tensor g", "Tensor h"), rounds=True)
