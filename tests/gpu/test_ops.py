"""The CUDA library's ops as PyTorch sees them: opcheck and torch.compile, on a GPU and under the host harness."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from hhmpn_fast.backends.cuda import launch
from hhmpn_fast.ops.attention import ATTENTION
from hhmpn_fast.ops.dropout import Dropout
from hhmpn_fast.ops.op import Op
from hhmpn_fast.ops.tower import TOWER
from hhmpn_fast.ops.update import UPDATE
from tests.cuda.cases import needs_harness, on_cpu
from tests.cuda.test_device import moved
from tests.cuda.test_tower import Shape, tower_case
from tests.gpu.places import Place, places
from tests.ops.registration import check
from tests.ops.under import cuda, kernels

HERE = Place("cpu", "cuda")
PLACES = [pytest.param(HERE, id="harness", marks=needs_harness), *places(gpu=("cuda", "triton"))]
UNDER = {"cuda": cuda, "triton": kernels}


def running(place: Place) -> contextlib.AbstractContextManager:
    """The harness in the place of a GPU's library."""
    return on_cpu(0) if place == HERE else contextlib.nullcontext()


def rows(place: Place, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator).to(place.device).requires_grad_() for s in shapes]


def attention_inputs(place: Place) -> dict[str, Any]:
    q, x = rows(place, (5, 64), (5, 64))
    table = torch.tensor([0, 3, 5], dtype=torch.int32, device=place.device)
    options = {"groups": 2, "mask": None, "exclude_self": False, "p": 0.3, "site": 256}
    rng = torch.tensor([5, 1], device=place.device)
    return {"q": q, "x": x, "q_offsets": table, "x_offsets": table, "rng": rng, **options}


def update_inputs(place: Place) -> dict[str, Any]:
    d = 64
    shapes = {"state": (5, d), "context": (2, 5, d), "value": (d, d), "hidden": (2, d, d), "b1": (d,), "output": (d, d)}
    tensors = dict(zip(shapes, rows(place, *shapes.values())))
    (b2,) = rows(place, (d,))
    return {**tensors, "b2": b2, "p": 0.3, "rng": torch.tensor([5, 1], device=place.device), "site": 256}


def tower_inputs(place: Place) -> dict[str, Any]:
    case = tower_case(Shape(2, 2, 3, 1, 1, dropout=0.3, masked=True, longest=4, first=4), torch.float32)
    return moved(case.call([t.requires_grad_() for t in case.leaves]).inputs(), place.device)


INPUTS = {ATTENTION: attention_inputs, UPDATE: update_inputs, TOWER: tower_inputs}


@pytest.mark.parametrize("op", INPUTS, ids=lambda op: op.name)
@pytest.mark.parametrize("place", PLACES)
def test_opcheck(place: Place, op: Op) -> None:
    if place.backend not in op.registered:
        pytest.skip(f"{place.backend} composes {op.name}")
    with running(place):
        check(op, place.backend, **INPUTS[op](place))


@pytest.mark.parametrize("place", PLACES)
def test_compiled_as_one_graph(place: Place) -> None:
    """On a GPU by inductor, under the harness up to what inductor would be given."""
    table = torch.tensor([0, 7, 12], dtype=torch.int32, device=place.device)
    q, x = rows(place, (12, 64), (12, 64))
    dropout = Dropout(0.3, torch.tensor([5, 1], device=place.device), 256)

    def loss(q: Tensor, x: Tensor) -> Tensor:
        context, _ = UNDER[place.backend].attention(q * 0.1, x, table, table, dropout=dropout)
        return torch.nn.functional.silu(context).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager" if place == HERE else "inductor")
    with running(place):
        expected = torch.autograd.grad(loss(q, x), (q, x))
        found = torch.autograd.grad(compiled(q, x), (q, x))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert all(float(g.abs().max()) > 1e-2 for g in expected)


@needs_harness
def test_the_harness_is_gone_behind_its_block() -> None:
    with on_cpu(0):
        assert launch.replaced()
    assert not launch.replaced()
