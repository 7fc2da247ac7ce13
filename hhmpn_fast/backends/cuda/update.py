"""update on CUDA: csrc/cuda/update and csrc/cuda/weight_gradients.

Forward keeps g and the hidden layer h; backward makes the rows' gradients in one launch and the weights' in another,
summed in a fixed order, so every run gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hhmpn_fast.backends.cuda.launch import dropout_fields, launch, room
from hhmpn_fast.backends.record import Body
from hhmpn_fast.ops.bodies import implement
from hhmpn_fast.ops.update import UPDATE, equations_only

_ROWS_A_SPLIT = 512


def shapes(i: SimpleNamespace) -> dict[str, Tensor]:
    """out, g and h in the shape of a feature's state or a label's context; empty."""
    like = i.state if i.hidden.dim() == 3 else i.context
    return {name: like.new_empty(like.shape) for name in ("out", "g", "h")}


def forward(i: SimpleNamespace, keep: bool) -> dict[str, Tensor]:
    """out, and with `keep` g and h."""
    made = shapes(i)
    out = made["out"]
    if not keep:
        made["g"] = made["h"] = None
    if out.numel():
        state = i.state.contiguous()
        launch(
            "update_forward",
            **_fields(i, out.numel() // out.shape[-1]),
            **made,
            state=state,
            state_rows=state.numel() // out.shape[-1],
            context=i.context.contiguous(),
            b1=i.b1.contiguous(),
            b2=i.b2.contiguous(),
        )
    return made


def backward(d: SimpleNamespace, i: SimpleNamespace, saved: SimpleNamespace) -> dict[str, Tensor]:
    """Gradients of states, contexts and weights."""
    features, dropped = i.hidden.dim() == 3, i.rng is not None and i.p > 0
    context, d_out = i.context.contiguous(), d.out.contiguous()
    d_context, d_h = torch.empty_like(context), torch.empty_like(d_out)
    d_tail = torch.empty_like(d_out) if dropped else d_out
    d_g = d_out if features else torch.empty_like(d_out)
    if d_out.numel():
        launch(
            "update_backward",
            **_fields(i, d_out.numel() // d_out.shape[-1]),
            d_out=d_out,
            h=saved.h,
            d_tail=d_tail if dropped else None,
            d_h=d_h,
            d_g=None if features else d_g,
            d_context=d_context,
        )
    jobs = {"output": [Job(d_tail, saved.h)]}
    if features:
        jobs |= {"value": [Job(d_out, saved.g)], "hidden": [Job(d_h, s) for s in context]}
    else:
        jobs |= {"value": [Job(d_g, context)], "hidden": [Job(d_h, saved.g)]}
    made = weight_gradients(jobs)
    d_state = d_g if d_g.shape == i.state.shape else d_g.view(-1, *i.state.shape).sum(0)
    return {
        "state": d_out.clone() if d_state is d.out else d_state,
        "context": d_context,
        "value": made["value"].weight[0],
        "hidden": made["hidden"].weight if features else made["hidden"].weight[0],
        "b1": made["hidden"].bias[0],
        "output": made["output"].weight[0],
        "b2": made["output"].bias[0],
    }


def _fields(i: SimpleNamespace, rows: int) -> dict[str, Any]:
    """What both passes read."""
    return {
        "dtype": i.state.dtype,
        "d": i.state.shape[-1],
        "value": i.value.contiguous(),
        "hidden": i.hidden.contiguous(),
        "output": i.output.contiguous(),
        **dropout_fields(i.p, i.rng, i.state.device),
        "site": i.site,
        "rows": rows,
        "modalities": i.context.shape[0] if i.hidden.dim() == 3 else 0,
    }


class Job(NamedTuple):
    """A weight matrix's two factors, (..., rows, d) each: dW = d_out^T inputs, db = sum of d_out's rows."""

    d_out: Tensor
    inputs: Tensor


class Gradients(NamedTuple):
    """Of one name's jobs: weight (J, d, d), bias (J, d), float32."""

    weight: Tensor
    bias: Tensor


def weight_gradients(jobs: Mapping[str, Sequence[Job]]) -> dict[str, Gradients]:
    """The gradients of every name's jobs, a launch for as many jobs as the kernel holds."""
    names = list(jobs)
    first = jobs[names[0]][0].d_out
    d, at_once = first.shape[-1], room("weight_gradients", "d_out")
    zeros = partial(first.new_zeros, dtype=torch.float32)
    made = {n: Gradients(zeros(len(jobs[n]), d, d), zeros(len(jobs[n]), d)) for n in names}
    order = [(n, j) for j in range(max(map(len, jobs.values()))) for n in names if j < len(jobs[n])]
    for start in range(0, len(order), at_once):
        part = order[start : start + at_once]
        rows = [jobs[n][j].inputs.numel() // d for n, j in part]
        if max(rows) == 0:
            continue
        splits = min(max(-(-max(rows) // _ROWS_A_SPLIT), 1), 16)
        launch(
            "weight_gradients",
            dtype=first.dtype,
            d=d,
            d_out=[jobs[n][j].d_out.contiguous() for n, j in part],
            inputs=[jobs[n][j].inputs.contiguous() for n, j in part],
            rows=rows,
            splits=splits,
            parts=first.new_empty(splits, len(part), d, d, dtype=torch.float32),
            bias_parts=first.new_empty(splits, len(part), d, dtype=torch.float32),
            d_weight=[made[n].weight[j] for n, j in part],
            d_bias=[made[n].bias[j] for n, j in part],
        )
    return made


implement(UPDATE, "cuda", forward, backward, shapes, keeps=("Tensor g", "Tensor h"))
BODIES = {op: Body(equations_only(op, UPDATE.on("cuda"))) for op in ("update_labels", "update_features")}
