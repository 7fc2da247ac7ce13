"""Triton kernels (installed as hhmpn_fast.kernels): the `triton` backend, for NVIDIA and AMD GPUs.

Importing this imports no triton; the first call of an op does.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from hhmpn_fast.backends import Backend, Body
from hhmpn_fast.kernels.runtime import DTYPES, MAX_DIM, unavailable
from hhmpn_fast.ops.embed import absorb, embed


def describe() -> dict[str, str]:
    """What `info` prints about the backend."""
    return {"triton": version("triton")}


def attention(*args: Any, **kwargs: Any) -> Any:
    """Softmax messages between ragged sets; see `hhmpn_fast.ops.attention`."""
    from hhmpn_fast.kernels.attention_op import attention as run

    return run(*args, **kwargs)


def update_labels(*args: Any, **kwargs: Any) -> Any:
    """The tail of MP and UPD for label rows; see `hhmpn_fast.ops.update`."""
    from hhmpn_fast.kernels.update_op import update_labels as run

    return run(*args, **kwargs)


def update_features(*args: Any, **kwargs: Any) -> Any:
    """The tail of MP and UPD for nodes; see `hhmpn_fast.ops.update`."""
    from hhmpn_fast.kernels.update_op import update_features as run

    return run(*args, **kwargs)


def readout(*args: Any, **kwargs: Any) -> Any:
    """Modality softmax, fused states and logits; see `hhmpn_fast.ops.readout`."""
    from hhmpn_fast.kernels.readout_op import readout as run

    return run(*args, **kwargs)


def joint_bce(*args: Any, **kwargs: Any) -> Any:
    """The joint loss and its gradient in one launch; see `hhmpn_fast.ops.readout`."""
    from hhmpn_fast.kernels.readout_op import joint_bce as run

    return run(*args, **kwargs)


BACKEND = Backend(
    "triton",
    device="cuda",
    ops={
        "absorb": Body(absorb, anything=True),
        "attention": Body(attention, ("exclude_self",)),
        "embed": Body(embed, anything=True),
        "joint_bce": Body(joint_bce),
        "readout": Body(readout, ("output_bias",)),
        "update_features": Body(update_features),
        "update_labels": Body(update_labels),
    },
    unavailable=unavailable,
    dtypes=DTYPES,
    dims=range(1, MAX_DIM + 1),
    describe=describe,
)
