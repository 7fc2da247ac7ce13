"""The embedding op against x W^T + b in float64: values, gradients, dtypes, strides, edges, registration."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hhmpn_fast.backends.cpu.library import load_error
from hhmpn_fast.ops.embed import EMBED
from tests.ops.bounds import bounds, check_all
from tests.ops.registration import check
from tests.ops.under import cpu

pytestmark = pytest.mark.skipif(load_error() is not None, reason=str(load_error()))


def case(seed, rows, sizes, d, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    xs = [torch.randn(n, e, generator=g, dtype=torch.float64).to(dtype) for n, e in zip(rows, sizes)]
    ws = [(torch.randn(d, e, generator=g, dtype=torch.float64) / e**0.5).to(dtype) for e in sizes]
    bs = [torch.randn(d, generator=g, dtype=torch.float64).to(dtype) for _ in sizes]
    return xs, ws, bs


def plain(xs, ws, bs):
    return torch.cat([x @ w.T + b for x, w, b in zip(xs, ws, bs)])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 12, 13, 95, 96, 97, 257]), st.integers(1, 70)), min_size=1, max_size=4),
    st.sampled_from([1, 7, 16, 31, 32, 33, 64]),
    st.integers(0, 2**31),
)
def test_value_and_gradients_in_float64(shapes, d, seed):
    xs, ws, bs = case(seed, *zip(*shapes), d)
    leaves = [t.requires_grad_() for t in (*xs, *ws, *bs)]
    out, want = cpu.embed(xs, ws, bs), plain(xs, ws, bs)
    grad = torch.randn(want.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    torch.testing.assert_close(out, want, rtol=1e-11, atol=1e-11)
    got, expected = torch.autograd.grad(out, leaves, grad), torch.autograd.grad(want, leaves, grad)
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_are_roundings(dtype):
    check_roundings(dtype, 0)


def check_roundings(dtype, seed):
    low = [t for part in case(seed, [300, 41], [300, 35], 256, dtype) for t in part]
    grad = torch.randn(341, 256, generator=torch.Generator().manual_seed(seed)).to(dtype)

    def run(op, kind):
        leaves = [t.to(kind, copy=True).requires_grad_() for t in low]
        out = op(leaves[:2], leaves[2:4], leaves[4:])
        return out, *torch.autograd.grad(out, leaves, grad.to(kind))

    allowed = bounds(lambda: run(plain, torch.float64), dtype)
    check_all(["out", "x", "x", "w", "w", "b", "b"], run(cpu.embed, dtype), allowed)


def test_gradcheck_and_opcheck():
    xs, ws, bs = case(3, [3, 0, 2], [4, 1, 3], 5)
    leaves = [t.requires_grad_() for t in (*xs, *ws, *bs)]
    torch.autograd.gradcheck(lambda *t: cpu.embed(t[:3], t[3:6], t[6:]), leaves)
    check(EMBED, xs=xs, weights=ws, biases=bs)
    check(EMBED, xs=[xs[0], xs[1].detach(), xs[2]], weights=ws, biases=bs)


def test_second_derivative_raises():
    xs, ws, bs = case(4, [3], [4], 5)
    leaves = [t.requires_grad_() for t in (*xs, *ws, *bs)]
    out = cpu.embed(xs, ws, bs)
    (first,) = torch.autograd.grad(out.square().sum(), ws, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(first.sum(), leaves[0])


def test_strided_inputs_and_autocast():
    x = torch.randn(20, 9).T[:, ::2]
    w, b = torch.randn(7, 20)[:, ::2], torch.randn(14)[::2]
    torch.testing.assert_close(cpu.embed([x], [w], [b]), x @ w.T + b)
    with torch.autocast("cpu", torch.bfloat16):
        assert cpu.embed([x], [w], [b]).dtype == torch.bfloat16


def test_nan_stays_in_its_rows():
    xs, ws, bs = case(5, [30], [40], 33, torch.float32)
    xs[0][7, 3] = float("nan")
    out = cpu.embed(xs, ws, bs)
    assert out[7].isnan().all() and out[:7].isfinite().all() and out[8:].isfinite().all()


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match=r"embed: a weight is .* expected"):
        cpu.embed([torch.zeros(2, 3)], [torch.zeros(4, 5)], [torch.zeros(4)])
