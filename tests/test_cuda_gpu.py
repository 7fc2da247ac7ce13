"""The CUDA library on a real GPU: `pytest -m gpu` where there is one. Every other test of csrc/cuda runs on a CPU."""

from dataclasses import replace

import pytest
import torch
from cuda_cases import DTYPES, assert_close
from test_cuda_attention import LENGTHS, table
from test_cuda_attention import run as run_attention
from test_cuda_tower import SHAPES, Case, tower, tower_case, tower_run
from test_cuda_tower import plain as plain_tower
from test_cuda_update import NAMES, inputs
from test_cuda_update import run as run_update

from hhmpn_fast.backends.cuda import launch
from hhmpn_fast.backends.cuda.attention import attention
from hhmpn_fast.backends.cuda.update import update_features, update_labels
from hhmpn_fast.ops import update as plain_update
from hhmpn_fast.ops.attention import attention as plain_attention
from hhmpn_fast.ops.dropout import Dropout

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(launch.missing() is not None, reason=str(launch.missing()))]
SIZES = (64, 128, 256)


def on_gpu(options: dict) -> dict:
    return {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in options.items()}


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention(dtype: str, d: int) -> None:
    generator = torch.Generator().manual_seed(d)
    offsets = table(torch.tensor(LENGTHS))
    rows = int(offsets[-1])
    q, x = ((torch.randn(rows, d, generator=generator) * s).to(DTYPES[dtype]) for s in (d**-0.5, 1.0))
    grad, dlse = torch.randn(2, rows, d, generator=generator), torch.randn(2, rows, generator=generator)
    options = {"q_offsets": offsets, "x_offsets": offsets, "groups": 2}
    options["dropout"] = Dropout(0.25, torch.tensor([2**50 + 3, 4]), 512)
    first = run_attention(attention, *(t.cuda() for t in (q, x, grad, dlse)), on_gpu(options))
    for _ in range(20):
        again = run_attention(attention, *(t.cuda() for t in (q, x, grad, dlse)), on_gpu(options))
        assert all(torch.equal(a, b) for a, b in zip(first, again))
    eager = run_attention(plain_attention, q, x, grad, dlse, options)
    exact = run_attention(plain_attention, q.double(), x.double(), grad.double(), dlse.double(), options)
    for name, f, e, t in zip(("context", "lse", "dq", "dx"), first, eager, exact):
        keep = torch.isfinite(t)
        assert_close(name, f.cpu()[keep], e[keep], t[keep])


@pytest.mark.parametrize("kind", ["labels", "features"])
@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_update(dtype: str, d: int, kind: str) -> None:
    ours, theirs = (
        (update_features, plain_update.update_features)
        if kind == "features"
        else (update_labels, plain_update.update_labels)
    )
    tensors, dropout = inputs(kind, 300, d, DTYPES[dtype], d), Dropout(0.25, torch.tensor([7, 3]), 256)
    out, grads = run_update(ours, [t.cuda() for t in tensors], dropout)
    eager, eager_grads = run_update(theirs, tensors, dropout)
    exact, exact_grads = run_update(theirs, [t.double() for t in tensors], dropout)
    assert_close("out", out.cpu(), eager, exact)
    for name, f, e, t in zip(NAMES, grads, eager_grads, exact_grads):
        assert_close(name, f.cpu(), e, t, 4.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tower(dtype: str, d: int, shape: str) -> None:
    case = tower_case(replace(SHAPES[shape], d=d), DTYPES[dtype], d)
    there = Case(
        [t.cuda() for t in case.leaves],
        case.offsets.cuda(),
        case.present.cuda(),
        case.steps,
        None if case.mask is None else case.mask.cuda(),
        case.dropout,
    )
    first = tower_run(tower, there, there.leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, tower_run(tower, there, there.leaves)))
    eager = tower_run(plain_tower, case, case.leaves)
    exact = tower_run(plain_tower, case, [t.double() for t in case.leaves])
    for name, f, e, t in zip(case.names, first, eager, exact):
        assert_close(name, f.cpu(), e, t, 4.0)
