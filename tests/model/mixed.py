"""What the tests of mixed precision share: float32 parameters under autocast, held to float64 on any backend.

Parameters and features are numbers that the short dtype holds, so that float64 starts from the same ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hhmpn_fast import Ragged
from hhmpn_fast.backends import use_backend
from hhmpn_fast.model import HHMPN
from tests.model.cases import random_batch, random_model
from tests.ops.bounds import bounds, check_all

SIZES = {"m0": 3, "m1": 5}
SCALE = 2.0**10  # of a loss in float16: gradients of a small model would fall below its normal numbers
READINGS = [{"dropout": 0.3}, {"sharing": "tied", "without": ("m2l",), "dropout": 0.0}]


class Case:
    """A model with float32 parameters, a batch and targets that `low` holds."""

    def __init__(self, low: torch.dtype, **reading: object) -> None:
        changes = {"labels": ("a", "b", "c"), "modalities": SIZES, "steps": 2, "dim": 64, **reading}
        self.low = low
        self.model, generator = random_model(3, torch.float32, **changes)
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(p.to(low))
        self.batch = self._rounded(random_batch(generator, SIZES, 3, 6, torch.float32))
        self.targets = torch.rand(3, 3, generator=generator).round()
        self.names = ["loss", "logits", *(name for name, _ in self.model.named_parameters())]

    def _rounded(self, batch: Ragged) -> Ragged:
        return batch.to(self.low).to(torch.float32)

    def outcome(self, backend: str, device: str = "cpu") -> list[Tensor]:
        """Loss, logits and gradients of a training step under autocast; the loss is scaled for its backward pass."""
        model, batch, targets = self.model.to(device).train(), self.batch.to(device), self.targets.to(device)
        model.zero_grad()
        model.seed_dropout(2**40 + 7, 3)
        with use_backend(backend), torch.autocast(device, self.low):
            loss, logits = model.joint_loss(batch, targets)
        (SCALE * loss).backward()
        return [loss.detach(), logits, *self._gradients(model)]

    def exact(self) -> list[Tensor]:
        """The same in float64, in plain PyTorch."""
        model, batch, targets = self.model.to("cpu", torch.float64), self.batch.to(torch.float64), self.targets.double()
        model.zero_grad()
        model.seed_dropout(2**40 + 7, 3)
        with use_backend("torch"):
            loss, logits = model.joint_loss(batch, targets)
        (SCALE * loss).backward()
        return [loss.detach(), logits, *self._gradients(model)]

    def _gradients(self, model: HHMPN) -> list[Tensor]:
        return [torch.zeros_like(p) if p.grad is None else p.grad / SCALE for p in model.parameters()]

    def check(self, backend: str, device: str = "cpu") -> None:
        """Holds a step to float64; parameters' gradients are float32."""
        found = self.outcome(backend, device)
        assert {g.dtype for g in found[2:]} == {torch.float32} and found[0].dtype == torch.float32
        check_all(self.names, found, bounds(self.exact, self.low))


def scaled_training(backend: str, device: str = "cpu", **changes: object) -> None:
    """Float16 with a GradScaler: a scale too large skips a step and is lowered, the next step lowers the loss."""
    case = Case(torch.float16, dropout=0.0, **changes)
    model, batch, targets = case.model.to(device).train(), case.batch.to(device), case.targets.to(device)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**40, growth_interval=1000, backoff_factor=2.0**-30)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    before, losses = [p.detach().clone() for p in model.parameters()], []
    for _ in range(3):
        optimizer.zero_grad()
        with use_backend(backend), torch.autocast(device, torch.float16):
            loss, _ = model.joint_loss(batch, targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
        if len(losses) == 1:
            assert scaler.get_scale() == 2.0**10
            assert all(map(torch.equal, before, model.parameters())), "a step of infinite gradients was taken"
    assert losses[0] == losses[1] > losses[2], losses
