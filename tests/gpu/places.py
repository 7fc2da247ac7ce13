"""Where these tests run: on a GPU with every backend that is able there, and on the processor with the same code."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from hhmpn_fast import HHMPN, Ragged
from hhmpn_fast.backends import Call, use_backend, why_not
from tests.model.cases import random_batch, random_model

SIZES = {"m0": 3, "m1": 5}
LABELS = ("a", "b", "c")


class Place(NamedTuple):
    """A device and the backend that computes there."""

    device: str
    backend: str

    def missing(self) -> str | None:
        """What this machine lacks for it, or None."""
        if self.device == "cuda" and not torch.cuda.is_available():
            return "this machine has no GPU"
        return why_not(self.backend, "attention", Call(self.device, torch.float32, 64))


def places(*here: str, gpu: tuple[str, ...] = ("cuda", "triton", "torch")) -> list[Any]:
    """These backends on the processor, and those on a GPU, as parameters."""
    found = []
    for place in [*(Place("cpu", name) for name in here), *(Place("cuda", name) for name in gpu)]:
        reason = place.missing()
        marks = [pytest.mark.skipif(reason is not None, reason=str(reason))]
        if place.device == "cuda":  # Triton's compiler uses what Python 3.12 deprecates
            marks += [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
        found.append(pytest.param(place, id=f"{place.backend} on {place.device}", marks=marks))
    return found


def a_model(seed: int = 3, **changes: object) -> tuple[HHMPN, torch.Generator]:
    """A small model of a width that every backend holds, on the processor."""
    fields = {"modalities": SIZES, "labels": LABELS, "dim": 64, "steps": 2, "dropout": 0.1, **changes}
    return random_model(seed, torch.float32, **fields)


def a_batch(generator: torch.Generator, samples: int = 6, longest: int = 40) -> Ragged:
    """Ragged samples, on the processor."""
    return random_batch(generator, SIZES, samples, longest, torch.float32)


def step(model: HHMPN, batch: Ragged, backend: str) -> list[torch.Tensor]:
    """Logits and all gradients of one training pass; the dropout stream starts over."""
    model.seed_dropout(7)
    with use_backend(backend):
        logits = model(batch)
    grads = torch.autograd.grad(logits.square().sum(), list(model.parameters()))
    return [logits.detach(), *grads]


def digest(place: Place) -> list[str]:
    """What a training pass computes there, in short: a word a result that changes with its bits."""
    model, generator = a_model()
    batch = a_batch(generator).to(place.device)
    found = step(model.to(place.device), batch, place.backend)
    return [hashlib.sha256(t.cpu().numpy().tobytes()).hexdigest()[:16] for t in found]


def captured(call: Callable[[], torch.Tensor], device: str) -> tuple[Callable[[], None], torch.Tensor]:
    """What replays a call from a CUDA graph, and its result, which keeps its place; on the processor it runs again."""
    if device == "cpu":
        result = call()
        return lambda: result.copy_(call()), result
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()  # compiles, and takes what cuBLAS keeps a stream
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph.replay, result


def on_stream(device: str) -> contextlib.AbstractContextManager:
    """A stream of its own, which begins after what was asked for so far."""
    if device == "cpu":
        return contextlib.nullcontext()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    return torch.cuda.stream(side)


def finish(device: str) -> None:
    """Waits for all streams."""
    if device != "cpu":
        torch.cuda.synchronize()
