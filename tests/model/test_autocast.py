"""Mixed precision on cpu, torch and, under the host harness, cuda; on a GPU on cuda and triton.

Triton's interpreter has a file of cases of its own: tests/triton/support/autocast_cases.py.
"""

from __future__ import annotations

import contextlib

import pytest
import torch

from hhmpn_fast import InputError, backends
from hhmpn_fast.backends import use_backend
from hhmpn_fast.backends.cpu.library import load_error
from tests.cuda.cases import needs_harness, on_cpu
from tests.model.mixed import READINGS, Case, scaled_training

needs_cpu = pytest.mark.skipif(load_error() is not None, reason=str(load_error()))
HELD = [
    pytest.param("cpu", torch.bfloat16, marks=needs_cpu),
    ("torch", torch.bfloat16),
    ("torch", torch.float16),
    pytest.param("cuda", torch.bfloat16, marks=needs_harness),
    pytest.param("cuda", torch.float16, marks=needs_harness),
]


def running(backend: str) -> contextlib.AbstractContextManager:
    """Where the backend's kernels run."""
    return on_cpu(0) if backend == "cuda" else contextlib.nullcontext()


@pytest.mark.parametrize("reading", READINGS, ids=str)
@pytest.mark.parametrize(("backend", "dtype"), HELD, ids=str)
def test_a_training_step_is_within_roundings_of_float64(backend: str, dtype: torch.dtype, reading: dict) -> None:
    with running(backend):
        Case(dtype, **reading).check(backend)


@pytest.mark.parametrize("backend", ["torch", pytest.param("cuda", marks=needs_harness)])
def test_float16_trains_with_a_scaler(backend: str) -> None:
    with running(backend):
        scaled_training(backend, steps=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", ["triton", "cuda", "torch"])
def test_on_a_gpu(backend: str, dtype: torch.dtype) -> None:
    call = backends.Call("cuda", dtype, 64)
    reason = None if backend == "torch" else backends.why_not(backend, "attention", call)
    if reason is not None:
        pytest.skip(reason)
    for reading in READINGS:
        Case(dtype, **reading).check(backend, "cuda")
    if dtype == torch.float16:
        scaled_training(backend, "cuda", steps=1)


@needs_cpu
def test_auto_asks_for_the_dtype_of_autocast() -> None:
    case = Case(torch.float16, dropout=0.0)
    with torch.autocast("cpu", torch.float16):
        assert case.model.plan()["tower"].backend == "single ops"
        assert backends.choose("attention", backends.Call.of(torch.zeros(2, 8))) is plain("attention")
        with (
            use_backend("cpu"),
            pytest.raises(InputError, match=r"the dtype is torch\.float16, the kernels hold float32"),
        ):
            case.model(case.batch)
    assert torch.equal(case.outcome("auto")[1], case.outcome("torch")[1])


def plain(op: str) -> object:
    """The op of the torch backend."""
    return backends.record("torch").ops[op].run


@needs_cpu
def test_float64_is_left_alone() -> None:
    case = Case(torch.bfloat16, dropout=0.0)
    model, batch = case.model.double(), case.batch.to(torch.float64)
    assert model.compute_dtype() == torch.float64
    with use_backend("cpu"):
        expected = model(batch)
        with torch.autocast("cpu", torch.bfloat16):
            assert model.compute_dtype() == torch.float64
            assert backends.Call.of(torch.zeros(2, 8, dtype=torch.float64)).dtype == torch.float64
            assert torch.equal(model(batch), expected)
