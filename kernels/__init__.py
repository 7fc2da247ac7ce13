"""Triton kernels (installed as hhmpn_fast.kernels): the `triton` backend, for NVIDIA and AMD GPUs.

Importing this registers the ops and imports no triton; the first call of an op does. A folder an op: `op` launches what
`forward` and `backward` define; `records` are what kernels take, `tiles` what they share, `launch_table` their tiles.
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import version

from hhmpn_fast.backends.dense import register
from hhmpn_fast.backends.record import Backend, Body
from hhmpn_fast.kernels.launch import replaced
from hhmpn_fast.kernels.runtime import DTYPES, MAX_DIM, inexact, unavailable


def describe() -> dict[str, str]:
    """What `info` prints about the backend."""
    return {"triton": version("triton")}


def _unavailable(device: str) -> str | None:
    return None if replaced() else unavailable(device)


def _bodies() -> dict[str, Body]:
    """The ops: PyTorch's own products of weights, and what every folder lists as BODIES."""
    found = register("triton")
    for folder in pkgutil.iter_modules(__path__):
        if folder.ispkg:
            found |= importlib.import_module(f"{__name__}.{folder.name}").BODIES
    return dict(sorted(found.items()))


BACKEND = Backend(
    "triton",
    device="cuda",
    ops=_bodies(),
    unavailable=_unavailable,
    inexact=inexact,
    dtypes=DTYPES,
    dims=range(1, MAX_DIM + 1),
    describe=describe,
)
