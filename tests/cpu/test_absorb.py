"""Products of weights against float64 matmul: every transposition, gradients, dtypes, registration."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hhmpn_fast.backends.cpu.library import load_error
from hhmpn_fast.ops.embed import ABSORB
from tests.ops.bounds import bounds, check_all
from tests.ops.registration import check
from tests.ops.under import cpu

pytestmark = pytest.mark.skipif(load_error() is not None, reason=str(load_error()))
sizes = st.sampled_from([1, 5, 12, 13, 16, 33, 129, 257])


@settings(max_examples=40, deadline=None)
@given(
    sizes, sizes, sizes, st.lists(st.integers(1, 3), max_size=2), st.booleans(), st.booleans(), st.integers(0, 2**31)
)
def test_value_and_gradients_in_float64(n, k, m, lead, left_t, right_t, seed):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(*lead, k, n, generator=g, dtype=torch.float64).requires_grad_()
    b = torch.randn(m, k, generator=g, dtype=torch.float64).requires_grad_()
    left = a.transpose(-1, -2) if left_t else a.transpose(-1, -2).contiguous()
    right = (b.T if right_t else b.T.contiguous()).expand(*lead, k, m)
    out, want = cpu.absorb(left, right, 0.25), left @ right * 0.25
    torch.testing.assert_close(out, want, rtol=1e-11, atol=1e-11)
    grad = torch.randn(want.shape, generator=g, dtype=torch.float64)
    got, expected = torch.autograd.grad(out, (a, b), grad), torch.autograd.grad(want, (a, b), grad)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_are_roundings(dtype):
    check_roundings(dtype, 0)


def check_roundings(dtype, seed):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(3, 256, 256, generator=g).to(dtype) for _ in range(2))
    allowed = bounds(lambda: [a.double() @ b.double()], dtype)
    check_all(["product"], [cpu.absorb(a, b, 1.0)], allowed)


def test_gradcheck_opcheck_and_second_derivative():
    a = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda a, b: cpu.absorb(a, b, 0.5), (a, b))
    check(ABSORB, left=a, right=b, scale=0.5, half=False)
    out = cpu.absorb(a, b, 0.5)
    (first,) = torch.autograd.grad(out.square().sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(first.sum(), b)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"absorb: left is .* expected"):
        cpu.absorb(torch.zeros(2, 3), torch.zeros(4, 5), 1.0)
