"""The label steps on a GPU as one op: the kernels of attention, update and readout, without autograd between them.

Rows of all steps lie in one tensor a kind, F2L's beside L2L's, so that the weight gradients of a kind are one launch.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hhmpn_fast.kernels.attention import op as attention
from hhmpn_fast.kernels.readout import op as readout
from hhmpn_fast.kernels.records import Drop, Outputs
from hhmpn_fast.kernels.tower.steps import BLOCKS, KEEPS, Steps, rows_of
from hhmpn_fast.kernels.update import op as update
from hhmpn_fast.kernels.update.products import Job, weight_gradients
from hhmpn_fast.ops.bodies import implement
from hhmpn_fast.ops.dropout import site
from hhmpn_fast.ops.tower import TOWER, TowerCall

HOLDS = (
    *("dropout", "sharing=tied", "exclude_self", "label_graph=prior", "output_weight=tied"),
    *("intermediate=none", "without=f2f"),
)
GRADIENTS = ("q_f2l", "q_l2l", "g", "h", "states")  # of rows that a backward pass needs of every step
SITES = site("f2l_update", 1) - site("f2l_update", 0)  # from a step's dropout site to the next step's


def tower(*call: Any) -> Tensor:
    """Eqs 11-17 for all steps: logits (T, B, L); the arguments are `TowerCall`'s."""
    return TOWER("triton", **TowerCall(*call).inputs())


def shapes(i: SimpleNamespace) -> dict[str, Tensor]:
    """logits and what is kept, empty."""
    logits = i.z.new_empty(i.steps, i.present.shape[1], i.label_embedding.shape[0])
    return {"logits": logits, **rows_of(i, i.steps)}


def forward(i: SimpleNamespace, keep: bool) -> dict[str, Tensor]:
    """logits and the rows of every step; without `keep` steps write over each other's."""
    made = {**shapes(i), **({} if keep else rows_of(i, 1))}
    steps = Steps(i, made)
    alpha = i.z.new_empty(steps.rows[:-1])
    made["u"][0] = i.label_embedding
    torch.arange(0, steps.rows[:-1].numel() + 1, steps.labels, out=made["segments"])
    for t in range(i.steps):
        for block in BLOCKS:
            asked = steps.attention(block, t)
            torch.mm(steps.states(block, t), steps.weights(block, t)["query"], out=asked.q)
            context = steps.of("contexts", block, t)
            lse = steps.of("lse", block, t).view(asked.groups, -1)
            attention.forward_into({"context": context.view(asked.groups, -1, steps.dim), "lse": lse}, asked)
            kept = {name: steps.of(name, block, t) for name in ("g", "h")} if keep else {}
            update.forward_into({"out": steps.of("states", block, t), **kept}, steps.update(block, t))
        out = {"fused": made["u"][t + 1], "logits": made["logits"][t], "alpha": alpha}
        readout.forward_into(out, steps.readout(t))
    return made


def backward(d: SimpleNamespace, i: SimpleNamespace, saved: SimpleNamespace) -> dict[str, Tensor]:
    """Gradients of nodes, label embedding, readout and both blocks' weights."""
    if not d.logits.numel():
        weights = ("label_embedding", "wl", "wo", *(f"{b}_{name}" for b in BLOCKS for name in update.WEIGHTS))
        return {name: torch.zeros_like(getattr(i, name)) for name in ("z", *weights, *(f"{b}_query" for b in BLOCKS))}
    steps, d_logits = Steps(i, vars(saved)), d.logits.contiguous()
    made = steps.with_rows({name: torch.empty_like(getattr(saved, name)) for name in GRADIENTS})
    partial = readout.partials(saved.states[0, 0], i.steps)
    # One stretch of zeros for every output that nobody reads.
    zeros = torch.zeros(max(saved.u[0].numel(), steps.rows[:-1].numel()), dtype=torch.float32, device=i.z.device)
    no_lse, zeros = zeros, zeros.view(i.z.dtype)
    d_alpha, d_u = (zeros[: like.numel()].view(like) for like in (steps.rows[:-1], saved.u[0].shape))
    d_z = i.z.new_empty(i.steps, *i.z.shape)
    for t in reversed(range(i.steps)):
        out = {"u": made.of("states", "l2l", t), "partial": partial[t]}
        incoming = Outputs(d_u, d_logits[t], d_alpha)
        readout.backward_into(out, incoming, steps.readout(t), SimpleNamespace(fused=saved.u[t + 1]))
        d_x = _block_backward("l2l", t, steps, made, no_lse, torch.empty_like(saved.states[0, t]).view(-1, steps.dim))
        d_states = made.of("states", "f2l", t)
        _against_query(d_x, "l2l", t, steps, made, out=d_states.view(d_x.shape))
        d_states += made.of("g", "l2l", t)
        _block_backward("f2l", t, steps, made, no_lse, d_z[t])
        d_shared = made.of("g", "f2l", t).sum(0).view(-1, steps.dim)
        d_u = _against_query(d_shared, "f2l", t, steps, made).view(d_u.shape)
    d_wl, d_wo = partial.unbind(1)
    return {
        "z": d_z.sum(0),
        "label_embedding": d_u.sum(0),
        "wl": d_wl.sum((0, 1, 2)),
        "wo": d_wo.sum((0, 1)),
        **_weights(i, steps, made),
    }


def _block_backward(block: str, t: int, steps: Steps, made: Steps, no_lse: Tensor, d_x: Tensor) -> Tensor:
    """Of an MP + UPD pair from the gradient of its states: rows' into `made`, the keys' into `d_x`."""
    asked, d_out = steps.attention(block, t), made.of("states", block, t).view(-1, steps.dim)
    into = {name: made.of(name, block, t).view(1, *d_out.shape) for name in ("h", "g")}
    d_s = update.labels_rows(d_out, steps.update(block, t), steps.of("h", block, t).view(d_out.shape), into)
    no_lse = no_lse[: steps.rows[:-1].numel()].view(asked.groups, -1)
    d = SimpleNamespace(context=d_s.view(asked.groups, -1, steps.dim), lse=no_lse)
    lse = SimpleNamespace(lse=steps.of("lse", block, t).view(asked.groups, -1))
    attention.backward_into({"q": made.queries(block, t), "x": d_x}, d, asked, lse)
    return d_x


def _against_query(d: Tensor, block: str, t: int, steps: Steps, made: Steps, out: Tensor | None = None) -> Tensor:
    """d + d_q A^T: what comes back through the queries."""
    return torch.addmm(d, made.queries(block, t), steps.weights(block, t)["query"].t(), out=out)


def _weights(i: SimpleNamespace, steps: Steps, made: Steps) -> dict[str, Tensor]:
    """Both blocks' weight gradients, (S, ...) each: over every step's rows where there is one set."""
    sets, d = i.f2l_value.shape[0], steps.dim

    def stack(rows: Tensor, count: int) -> Tensor:
        return rows.view(count, -1, d)

    count, g, h = len(BLOCKS) * sets, made.kind("g"), made.kind("h")
    jobs = {
        "value": Job(stack(g, count), steps.kind("contexts")),
        "hidden": Job(stack(h, count), steps.kind("g")),
    }
    for block, d_out, kept in zip(BLOCKS, made.kind("states"), steps.kind("h")):
        drop = Drop.of(i.p, i.rng, site(f"{block}_update", 0))
        jobs[block] = Job(stack(d_out, i.steps), kept, drop, sites=SITES)
    found, grads = weight_gradients(jobs), {}
    values, hidden = (found[name].weight.view(-1, sets, d, d) for name in ("value", "hidden"))
    b1 = found["hidden"].bias.view(-1, sets, d)
    for at, block in enumerate(BLOCKS):
        states = steps.kind("u")[:-1] if block == "f2l" else steps.kind("states")[0]
        queries = (stack(states.flatten(0, -2), sets).mT, stack(made.kind(f"q_{block}"), sets))
        own = {"query": torch.bmm(*queries), "value": values[at], "hidden": hidden[at], "b1": b1[at]}
        of_steps = {"output": found[block].weight, "b2": found[block].bias}
        own |= {name: t if sets == i.steps else t.sum(0, keepdim=True) for name, t in of_steps.items()}
        grads |= {f"{block}_{name}": t for name, t in own.items()}
    return grads


implement(TOWER, "triton", forward, backward, shapes, keeps=[f"Tensor {name}" for name in KEEPS])
