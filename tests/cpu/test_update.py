"""The update of labels and features against plain float64 PyTorch: values, gradients, dropout, registration."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hhmpn_fast.backends.cpu.library import load_error
from hhmpn_fast.ops.dropout import Dropout
from hhmpn_fast.ops.update import UPDATE
from hhmpn_fast.weights import BlockWeights
from tests.ops.bounds import bounds, check_all
from tests.ops.registration import check
from tests.ops.under import cpu, plain

pytestmark = pytest.mark.skipif(load_error() is not None, reason=str(load_error()))
OPS = {"labels": ("update_labels", 0), "shared labels": ("update_labels", 1), "features": ("update_features", 2)}


def case(seed, kind, modalities, rows, d, h):
    g = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64) / shape[-1] ** 0.5

    state = random(modalities, rows, d) if kind == "labels" else random(rows, d)
    wr = random(modalities, h, d) if kind == "features" else random(h, d)
    return [state, random(modalities, rows, d), random(d, d), wr, random(h), random(d, h), random(d)]


def run(backend, kind, tensors, dropout=None, held=torch.float64):
    """The output and every gradient; the upstream gradient is one that `held` holds."""
    out = getattr(backend, OPS[kind][0])(tensors[0], tensors[1], BlockWeights(None, *tensors[2:]), dropout)
    g = torch.Generator().manual_seed(9)
    grad = torch.randn(out.shape, generator=g, dtype=torch.float64).to(held).to(out.dtype)
    return out, *torch.autograd.grad(out, tensors, grad)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(OPS)),
    st.integers(1, 4),
    st.sampled_from([0, 1, 11, 12, 13, 95, 96, 97, 200]),
    st.sampled_from([1, 3, 16, 20, 33]),
    st.sampled_from([1, 16, 21]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_value_and_gradients_in_float64(kind, modalities, rows, d, h, drop, seed):
    tensors = [t.requires_grad_() for t in case(seed, kind, modalities, rows, d, h)]
    dropout = Dropout(0.3, torch.tensor([seed, 3]), 256) if drop else None
    got, want = run(cpu, kind, tensors, dropout), run(plain, kind, tensors, dropout)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", list(OPS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_are_roundings(kind, dtype):
    check_roundings(kind, dtype, 256, 1)


def check_roundings(kind, dtype, d, seed):
    low = [t.to(dtype) for t in case(seed, kind, 3, 150, d, d)]

    def each(backend, wide):
        return run(backend, kind, [t.to(wide, copy=True).requires_grad_() for t in low], held=dtype)

    allowed = bounds(lambda: each(plain, torch.float64), dtype)
    check_all(["out", *UPDATE.inputs[:7]], each(cpu, dtype), allowed)


@pytest.mark.parametrize("kind", list(OPS))
def test_gradcheck_opcheck_and_second_derivative(kind):
    tensors = [t.requires_grad_() for t in case(2, kind, 2, 3, 4, 3)]
    run_op = getattr(cpu, OPS[kind][0])
    torch.autograd.gradcheck(lambda *t: run_op(t[0], t[1], BlockWeights(None, *t[2:])), tensors)
    rng = torch.tensor([1, 2])
    check(UPDATE, **dict(zip(UPDATE.inputs, tensors)), p=0.2, rng=rng, site=4)
    out = run_op(tensors[0], tensors[1], BlockWeights(None, *tensors[2:]))
    (first,) = torch.autograd.grad(out.square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(first.sum(), tensors[1])


def test_nan_stays_in_its_rows():
    tensors = [t.float() for t in case(3, "labels", 1, 30, 32, 32)]
    tensors[1][0, 7, 3] = float("nan")
    out = cpu.update_labels(tensors[0], tensors[1], BlockWeights(None, *tensors[2:]))
    assert out[0, 7].isnan().all() and out[0, :7].isfinite().all() and out[0, 8:].isfinite().all()


def test_shapes_that_do_not_fit_are_named():
    tensors = case(4, "features", 2, 5, 8, 8)
    with pytest.raises(ValueError, match=r"update: output is .* expected"):
        cpu.update_features(tensors[0], tensors[1], BlockWeights(None, *tensors[2:5], tensors[5][:, :3], tensors[6]))
