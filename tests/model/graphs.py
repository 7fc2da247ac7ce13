"""What the tests of captured steps share: steps that count on the device, a stand-in for CUDA graphs, poison."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hhmpn_fast import HHMPN, Ragged, use_backend
from hhmpn_fast.bucket import Bucket
from hhmpn_fast.buffers import Buffers
from hhmpn_fast.graph import Captured
from tests.model.cases import random_batch
from tests.ops.behind import nothing_by_luck


class Reruns:
    """Stands in for CUDA graphs: a capture runs nothing, a replay runs the same call again over the same buffers."""

    def __init__(self) -> None:
        self.warm_ups, self.captures = 0, 0

    def warm_up(self, call: Callable[[], Any]) -> Any:
        self.warm_ups += 1
        return call()

    def capture(self, call: Callable[[], Any]) -> Captured:
        self.captures += 1
        place = torch.zeros(())

        def replay() -> None:
            place.data = call()  # a graph's result keeps its place

        return Captured(replay, place, 1000)


def poisoned(buffers: Buffers, batch: Ragged, value: float) -> None:
    """Overwrites all that lies behind the batch's own rows."""
    for buffer, v in zip(buffers.features.values, batch.values):
        buffer[v.shape[0] :] = value
    if buffers.labels is not None:
        buffers.labels[batch.batch_size :] = value


def filled(batch: Ragged, labels: torch.Tensor, value: float, round_samples: bool) -> Buffers:
    """The batch in buffers on the CPU with `value` behind everything."""
    bucket = Bucket.of(batch, round_samples=round_samples)
    buffers = Buffers(bucket, batch, labels, torch.device("cpu"))
    poisoned(buffers, batch, value)
    buffers.fill(batch, labels)
    return buffers


def check_buffered(model: HHMPN, generator: torch.Generator, backend: str, bound: float, samples: int = 3) -> None:
    """Loss and gradients over buffers on a backend: with NaN behind the batch those with zeros, bit for bit; the
    batch's own within `bound` of each one's largest entry."""
    batch, labels = next(batches(model, generator, 1, (samples,), 9))
    round_samples = model.config.dropout == 0
    found = []
    for value in (None, 0.0, float("nan")):
        model.zero_grad()
        model.seed_dropout(5)
        buffers = None if value is None else filled(batch, labels, value, round_samples)
        data = (batch, labels) if buffers is None else (buffers.features, buffers.labels)
        with use_backend(backend), nothing_by_luck():
            loss, _ = model.joint_loss(*data)
            loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    plain, zeros, nans = found
    assert all(torch.equal(a, b) for a, b in zip(zeros, nans))
    for a, b in zip(nans, plain):
        assert float((a - b).abs().max()) <= bound * float(b.abs().max()) + 1e-7


def stepper(model: HHMPN) -> tuple[Callable[..., torch.Tensor], torch.optim.Optimizer]:
    """A training step with clipping and Adam, and its optimizer: nothing in it changes but tensors."""
    model.train().seed_dropout(3)
    rate, captured = torch.tensor(1e-3, device=model.rng.device), model.rng.is_cuda
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True, capturable=captured)

    def step(features, labels) -> torch.Tensor:
        optimizer.zero_grad()
        loss, _ = model.joint_loss(features, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return step, optimizer


def batches(model: HHMPN, generator: torch.Generator, count: int, sizes: tuple[int, ...], longest: int):
    """Changing batches, the numbers of samples drawn from `sizes`, with labels."""
    dtype = model.label_embedding.dtype
    for _ in range(count):
        samples = sizes[int(torch.randint(len(sizes), (1,), generator=generator))]
        batch = random_batch(generator, model.config.modalities, samples, longest, dtype)
        labels = torch.rand(samples, len(model.config.labels), generator=generator, dtype=dtype)
        yield batch, labels.round()


def state(model: HHMPN, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Weights, the optimizer's tensors and dropout's counter."""
    held = [t for s in optimizer.state_dict()["state"].values() for t in s.values()]
    return [*(p.detach() for p in model.parameters()), *held, model.rng]
