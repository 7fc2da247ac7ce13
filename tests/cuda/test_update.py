"""update's CUDA kernels and the weight gradients under the host harness against float64, three thread orders."""

import pytest
import torch

from hhmpn_fast import InputError
from hhmpn_fast.backends.cuda.update import Job, weight_gradients
from hhmpn_fast.ops.dropout import Dropout
from hhmpn_fast.weights import BlockWeights
from tests.cuda.cases import DTYPES, SWEPT, needs_harness, on_cpu
from tests.ops.bounds import bounds, check_all
from tests.ops.under import cuda, plain

pytestmark = needs_harness
NAMES = ("out", "state", "context", "value", "hidden", "b1", "output", "b2")


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
    weight = torch.arange(out.numel(), dtype=torch.float32).view(out.shape).sin().bfloat16().to(out)
    (out * weight).sum().backward()
    return [out.detach(), *(t.grad for t in tensors)]


def allowed(function, tensors, dropout):
    """Bounds of `run`'s results in the tensors' dtype."""
    wide = [t.double() for t in tensors]
    return bounds(lambda: run(function, wide, dropout), tensors[0].dtype)


@pytest.mark.parametrize(("rows", "order"), [(1, 1), (31, 2), (32, 0), (65, 0), (65, 1), (65, 2)])
@pytest.mark.parametrize("kind", ["labels", "labels_of_each", "features"])
@pytest.mark.parametrize("dtype", SWEPT)
def test_equals_float64(dtype: str, kind: str, rows: int, order: int) -> None:
    tensors = inputs(kind, rows, 64, DTYPES[dtype], rows + order)
    dropout = Dropout(0.25, torch.tensor([12345678901234567, 3]), 1792) if order else None
    name = "update_features" if kind == "features" else "update_labels"
    with on_cpu(order):
        found = run(getattr(cuda, name), tensors, dropout)
    check_all(NAMES, found, allowed(getattr(plain, name), tensors, dropout))


def test_float16() -> None:
    for kind in ("labels", "features"):
        test_equals_float64("fp16", kind, 65, 1)


@pytest.mark.parametrize("d", [128, 256])
@pytest.mark.parametrize("dtype", SWEPT)
def test_other_sizes(dtype: str, d: int) -> None:
    for kind, ours, theirs in (
        ("labels", cuda.update_labels, plain.update_labels),
        ("features", cuda.update_features, plain.update_features),
    ):
        tensors = inputs(kind, 2, d, DTYPES[dtype], d)
        with on_cpu(0):
            found = run(ours, tensors, None)
        check_all(NAMES, found, allowed(theirs, tensors, None))


def test_no_rows() -> None:
    tensors = inputs("features", 0, 64, torch.float32, 0)
    with on_cpu(0) as harness:
        _, *grads = run(cuda.update_features, tensors, None)
    assert harness.calls == [] and all(float(g.abs().sum()) == 0 for g in grads)


def test_nan_stays_in_its_rows() -> None:
    tensors = inputs("labels", 40, 64, torch.float32, 1)
    tensors[1][2, 33, 5] = float("nan")
    with on_cpu(0), torch.no_grad():
        out = cuda.update_labels(tensors[0], tensors[1], BlockWeights(None, *tensors[2:]))
    bad = torch.isnan(out)
    assert bad[2, 33].all() and int(bad.sum()) == 64


def test_weight_gradients_over_splits() -> None:
    generator = torch.Generator().manual_seed(0)
    jobs = [Job(*(torch.randn(rows, 64, generator=generator) for _ in range(2))) for rows in (1100, 33, 0)]
    with on_cpu(0):
        found = weight_gradients({"layers": jobs})["layers"]
    for weight, bias, (y, x) in zip(*found, jobs, strict=True):
        assert torch.allclose(weight.double(), y.double().T @ x.double(), atol=2e-4, rtol=1e-5)
        assert torch.allclose(bias.double(), y.double().sum(0), atol=2e-4, rtol=1e-5)


def test_refuses_mixed_dtypes() -> None:
    tensors = inputs("labels", 2, 64, torch.float32, 0)
    tensors[2] = tensors[2].bfloat16()
    with pytest.raises(InputError, match="value is torch.bfloat16, state is torch.float32; expected torch.float32"):
        cuda.update_labels(tensors[0], tensors[1], BlockWeights(None, *tensors[2:]))
