"""attention on the toy backend: PyTorch's, which notes that it ran."""

from __future__ import annotations

from torch import Tensor

from hhmpn_fast.backends.record import Body
from hhmpn_fast.ops.attention import attention as plain

RAN: list[int] = []


def attention(q: Tensor, x: Tensor, *rest: object, **options: object) -> tuple[Tensor, Tensor]:
    """`hhmpn_fast.ops.attention`."""
    RAN.append(q.shape[0])
    return plain(q, x, *rest, **options)


BODIES = {"attention": Body(attention)}
