"""The `cuda` backend: csrc/cuda's kernels, a file an op. Importable on any machine; its record says what keeps it from
running.

attention, update, tower   a kernel each, forward and backward
embed, absorb, joint_bce   dense products, which PyTorch hands to cuBLAS, and sums
readout                    PyTorch's own ops, where it is not part of the tower
"""

from __future__ import annotations

from hhmpn_fast.backends.cuda import launch
from hhmpn_fast.backends.cuda.fields import DTYPES
from hhmpn_fast.backends.dense import register, register_joint_bce
from hhmpn_fast.backends.plain import BACKEND as PLAIN
from hhmpn_fast.backends.record import Backend, Body, bodies

DENSE = {"readout": Body(PLAIN.ops["readout"].run, anything=True), **register("cuda"), **register_joint_bce("cuda")}


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
