"""Each backend's ops under their public signatures, whatever backend is chosen: `cpu.attention(q, x, ...)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hhmpn_fast.backends import Backend, record
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


cuda, kernels, cpu, plain = (Under(record(name)) for name in ("cuda", "triton", "cpu", "torch"))
