"""update: kernels of both passes, and the op that launches them."""

from __future__ import annotations

from hhmpn_fast.backends.record import Body
from hhmpn_fast.kernels.update.op import body

BODIES = {op: Body(body(op)) for op in ("update_labels", "update_features")}
