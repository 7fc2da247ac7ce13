"""This library on one of its backends."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.core.workloads import DIM
from bench.race.peers.base import Case, Peer, too_large
from hhmpn_fast import InputError, Ragged, backends
from hhmpn_fast.config import HHMPNConfig
from hhmpn_fast.frozen import Frozen
from hhmpn_fast.model import HHMPN


class Ours(Peer):
    """HHMPN under `use_backend`; inference, in which weights stay what they are, runs `model.freeze()`."""

    backend = ""
    frozen: Frozen | None = None

    @classmethod
    def why_not(cls, case: Case, batch: Ragged) -> str | None:
        """The reason with which the backend itself refuses a batch of one node, forward or forward and backward."""
        if cls.backend == "torch" and (reason := too_large(int((batch.lengths.sum(0) ** 2).sum()), case)):
            return reason
        model = HHMPN(HHMPNConfig({name: 1 for name in batch.names}, ("label",), dim=DIM, steps=1)).to(case.device)
        one = torch.ones(len(batch.names), 1, dtype=torch.int64)
        smallest = Ragged(batch.names, tuple(torch.zeros(1, 1) for _ in batch.names), one).to(case.device)
        training = case.mode == "train"
        try:
            with backends.use_backend(cls.backend), torch.set_grad_enabled(training), case.autocast():
                logits = model.train(training)(smallest)
        except InputError as error:
            return str(error)
        if training:
            logits.sum().backward()
        return None

    def forward(self, data: Ragged) -> Tensor:
        """Logits (T, B, L)."""
        with backends.use_backend(self.backend):
            if self.training or torch.is_grad_enabled():
                self.frozen = None
                return self.model(data)
            if self.frozen is None:
                low = torch.is_autocast_enabled(data.device.type)
                self.frozen = self.model.freeze(torch.bfloat16 if low else None)
            return self.frozen(data)

    def joint_loss(self, data: Ragged, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and detached logits, in one op where the backend has it."""
        self.frozen = None
        with backends.use_backend(self.backend):
            return self.model.joint_loss(data, targets)


def ours(backend: str) -> type[Ours]:
    """The contestant of one backend."""
    return type(f"Ours_{backend}", (Ours,), {"backend": backend, "name": f"ours ({backend})"})
