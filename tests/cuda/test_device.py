"""The CUDA library on a real GPU: `pytest -m gpu` where there is one. Every other test of csrc/cuda runs on a CPU."""

from dataclasses import fields, replace

import pytest
import torch

from hhmpn_fast.backends.cuda import launch
from hhmpn_fast.ops.dropout import Dropout
from tests.cuda.cases import DTYPES
from tests.cuda.test_attention import LENGTHS, RESULTS, table
from tests.cuda.test_attention import allowed as allowed_attention
from tests.cuda.test_attention import run as run_attention
from tests.cuda.test_tower import SHAPES, Case, tower, tower_allowed, tower_case, tower_run
from tests.cuda.test_update import NAMES, inputs
from tests.cuda.test_update import allowed as allowed_update
from tests.cuda.test_update import run as run_update
from tests.ops.bounds import check_all
from tests.ops.under import cuda, plain

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(launch.missing() is not None, reason=str(launch.missing()))]
SIZES = (64, 128, 256)


def moved(value: object, device: str = "cuda") -> object:
    """A tensor there; a dropout with its stream there; lists and dicts of them; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Dropout):
        return value._replace(rng=value.rng.to(device))
    if isinstance(value, list):
        return [moved(v, device) for v in value]
    if isinstance(value, dict):
        return {k: moved(v, device) for k, v in value.items()}
    return value


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention(dtype: str, d: int) -> None:
    generator = torch.Generator().manual_seed(d)
    offsets = table(torch.tensor(LENGTHS))
    rows, kind = int(offsets[-1]), DTYPES[dtype]
    q, x = ((torch.randn(rows, d, generator=generator) * s).to(kind) for s in (d**-0.5, 1.0))
    grad, dlse = (torch.randn(2, rows, *tail, generator=generator).to(kind) for tail in ((d,), ()))
    options = {"q_offsets": offsets, "x_offsets": offsets, "groups": 2}
    options["dropout"] = Dropout(0.25, torch.tensor([2**50 + 3, 4]), 512)
    there = [*moved([q, x, grad, dlse]), moved(options)]
    first = run_attention(cuda.attention, *there)
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, run_attention(cuda.attention, *there)))
    check_all(RESULTS, first, allowed_attention(q, x, grad, dlse, options))


@pytest.mark.parametrize("kind", ["labels", "features"])
@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_update(dtype: str, d: int, kind: str) -> None:
    ours, theirs = (
        (cuda.update_features, plain.update_features)
        if kind == "features"
        else (cuda.update_labels, plain.update_labels)
    )
    tensors, dropout = inputs(kind, 300, d, DTYPES[dtype], d), Dropout(0.25, torch.tensor([7, 3]), 256)
    found = run_update(ours, moved(tensors), moved(dropout))
    check_all(NAMES, found, allowed_update(theirs, tensors, dropout))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tower(dtype: str, d: int, shape: str) -> None:
    case = tower_case(replace(SHAPES[shape], d=d), DTYPES[dtype], d)
    there = Case(**{field.name: moved(getattr(case, field.name)) for field in fields(Case)})
    first = tower_run(tower, there, there.leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, tower_run(tower, there, there.leaves)))
    check_all(case.names, first, tower_allowed(case))
