"""Mixed precision in the guarded interpreter: whole models, and ops to the bit. Run by test_triton_interpreter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from hhmpn_fast import ops
from tests.model.mixed import READINGS, Case, scaled_training
from tests.ops.under import kernels
from tests.triton.support import guard
from tests.triton.support.compare import leaves, offsets_of

guard.install()
HALVES = (torch.bfloat16, torch.float16)
TABLE, DROPOUT = offsets_of([3, 0, 17, 2]), ops.Dropout(0.3, torch.tensor([5, 1]), 256)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_training_step_is_within_roundings_of_float64(dtype: torch.dtype) -> None:
    Case(dtype, dim=16, steps=1, **READINGS[0]).check("triton")


def test_float16_trains_with_a_scaler() -> None:
    scaled_training("triton", dim=16, steps=1)


def attention(t: Sequence[Tensor]) -> list[Tensor]:
    return [kernels.attention(t[0], t[1][0], TABLE, TABLE, 2, dropout=DROPOUT)[0]]


def update_labels(t: Sequence[Tensor]) -> list[Tensor]:
    return [kernels.update_labels(t[0], t[1], ops.BlockWeights(None, t[2], *t[4:8]), DROPOUT)]


def update_features(t: Sequence[Tensor]) -> list[Tensor]:
    return [kernels.update_features(t[0], t[1], ops.BlockWeights(None, *t[2:4], *t[5:8]), DROPOUT)]


def readout(t: Sequence[Tensor]) -> list[Tensor]:
    u = t[1].view(2, 11, 2, -1)
    return list(kernels.readout(u, torch.ones(2, 11, dtype=torch.bool), *t[8:10]))


def inputs(d: int = 24) -> list[Tensor]:
    """Rows (22, d) and (2, 22, d), then the weights of an update, of labels' and features' kind, and of the readout."""
    shapes = ((22, d), (2, 22, d), (d, d), (2, d, d), (d, d), (d,), (d, d), (d,), (d,), (2, d))
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*shape, generator=generator) * (d**-0.5 if i > 1 else 1.0) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("run", [attention, update_labels, update_features, readout])
def test_bits_and_gradients_of_rounded_inputs(run: Callable, dtype: torch.dtype) -> None:
    """Kernels that round float32 weights as they load them do what they do on rounded ones, and keep the gradients."""
    wide = leaves(*inputs())
    low = leaves(*(t.to(dtype) for t in inputs()))
    with torch.autocast("cpu", dtype):
        found = run(wide)
    want = run(low)
    assert [t.dtype for t in found] == [dtype] * len(found)
    assert all(map(torch.equal, found, want))
    pulls = [torch.randn(t.shape, generator=torch.Generator().manual_seed(2)).to(dtype) for t in want]
    pairs = zip(*(torch.autograd.grad(o, t, pulls, allow_unused=True) for o, t in ((found, wide), (want, low))))
    unrounded = 0
    for got, expected in pairs:
        if expected is not None:
            assert got.dtype == torch.float32 and torch.equal(got.to(dtype), expected)
            unrounded += not torch.equal(got, expected.float())
    assert unrounded == (0 if run is attention else 2 if run is readout else 5)
