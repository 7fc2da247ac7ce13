"""The `cuda` backend: csrc/cuda's kernels. Importable on any machine; `why_not` says what keeps it from running.

attention, update_labels, update_features   a kernel each, forward and backward
embed, absorb                               dense products, which PyTorch hands to cuBLAS
readout                                     PyTorch's own ops, where it is not part of the tower
"""

from __future__ import annotations

from hhmpn_fast.backends import Call
from hhmpn_fast.backends.cuda import launch
from hhmpn_fast.backends.cuda.attention import attention
from hhmpn_fast.backends.cuda.fields import DTYPES
from hhmpn_fast.backends.cuda.tower import tower
from hhmpn_fast.backends.cuda.update import update_features, update_labels
from hhmpn_fast.ops.plain import absorb, embed, readout

__all__ = [
    "absorb",
    "attention",
    "describe",
    "embed",
    "readout",
    "tower",
    "update_features",
    "update_labels",
    "why_not",
]
PLAIN = ("absorb", "embed", "readout")
OPTIONS = {"attention": ("exclude_self",)}
describe = launch.describe


def why_not(op: str, call: Call) -> str | None:
    """None when the op can run as called, else one sentence: device, installation, driver, dtype, size or option."""
    reason = launch.missing()
    if reason is not None:
        return reason
    if call.device != "cuda" and not launch.replaced():
        return f"the tensors are on {call.device}; expected cuda"
    if op in PLAIN:
        return None
    if call.dtype not in DTYPES:
        return f"it has kernels for float32 and bfloat16, not for {str(call.dtype).removeprefix('torch.')}"
    if call.dim not in launch.DIMS:
        return f"it has kernels for d in {', '.join(map(str, launch.DIMS))}, not for d = {call.dim}"
    unknown = [o for o in call.options if o not in OPTIONS.get(op, ())]
    return f"it has no kernel for {unknown[0]}" if unknown else None
