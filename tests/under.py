"""Each backend's ops under their public signatures, whatever backend is chosen: `cpu.attention(q, x, ...)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hhmpn_fast.backends.cpu
import hhmpn_fast.backends.cuda
import hhmpn_fast.backends.plain
import hhmpn_fast.kernels
from hhmpn_fast.backends import Backend
from hhmpn_fast.ops import Ops


class Under(Ops):
    """The ops on one backend; its whole phases (`f2f`, `tower`) too."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend.ops)
        self.backend = backend

    def __getattr__(self, phase: str) -> Callable[..., Any]:
        if phase.startswith("_") or phase not in self.backend.ops:
            raise AttributeError(f"backend '{self.backend.name}' has no '{phase}'")
        return self.backend.ops[phase].run


plain, cpu = Under(hhmpn_fast.backends.plain.BACKEND), Under(hhmpn_fast.backends.cpu.BACKEND)
kernels, cuda = Under(hhmpn_fast.kernels.BACKEND), Under(hhmpn_fast.backends.cuda.BACKEND)
