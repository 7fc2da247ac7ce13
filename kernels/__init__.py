"""Triton kernels (installed as hhmpn_fast.kernels): the `triton` backend, for NVIDIA and AMD GPUs.

Importing this registers the ops and imports no triton; the first call of an op does. A folder an op: `op` launches what
`forward` and `backward` define; `records` are what kernels take, `tiles` what they share, `launch_table` their tiles.
"""

from __future__ import annotations

from importlib.metadata import version

from hhmpn_fast.kernels.attention.op import attention
from hhmpn_fast.kernels.joint_bce.op import joint_bce
from hhmpn_fast.kernels.readout.op import readout
from hhmpn_fast.kernels.runtime import why_not
from hhmpn_fast.kernels.update.op import update_features, update_labels
from hhmpn_fast.ops.embed import absorb, embed

__all__ = [
    "absorb",
    "attention",
    "describe",
    "embed",
    "joint_bce",
    "readout",
    "update_features",
    "update_labels",
    "why_not",
]


def describe() -> dict[str, str]:
    """What `info` prints about the backend."""
    return {"triton": version("triton")}
