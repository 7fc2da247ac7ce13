"""The `cpu` backend: the ops of csrc/cpu with the signatures that `hhmpn_fast.ops` and the model call, a file an op.

float32, bfloat16 (fp32 accumulation) and float64; gradients in C++; a second derivative raises.
"""

from __future__ import annotations

import torch

from hhmpn_fast.backends.cpu.library import describe, load_error
from hhmpn_fast.backends.record import Backend, bodies

load_error()  # loads the library, so that torch.ops.hhmpn_fast is there; the record says why where it is not


def _unavailable(device: str) -> str | None:
    on = None if device == "cpu" else f"the tensors are on {device}, the kernels run on the host"
    return load_error() or on


BACKEND = Backend(
    "cpu",
    device="cpu",
    ops=bodies(__name__),
    unavailable=_unavailable,
    dtypes=(torch.float32, torch.bfloat16, torch.float64),
    describe=describe,
)
