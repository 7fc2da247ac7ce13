"""toy on a GPU: shapes, the launches, registration; the kernels are in passes.py, which imports triton."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

from torch import Tensor

from hhmpn_fast.backends.record import Body
from hhmpn_fast.kernels.launch import run
from hhmpn_fast.kernels.launch_table import Entry
from hhmpn_fast.kernels.runtime import padded
from hhmpn_fast.ops.bodies import implement
from hhmpn_fast.ops.toy import TOY

ENTRY = Entry(1, 0, 0, 4, 1, "a row at a time, whatever its width")


class Form(NamedTuple):
    """D: padded features."""

    D: int


def toy(x: Tensor, w: Tensor) -> Tensor:
    """x (rows, d) times w (d,)."""
    return TOY("triton", x=x, w=w)


def shapes(i: SimpleNamespace) -> dict[str, Tensor]:
    """y, empty."""
    return {"y": i.x.new_empty(i.x.shape)}


def forward(i: SimpleNamespace, keep: bool) -> dict[str, Tensor]:
    """y."""
    from hhmpn_fast.kernels.toy.passes import toy_forward

    (rows, dim), made = i.x.shape, shapes(i)
    if i.x.numel():
        run(toy_forward, (rows,), ENTRY, Form(padded(dim)), x=i.x.contiguous(), w=i.w.contiguous(), dim=dim, **made)
    return made


def backward(d: SimpleNamespace, i: SimpleNamespace, saved: SimpleNamespace) -> dict[str, Tensor]:
    """Gradients of x and w."""
    from hhmpn_fast.kernels.toy.passes import toy_backward

    x, w, d_y, dim = i.x.contiguous(), i.w.contiguous(), d.y.contiguous(), i.x.shape[1]
    made = {"d_x": x.new_empty(x.shape), "d_w": w.new_empty(w.shape)}
    run(toy_backward, (1,), ENTRY, Form(padded(dim)), x=x, w=w, d_y=d_y, rows=x.shape[0], dim=dim, **made)
    return {"x": made["d_x"], "w": made["d_w"]}


implement(TOY, "triton", forward, backward, shapes)
BODIES = {"toy": Body(toy)}
