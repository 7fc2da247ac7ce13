"""joint_bce: the kernel, which gives the loss and its gradient, and the op that launches it."""

from __future__ import annotations

from hhmpn_fast.backends.record import Body
from hhmpn_fast.kernels.joint_bce.op import JOINT_BCE

BODIES = {"joint_bce": Body(JOINT_BCE.on("triton"))}
