"""toy on the CPU: csrc/cpu/ops/toy."""

from __future__ import annotations

from torch import Tensor

from hhmpn_fast.backends.record import Body
from hhmpn_fast.ops.toy import TOY

TOY.define("cpu", lambda i: {"y": i.x.new_empty(i.x.shape)})


def toy(x: Tensor, w: Tensor) -> Tensor:
    """x (rows, d) times w (d,)."""
    return TOY("cpu", x=x, w=w)


BODIES = {"toy": Body(toy)}
