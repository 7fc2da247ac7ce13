"""attention on the toy backend: PyTorch's, which notes that it ran."""

from __future__ import annotations

from torch import Tensor

from hhmpn_fast.backends.record import Body
from hhmpn_fast.ops.attention import ATTENTION, plain

RAN: list[int] = []


def attention(**inputs: object) -> tuple[Tensor, Tensor]:
    """`hhmpn_fast.ops.attention` on q (N, d)."""
    RAN.append(len(inputs["q"]))
    return ATTENTION.over(plain)(**inputs)


BODIES = {"attention": Body(attention)}
