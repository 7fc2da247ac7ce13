"""The `toy` backend: float64 on the host, a file an op."""

from __future__ import annotations

import torch

from hhmpn_fast.backends.record import Backend, bodies

BACKEND = Backend(
    "toy",
    device="cpu",
    ops=bodies(__name__),
    unavailable=lambda device: None if device == "cpu" else f"the tensors are on {device}; expected cpu",
    dtypes=(torch.float64,),
    describe=lambda: {"made of": "wood"},
)
