"""update on the CPU: csrc/cpu/ops/update."""

from __future__ import annotations

import math
from types import SimpleNamespace

from torch import Tensor

from hhmpn_fast.backends.record import Body
from hhmpn_fast.ops.update import UPDATE, equations_only


def _shapes(i: SimpleNamespace) -> dict[str, Tensor]:
    out = i.state.new_empty(i.state.shape if i.hidden.dim() == 3 else i.context.shape)
    rows = math.prod(out.shape[:-1])
    return {"out": out, "g": out.new_empty(rows, out.shape[-1]), "h": out.new_empty(rows, i.b1.shape[0])}


UPDATE.define("cpu", _shapes, keeps=("Tensor g", "Tensor h"))


BODIES = {op: Body(equations_only(op, UPDATE.on("cpu"))) for op in ("update_labels", "update_features")}
