"""toy on CUDA: csrc/cuda/toy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hhmpn_fast.backends.cuda.launch import launch
from hhmpn_fast.backends.record import Body
from hhmpn_fast.ops.bodies import implement
from hhmpn_fast.ops.toy import TOY


def toy(x: Tensor, w: Tensor) -> Tensor:
    """x (rows, d) times w (d,)."""
    return TOY("cuda", x=x, w=w)


def _fields(i: SimpleNamespace) -> dict[str, Any]:
    rows, d = i.x.shape
    return {"dtype": i.x.dtype, "d": d, "x": i.x.contiguous(), "w": i.w.contiguous(), "rows": rows}


def shapes(i: SimpleNamespace) -> dict[str, Tensor]:
    """y, empty."""
    return {"y": i.x.new_empty(i.x.shape)}


def forward(i: SimpleNamespace, keep: bool) -> dict[str, Tensor]:
    """y."""
    made = shapes(i)
    if i.x.numel():
        launch("toy_forward", **_fields(i), **made)
    return made


def backward(d: SimpleNamespace, i: SimpleNamespace, saved: SimpleNamespace) -> dict[str, Tensor]:
    """Gradients of x and w."""
    d_x, d_w = i.x.new_empty(i.x.shape), torch.zeros_like(i.w)
    if d_x.numel():
        launch("toy_backward", **_fields(i), d_y=d.y.contiguous(), d_x=d_x, d_w=d_w)
    return {"x": d_x, "w": d_w}


implement(TOY, "cuda", forward, backward, shapes)
BODIES = {"toy": Body(toy)}
