"""tower: every label step from the other folders' kernels, as one op."""

from __future__ import annotations

from hhmpn_fast.backends.record import Body
from hhmpn_fast.kernels.tower.op import HOLDS, tower

BODIES = {"tower": Body(tower, HOLDS)}
