"""attention: kernels of both passes, and the op that launches them."""

from __future__ import annotations

from hhmpn_fast.backends.record import Body
from hhmpn_fast.kernels.attention.op import ATTENTION

BODIES = {"attention": Body(ATTENTION.on("triton"), ("exclude_self",))}
