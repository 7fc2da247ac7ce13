"""readout on a GPU: shapes, launches of both passes, registration."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hhmpn_fast.errors import InputError
from hhmpn_fast.kernels.launch import Entry, blocks, chosen, run
from hhmpn_fast.kernels.records import Outputs, ReadoutForm, Scorers
from hhmpn_fast.kernels.runtime import padded
from hhmpn_fast.ops.bodies import implement
from hhmpn_fast.ops.readout import READOUT


def readout(wl: Tensor | None, **rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The op, which needs W^l."""
    if wl is None:
        raise InputError("readout: found no wl, the plain sum over modalities; expected wl (d,) on the triton backend.")
    return READOUT("triton", wl=wl, **rest)


def shapes(i: SimpleNamespace) -> dict[str, Tensor]:
    """Outputs, empty."""
    modalities, batch, labels, dim = i.u.shape
    return {
        "fused": i.u.new_empty(batch, labels, dim),
        "logits": i.u.new_empty(batch, labels),
        "alpha": i.u.new_empty(modalities, batch, labels),
    }


def forward(i: SimpleNamespace, keep: bool) -> dict[str, Tensor]:
    """fused, logits and alpha; see forward.py."""
    from hhmpn_fast.kernels.readout.forward import readout_forward

    out = shapes(i)
    if out["logits"].numel():
        entry = chosen("readout_forward", i.u)
        run(readout_forward, _grid(i.u, entry), entry, _form(i.u, entry), **_inputs(i), out=Outputs(**out))
    return out


def backward(d: SimpleNamespace, i: SimpleNamespace, saved: SimpleNamespace) -> dict[str, Tensor]:
    """Gradients of u, wl and wo; see backward.py."""
    from hhmpn_fast.kernels.readout.backward import readout_backward

    d_u = i.u.new_empty(i.u.shape)
    if not saved.fused.numel():
        return {"u": d_u, "wl": torch.zeros_like(i.wl), "wo": torch.zeros_like(i.wo)}
    own = shapes(i)
    d_out = {name: own[name].zero_() if g is None else g.contiguous() for name, g in vars(d).items()}
    entry = chosen("readout_backward", i.u)
    grid = _grid(i.u, entry)
    partial = Scorers(*i.u.new_empty(2, *grid, i.u.shape[-1], dtype=torch.float32))
    run(
        readout_backward,
        grid,
        entry,
        _form(i.u, entry),
        **_inputs(i),
        fused=saved.fused,
        d_out=Outputs(**d_out),
        d_u=d_u,
        partial=partial,
    )
    return {"u": d_u, "wl": partial.wl.sum((0, 1)), "wo": partial.wo.sum(0)}


def _grid(u: Tensor, entry: Entry) -> tuple[int, int]:
    _, batch, labels, _ = u.shape
    return blocks(batch, entry.m), labels


def _form(u: Tensor, entry: Entry) -> ReadoutForm:
    return ReadoutForm(D=padded(u.shape[-1]), MP=padded(u.shape[0], 2), BB=entry.m)


def _inputs(i: SimpleNamespace) -> dict[str, object]:
    modalities, batch, labels, dim = i.u.shape
    return {
        "u": i.u.contiguous(),
        "present": i.present.contiguous(),
        "w": Scorers(i.wl.contiguous(), i.wo.contiguous()),
        "modalities": modalities,
        "batch": batch,
        "labels": labels,
        "dim": dim,
    }


implement(READOUT, "triton", forward, backward, shapes, saves=("fused",), rounds=True)
