"""One training step that never asks the device anything: forward, backward, clipping, AdamW, the average.

    rate     = rates[count]                      the learning rate of this step
    log      [count] = loss, |gradient|          read by the trainer every so many steps
    stopped  |= loss or |gradient| is not finite
    weights  stay as they are once stopped       the fused AdamW skips its update by the flag
    count   += 1

Tables and counter lie on the device, so that no Python value changes from call to call: a call can be captured and
replayed as a graph.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

from hhmpn_fast.config import TrainingConfig
from hhmpn_fast.model import HHMPN
from hhmpn_fast.ragged import Ragged


class Seen(NamedTuple):
    """What a step left in the log: its loss, and the gradient's norm before clipping."""

    loss: float
    norm: float

    @property
    def finite(self) -> bool:
        """Whether both are; the first step where they are not is the last that was tried."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


class Step:
    """`step(features, targets)` on the model's device; the model is in training mode.

    Args:
        model: what is trained; it stays where it lies.
        training: the optimisation.
        steps: how many the whole run takes, the length of its tables.
        label_weights: weights of the positive labels (L,) on the model's device, or None.

    Attributes:
        optimizer: AdamW over the model's parameters.
        average: the moving average of the weights, or None without one.
    """

    def __init__(self, model: HHMPN, training: TrainingConfig, steps: int, label_weights: Tensor | None = None) -> None:
        self.model, self.training, self.label_weights = model, training, label_weights
        self.device = model.label_embedding.device
        self.average = copy.deepcopy(model).requires_grad_(False) if training.average else None
        self._parameters = list(model.parameters())
        # A rate in double keeps the bits of a Python number; the kernels of other devices read a float32.
        wide = torch.float64 if self.device.type == "cpu" else torch.float32
        rates = [learning_rate(training, k, steps) for k in range(steps)]
        self._rates = torch.tensor(rates, dtype=wide, device=self.device)
        self._rate = torch.zeros(1, dtype=wide, device=self.device)
        weights = [1 - average_decay(training, k) for k in range(steps)] if training.average else []
        own = model.label_embedding.dtype
        self._average_weights = torch.tensor(weights, dtype=own, device=self.device)
        self._log = torch.zeros(steps, len(Seen._fields), dtype=own, device=self.device)
        self._count = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._stopped = torch.zeros((), device=self.device)
        self.optimizer = torch.optim.AdamW(
            self._parameters,
            lr=self._rate,
            betas=training.betas,
            eps=training.eps,
            weight_decay=training.weight_decay,
            fused=True,
        )
        self.optimizer.found_inf = self._stopped
        self.start(0)

    def start(self, step: int) -> None:
        """The next call is step `step`, counted from 0: counter and dropout's stream are set, on the device."""
        self._count.fill_(step)
        self.model.seed_dropout(self.training.seed, step)

    def __call__(self, features: Ragged, targets: Tensor) -> Tensor:
        """One step over a batch on the device; returns its loss (), there."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.training.bf16):
            loss, _ = self.model.joint_loss(features, targets, self.label_weights)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self.training.clip or math.inf)
        self._update(loss.detach(), norm)
        return loss.detach()

    @torch.no_grad()
    def _update(self, loss: Tensor, norm: Tensor) -> None:
        seen = torch.stack((loss, norm))
        self._stopped.masked_fill_((seen - seen).any(), 1)  # x - x is 0, or NaN where x is not finite
        self._log.index_copy_(0, self._count, seen[None])
        torch.index_select(self._rates, 0, self._count, out=self._rate)
        if self.device.type == "cuda":
            # The fused update may always be captured; with the flag set it would warn outside of a capture.
            self.optimizer.param_groups[0]["capturable"] = torch.cuda.is_current_stream_capturing()
        self.optimizer.step()
        if self.average is not None:
            weight = self._average_weights.index_select(0, self._count) * (1 - self._stopped)
            held = list(self.average.parameters())
            torch._foreach_lerp_(held, self._parameters, [weight] * len(held))
        self._count.add_(1)

    def seen(self, first: int, last: int) -> list[Seen]:
        """The log of steps `first` to `last - 1`, counted from 0: waits for the device."""
        return [Seen(*row) for row in self._log[first:last].tolist()]


def learning_rate(training: TrainingConfig, step: int, steps: int) -> float:
    """The rate of one of a run's `steps` steps, counted from 0: a linear warm-up, then as `lr_decay` says."""
    warmup = training.warmup_steps
    factor = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if training.lr_decay == "cosine":
        factor *= 0.5 * (1 + math.cos(math.pi * step / steps))
    return training.lr * factor


def average_decay(training: TrainingConfig, step: int) -> float:
    """The average's decay at a step; the first ones count fully, so that it does not remember the initial weights."""
    return min(training.average, (1 + step) / (10 + step))
