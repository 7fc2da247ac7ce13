"""toy: every row times one vector.

y_r = x_r * w          d_x_r = d_y_r * w          d_w = sum_r d_y_r * x_r

x, y  (rows, d)        w  (d,)
"""

from __future__ import annotations

from torch import Tensor

from hhmpn_fast.backends import Body, Call, choose
from hhmpn_fast.ops.op import Op

TOY = Op("toy(Tensor x, Tensor w) -> Tensor y")


def toy(x: Tensor, w: Tensor) -> Tensor:
    """x (rows, d) times w (d,), by the chosen backend."""
    return choose("toy", Call.of(x))(x, w)


def plain(x: Tensor, w: Tensor) -> Tensor:
    """The same in PyTorch."""
    return x * w


BODIES = {"toy": Body(plain)}
