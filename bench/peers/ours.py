"""This library on one of its backends."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.peers.base import Case, Peer, too_large
from hhmpn_fast import Ragged, backends
from hhmpn_fast.frozen import Frozen


class Ours(Peer):
    """HHMPN under `use_backend`; inference, in which weights stay what they are, runs `model.freeze()`."""

    backend = ""
    frozen: Frozen | None = None
    OPS = ("embed", "absorb", "attention", "update_labels", "update_features", "readout")

    @classmethod
    def why_not(cls, case: Case, batch: Ragged) -> str | None:
        """The backend's own reason: every op must run, in the compute dtype, as single op or inside a phase."""
        dtype = torch.bfloat16 if case.dtype == "bf16" else torch.float32
        call = backends.Call("cpu", dtype, 256)
        if isinstance(reason := backends.record(cls.backend), str):
            return reason
        reasons = {op: backends.why_not(cls.backend, op, call) for op in (*cls.OPS, "f2f", "tower")}
        if reasons["f2f"] is None:
            reasons["update_features"] = None
        if reasons["tower"] is None:
            reasons["update_labels"] = reasons["readout"] = None
        if reasons["f2f"] is None and reasons["tower"] is None:
            reasons["attention"] = None
        if cls.backend == "torch" and (reason := too_large(int((batch.lengths.sum(0) ** 2).sum()), case)):
            return reason
        return next((f"{op}: {reasons[op]}" for op in cls.OPS if reasons[op]), None)

    def forward(self, data: Ragged) -> Tensor:
        """Logits (T, B, L)."""
        with backends.use_backend(self.backend):
            if self.training or torch.is_grad_enabled():
                self.frozen = None
                return self.model(data)
            if self.frozen is None:
                self.frozen = self.model.freeze(torch.bfloat16 if torch.is_autocast_enabled("cpu") else None)
            return self.frozen(data)

    def joint_loss(self, data: Ragged, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and detached logits, in one op where the backend has it."""
        self.frozen = None
        with backends.use_backend(self.backend):
            return self.model.joint_loss(data, targets)


def ours(backend: str) -> type[Ours]:
    """The contestant of one backend."""
    return type(f"Ours_{backend}", (Ours,), {"backend": backend, "name": f"ours ({backend})"})
