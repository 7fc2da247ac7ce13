"""update's CUDA kernels and the weight gradients under the host harness against float64, three thread orders."""

import pytest
import torch
from cuda_cases import DTYPES, assert_close, needs_harness, on_cpu

from hhmpn_fast import InputError
from hhmpn_fast.ops import update as plain
from hhmpn_fast.ops.cuda_update import update_features, update_labels, weight_gradients
from hhmpn_fast.ops.dropout import Dropout
from hhmpn_fast.weights import BlockWeights

pytestmark = needs_harness
NAMES = ("u", "context", "wv", "wr", "b1", "wb", "b2")


def inputs(kind: str, rows: int, d: int, dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    modalities = 3
    u = normal(modalities, rows, d) if kind == "labels_of_each" else normal(rows, d)
    wr = normal(modalities, d, d) if kind == "features" else normal(d, d)
    w = (normal(d, d) * d**-0.5, wr * d**-0.5, normal(d), normal(d, d) * d**-0.5, normal(d))
    return [t.to(dtype) for t in (u, normal(modalities, rows, d), *w)]


def run(function, tensors, dropout):
    tensors = [t.clone().requires_grad_() for t in tensors]
    out = function(tensors[0], tensors[1], BlockWeights(None, *tensors[2:]), dropout)
    weight = torch.arange(out.numel(), dtype=out.dtype).view(out.shape).sin()
    (out * weight).sum().backward()
    return out.detach(), [t.grad for t in tensors]


@pytest.mark.parametrize(("rows", "order"), [(1, 1), (31, 2), (32, 0), (65, 0), (65, 1), (65, 2)])
@pytest.mark.parametrize("kind", ["labels", "labels_of_each", "features"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_float64(dtype: str, kind: str, rows: int, order: int) -> None:
    tensors = inputs(kind, rows, 64, DTYPES[dtype], rows + order)
    dropout = Dropout(0.25, torch.tensor([12345678901234567, 3]), 1792) if order else None
    ours, theirs = (
        (update_features, plain.update_features) if kind == "features" else (update_labels, plain.update_labels)
    )
    with on_cpu(order):
        out, grads = run(ours, tensors, dropout)
    eager, eager_grads = run(theirs, tensors, dropout)
    exact, exact_grads = run(theirs, [t.double() for t in tensors], dropout)
    assert_close("out", out, eager, exact)
    for name, f, e, t in zip(NAMES, grads, eager_grads, exact_grads):
        assert_close(name, f, e, t, 4.0)


@pytest.mark.parametrize("d", [128, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_other_sizes(dtype: str, d: int) -> None:
    for kind, ours, theirs in (
        ("labels", update_labels, plain.update_labels),
        ("features", update_features, plain.update_features),
    ):
        tensors = inputs(kind, 2, d, DTYPES[dtype], d)
        with on_cpu(0):
            out, grads = run(ours, tensors, None)
        eager, eager_grads = run(theirs, tensors, None)
        exact, exact_grads = run(theirs, [t.double() for t in tensors], None)
        assert_close("out", out, eager, exact)
        for name, f, e, t in zip(NAMES, grads, eager_grads, exact_grads):
            assert_close(name, f, e, t, 4.0)


def test_no_rows() -> None:
    tensors = inputs("features", 0, 64, torch.float32, 0)
    with on_cpu(0) as harness:
        _, grads = run(update_features, tensors, None)
    assert harness.calls == [] and all(float(g.abs().sum()) == 0 for g in grads)


def test_nan_stays_in_its_rows() -> None:
    tensors = inputs("labels", 40, 64, torch.float32, 1)
    tensors[1][2, 33, 5] = float("nan")
    with on_cpu(0), torch.no_grad():
        out = update_labels(tensors[0], tensors[1], BlockWeights(None, *tensors[2:]))
    bad = torch.isnan(out)
    assert bad[2, 33].all() and int(bad.sum()) == 64


def test_weight_gradients_over_splits() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [tuple(torch.randn(rows, 64, generator=generator) for _ in range(2)) for rows in (1100, 33, 0)]
    with on_cpu(0):
        dw, db = weight_gradients(pairs)
    for j, (y, x) in enumerate(pairs):
        assert torch.allclose(dw[j].double(), y.double().T @ x.double(), atol=2e-4, rtol=1e-5)
        assert torch.allclose(db[j].double(), y.double().sum(0), atol=2e-4, rtol=1e-5)


def test_refuses_mixed_dtypes() -> None:
    tensors = inputs("labels", 2, 64, torch.float32, 0)
    tensors[2] = tensors[2].bfloat16()
    with pytest.raises(InputError, match="one dtype"):
        update_labels(tensors[0], tensors[1], BlockWeights(None, *tensors[2:]))
