"""Triton kernels (installed as hhmpn_fast.kernels): the `triton` backend, for NVIDIA and AMD GPUs.

Importing this registers the ops and imports no triton; the first call of an op does. A folder an op: `op` launches what
`forward` and `backward` define; `records` are what kernels take, `tiles` what they share, `launch_table` their tiles.
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import version

from hhmpn_fast.backends.plain import BACKEND as PLAIN
from hhmpn_fast.backends.record import Backend, Body
from hhmpn_fast.kernels.runtime import DTYPES, MAX_DIM, inexact, unavailable
from hhmpn_fast.ops.embed import ABSORB, unrounded_absorb


def describe() -> dict[str, str]:
    """What `info` prints about the backend."""
    return {"triton": version("triton")}


def _bodies() -> dict[str, Body]:
    """The ops: PyTorch's own products of weights, and what every folder lists as BODIES."""
    found = {
        "absorb": Body(ABSORB.over(unrounded_absorb), anything=True),
        "embed": Body(PLAIN.ops["embed"].run, anything=True),
    }
    for folder in pkgutil.iter_modules(__path__):
        if folder.ispkg:
            found |= importlib.import_module(f"{__name__}.{folder.name}").BODIES
    return dict(sorted(found.items()))


BACKEND = Backend(
    "triton",
    device="cuda",
    ops=_bodies(),
    unavailable=unavailable,
    inexact=inexact,
    dtypes=DTYPES,
    dims=range(1, MAX_DIM + 1),
    describe=describe,
)
