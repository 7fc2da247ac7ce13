"""One op on one backend under pytest-benchmark: held against float64 first, useful FLOP and floor in `extra_info`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.core.workloads import NAMES, Workload, named
from hhmpn_fast import InputError, Ragged, backends

LIMIT = 3e-5
Call = tuple[Callable[[], Tensor], Sequence[Tensor]]

everywhere = [
    pytest.mark.parametrize("workload", NAMES),
    pytest.mark.parametrize("backend", ("cpu", "torch")),
    pytest.mark.parametrize("direction", ("forward", "forward and backward")),
]


def outcome(call: Call, direction: str) -> list[Tensor]:
    """The output, and the gradients of a weighted sum of it by every tensor."""
    function, tensors = call
    if direction == "forward":
        with torch.no_grad():
            return [function()]
    out = function()
    weights = rows(*out.shape, dtype=out.dtype, seed=7).detach()
    grads = torch.autograd.grad(out, tensors, weights, allow_unused=True)
    return [out.detach(), *(g for g in grads if g is not None)]


def race(
    benchmark: Any, op: str, backend: str, make: Callable[[torch.dtype], Call], flop: int, direction: str, rate: float
) -> None:
    """Times the call that `make` builds, in fp32; skips a backend that refuses the op, with its own sentence.

    flop: of the forward direction; both directions count three times as much.
    """
    with backends.use_backend("torch"):
        truth = outcome(make(torch.float64), direction)
    call = make(torch.float32)
    with backends.use_backend(backend):
        try:
            outputs = outcome(call, direction)
        except InputError as refusal:
            pytest.skip(str(refusal))
        for found, expected in zip(outputs, truth, strict=True):
            # A norm, not a maximum: rounding may flip a ReLU of a few among millions of elements.
            error = float((found - expected).norm() / expected.norm().clamp(min=1e-30))
            assert error < LIMIT, f"{op} on {backend} is off by {error:.1e}"
        del outputs, truth
        benchmark.pedantic(outcome, (call, direction), rounds=7, warmup_rounds=1)
    useful = flop * (1 if direction == "forward" else 3)
    median = benchmark.stats.stats.median
    benchmark.extra_info |= {
        "useful_flop": useful,
        "matrix_rate": rate,
        "of_matrix_rate": useful / median / rate,
        "times_floor": median * rate / useful,
    }


def batch_of(workload: str) -> tuple[Workload, Ragged]:
    """The workload's batch of 64."""
    chosen = named(workload)
    return chosen, chosen.batch()


def rows(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Seeded normal values that take gradients."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(dtype).requires_grad_()
