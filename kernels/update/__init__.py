"""update: kernels of both passes, and the op that launches them."""

from __future__ import annotations

from hhmpn_fast.backends.record import Body
from hhmpn_fast.kernels.update.op import update_features, update_labels

BODIES = {"update_features": Body(update_features), "update_labels": Body(update_labels)}
