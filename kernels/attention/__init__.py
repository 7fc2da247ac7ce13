"""attention: kernels of both passes, and the op that launches them."""

from __future__ import annotations

from hhmpn_fast.backends.record import Body
from hhmpn_fast.kernels.attention.op import attention

BODIES = {"attention": Body(attention, ("exclude_self",))}
