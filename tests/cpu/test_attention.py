"""Attention on the CPU kernels against plain float64 PyTorch: values, gradients, dropout, masks, edges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hhmpn_fast.backends.cpu.library import load_error
from hhmpn_fast.ops.attention import ATTENTION
from hhmpn_fast.ops.dropout import Dropout
from tests.ops.bounds import bounds, check_all
from tests.ops.registration import check
from tests.ops.under import cpu, plain

pytestmark = pytest.mark.skipif(load_error() is not None, reason=str(load_error()))
length = st.sampled_from([0, 0, 1, 2, 11, 12, 13, 31, 32, 33, 95, 96, 97])


def offsets(lengths):
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def case(seed, q_lengths, x_lengths, d, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(sum(q_lengths), d, generator=g, dtype=torch.float64) / d**0.5
    x = torch.randn(sum(x_lengths), d, generator=g, dtype=torch.float64)
    return q.to(dtype), x.to(dtype), offsets(q_lengths), offsets(x_lengths)


def compare(q, x, qo, xo, groups, tolerance=1e-10, **options):
    g = torch.Generator().manual_seed(0)
    leaves = q.requires_grad_(), x.requires_grad_()
    got = cpu.attention(q, x, qo, xo, groups, **options)
    want = plain.attention(q, x, qo, xo, groups, **options)
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    if not want[0].requires_grad:
        assert not any(t.any() for t in torch.autograd.grad(got[0].sum(), leaves))
        return
    some = want[1].isfinite()
    grads = (
        torch.randn(want[0].shape, generator=g, dtype=q.dtype),
        torch.randn(want[1].shape, generator=g, dtype=q.dtype),
    )
    a, b = (
        torch.autograd.grad((out[0] * grads[0]).sum() + (out[1] * grads[1])[some].sum(), leaves, allow_unused=True)
        for out in (got, want)
    )
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@settings(max_examples=60, deadline=None)
@given(
    st.data(),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([1, 3, 8, 16, 20]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_value_and_gradients_in_float64(data, groups, samples, d, drop, seed):
    x_lengths = data.draw(st.lists(length, min_size=groups * samples, max_size=groups * samples))
    repeat = data.draw(st.integers(1, 3))
    q_lengths = data.draw(st.lists(length, min_size=repeat * samples, max_size=repeat * samples))
    dropout = Dropout(0.3, torch.tensor([seed, 3]), 512) if drop else None
    compare(*case(seed, q_lengths, x_lengths, d), groups, dropout=dropout)


@pytest.mark.parametrize("labels", [1, 6, 12, 33])
@pytest.mark.parametrize("drop", [False, True])
def test_masked_labels(labels, drop):
    mask = torch.rand(labels, labels) < 0.4
    mask[0] = False  # a row that may read nothing
    dropout = Dropout(0.2, torch.tensor([5, 1]), 9) if drop else None
    lengths = [labels] * 6
    compare(*case(labels, lengths, lengths, 16), 1, mask=mask, dropout=dropout)


@pytest.mark.parametrize("keys", [511, 512, 513, 1100])
def test_more_keys_than_a_block(keys):
    dropout = Dropout(0.2, torch.tensor([7, 2]), 0)
    compare(*case(keys, [100, 3], [keys, 7], 24), 1, dropout=dropout)
    q, x, qo, xo = case(keys, [100], [keys], 24)
    compare(q * 300, x, qo, xo, 1, tolerance=1e-8)  # pivots that move from block to block


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [20, 256, 33])
def test_errors_are_roundings(dtype, d):
    check_roundings(dtype, d, 1)


def check_roundings(dtype, d, seed):
    q, x, qo, xo = case(seed, [40, 20, 7, 0], [60, 5, 31, 90], d, dtype)
    g = torch.Generator().manual_seed(seed)
    grads = [torch.randn(*shape, generator=g).to(dtype) for shape in ((2, 67, d), (2, 67))]

    def run(op, kind):
        leaves = [t.to(kind, copy=True).requires_grad_() for t in (q, x)]
        outs = op(*leaves, qo, xo, 2)
        return *outs, *torch.autograd.grad(outs, leaves, [g.to(o.dtype) for g, o in zip(grads, outs)])

    allowed = bounds(lambda: run(plain.attention, torch.float64), dtype)
    check_all(["context", "lse", "q", "x"], run(cpu.attention, dtype), allowed)


def test_gradcheck_opcheck_and_second_derivative():
    q, x, qo, xo = case(2, [2, 0, 3, 1], [4, 1, 0, 3], 3)
    q.requires_grad_(), x.requires_grad_()
    torch.autograd.gradcheck(lambda q, x: cpu.attention(q, x, qo, xo, 2)[0], (q, x))
    rng = torch.tensor([1, 2])
    offsets = {"q_offsets": qo, "x_offsets": xo, "groups": 2, "mask": None, "exclude_self": False}
    check(ATTENTION, q=q, x=x, **offsets, p=0.2, rng=rng, site=4)
    (first,) = torch.autograd.grad(cpu.attention(q, x, qo, xo, 2)[0].square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(first.sum(), x)


def test_nan_stays_in_its_rows():
    q, x, qo, xo = case(3, [20, 20], [30, 30], 16, torch.float32)
    q[5, 2] = float("nan")
    out, lse = cpu.attention(q, x, qo, xo)
    assert out[0, 5].isnan().all() and lse[0, 5].isnan() and out[0, :5].isfinite().all() and out[0, 6:].isfinite().all()
    x[31, 0] = float("nan")
    out, _ = cpu.attention(q, x, qo, xo)
    assert out[0, 20:].isnan().all() and out[0, :5].isfinite().all()


def test_strides_and_errors():
    q, x, qo, xo = case(4, [5, 6], [7, 8], 32, torch.float32)
    wide = torch.zeros(15, 40)
    wide[:, 3:35] = x
    torch.testing.assert_close(cpu.attention(q, wide[:, 3:35], qo, xo), cpu.attention(q, x, qo, xo))
    torch.testing.assert_close(cpu.attention(q.T.contiguous().T, x, qo, xo), cpu.attention(q, x, qo, xo))
    with pytest.raises(ValueError, match=r"x_offsets runs from 0 to 15; expected"):
        cpu.attention(q, x[:-1], qo, xo)
