"""attention on the CPU: csrc/cpu/ops/attention."""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor

from hhmpn_fast.backends.cpu.library import accumulate_dtype
from hhmpn_fast.backends.record import Body
from hhmpn_fast.ops.attention import ATTENTION


def _shapes(i: SimpleNamespace) -> dict[str, Tensor]:
    lse = i.q.new_empty(i.groups, i.q.shape[0], dtype=accumulate_dtype(i.q.dtype))
    return {"context": i.q.new_empty(i.groups, *i.q.shape), "lse": lse}


ATTENTION.define("cpu", _shapes, saves=("context", "lse"))


BODIES = {"attention": Body(ATTENTION.on("cpu"))}
