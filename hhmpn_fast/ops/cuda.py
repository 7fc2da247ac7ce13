"""The `cuda` backend: csrc/cuda's kernels. Importable on any machine; its record says what keeps it from running.

attention, update_labels, update_features   a kernel each, forward and backward
embed, absorb                               dense products, which PyTorch hands to cuBLAS
readout                                     PyTorch's own ops, where it is not part of the tower
"""

from __future__ import annotations

from hhmpn_fast.backends import Backend, Body
from hhmpn_fast.ops import cuda_launch
from hhmpn_fast.ops.cuda_attention import attention
from hhmpn_fast.ops.cuda_tower import tower
from hhmpn_fast.ops.cuda_update import update_features, update_labels
from hhmpn_fast.ops.embed import absorb, embed
from hhmpn_fast.ops.readout import readout


def _unavailable(device: str) -> str | None:
    reason = cuda_launch.missing()
    if reason is None and device != "cuda" and not cuda_launch.replaced():
        reason = f"the tensors are on {device}; expected cuda"
    return reason


BACKEND = Backend(
    "cuda",
    device="cuda",
    ops={
        "absorb": Body(absorb, anything=True),
        "attention": Body(attention, ("exclude_self",)),
        "embed": Body(embed, anything=True),
        "readout": Body(readout, anything=True),
        "tower": Body(
            tower,
            (
                *("dropout", "sharing=tied", "exclude_self", "label_graph=prior", "output_weight=tied"),
                *("intermediate=none", "without=f2f", "without=f2l", "without=l2l", "without=m2l"),
            ),
        ),
        "update_features": Body(update_features),
        "update_labels": Body(update_labels),
    },
    unavailable=_unavailable,
    dtypes=tuple(cuda_launch.DTYPES),
    dims=cuda_launch.DIMS,
    describe=cuda_launch.describe,
)
