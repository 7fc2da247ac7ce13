"""The `cuda` backend: csrc/cuda's kernels, a file an op. Importable on any machine; its record says what keeps it from
running.

attention, update, tower   a kernel each, forward and backward
embed, absorb              dense products, which PyTorch hands to cuBLAS
readout                    PyTorch's own ops, where it is not part of the tower
"""

from __future__ import annotations

from hhmpn_fast.backends.cuda import launch
from hhmpn_fast.backends.cuda.fields import DTYPES
from hhmpn_fast.backends.plain import BACKEND as PLAIN
from hhmpn_fast.backends.record import Backend, Body, bodies
from hhmpn_fast.ops.embed import ABSORB, unrounded_absorb

DENSE = {op: Body(PLAIN.ops[op].run, anything=True) for op in ("embed", "readout")}
DENSE["absorb"] = Body(ABSORB.over(unrounded_absorb), anything=True)


def _unavailable(device: str) -> str | None:
    reason = launch.missing()
    if reason is None and device != "cuda" and not launch.replaced():
        reason = f"the tensors are on {device}; expected cuda"
    return reason


BACKEND = Backend(
    "cuda",
    device="cuda",
    ops={**bodies(__name__), **DENSE},
    unavailable=_unavailable,
    dtypes=tuple(DTYPES),
    dims=launch.DIMS,
    describe=launch.describe,
)
