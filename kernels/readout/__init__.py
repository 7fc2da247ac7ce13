"""readout: kernels of both passes, and the op that launches them."""

from __future__ import annotations

from hhmpn_fast.backends.record import Body
from hhmpn_fast.kernels.readout.op import readout

BODIES = {"readout": Body(readout, ("output_bias",))}
