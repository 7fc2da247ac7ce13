"""F2F as one op against attention and update in plain float64 PyTorch: values, gradients, dropout, registration."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hhmpn_fast.backends.cpu.library import load_error
from hhmpn_fast.ops.dropout import Dropout
from hhmpn_fast.ops.f2f import F2F
from hhmpn_fast.weights import BlockWeights
from tests.ops.bounds import bounds, check_all
from tests.ops.registration import check
from tests.ops.under import cpu, plain

pytestmark = pytest.mark.skipif(load_error() is not None, reason=str(load_error()))
length = st.sampled_from([0, 0, 1, 2, 12, 13, 31, 32, 33, 95, 96, 97])


def case(seed, lengths, modalities, d):
    g = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64) / shape[-1] ** 0.5

    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    v = random(sum(lengths), d) * d**0.5
    return offsets, [v, random(d, d), random(d, d), random(modalities, d, d), random(d), random(d, d), random(d)]


def contexts_first(offsets, modalities, tensors, dropout):
    v, query, *w = tensors
    at = dropout and dropout.at("f2f_attention", 1)
    context, _ = plain.attention(v @ query, v, offsets, offsets, modalities, dropout=at)
    return plain.update_features(v, context, BlockWeights(None, *w), dropout and dropout.at("f2f_update", 1))


def fused(offsets, modalities, tensors, dropout):
    return cpu.f2f(tensors[0], offsets, BlockWeights(*tensors[1:]), dropout, 1)


def run(op, offsets, modalities, tensors, dropout=None, held=torch.float64):
    """The output and every gradient; the upstream gradient is one that `held` holds."""
    out = op(offsets, modalities, tensors, dropout)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return out, *torch.autograd.grad(out, tensors, grad.to(held).to(out.dtype))


@settings(max_examples=60, deadline=None)
@given(
    st.data(),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([1, 3, 16, 20]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_value_and_gradients_in_float64(data, modalities, samples, d, drop, seed):
    lengths = data.draw(st.lists(length, min_size=modalities * samples, max_size=modalities * samples))
    lengths[0] += sum(lengths) == 0
    offsets, tensors = case(seed, lengths, modalities, d)
    tensors = [t.requires_grad_() for t in tensors]
    dropout = Dropout(0.3, torch.tensor([seed, 3]), 0) if drop else None
    got, want = (run(op, offsets, modalities, tensors, dropout) for op in (fused, contexts_first))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [33, 256])
def test_errors_are_roundings(dtype, d):
    check_roundings(dtype, d, 1)


def check_roundings(dtype, d, seed):
    offsets, tensors = case(seed, [40, 7, 0, 31, 20, 110], 3, d)
    low = [t.to(dtype) for t in tensors]

    def each(op, wide):
        return run(op, offsets, 3, [t.to(wide, copy=True).requires_grad_() for t in low], held=dtype)

    allowed = bounds(lambda: each(contexts_first, torch.float64), dtype)
    check_all(["out", "v", *BlockWeights._fields], each(fused, dtype), allowed)


def test_gradcheck_opcheck_and_second_derivative():
    offsets, tensors = case(2, [2, 0, 3, 1], 2, 4)
    tensors = [t.requires_grad_() for t in tensors]
    torch.autograd.gradcheck(lambda *t: fused(offsets, 2, t, None), tensors)
    rng = torch.tensor([1, 2])
    v, a, wv, c, b1, wb, b2 = tensors
    weights = BlockWeights(a, wv, c, b1, wb, b2)._asdict()
    check(F2F, v=v, offsets=offsets, **weights, p=0.2, rng=rng, attention_site=0, update_site=256)
    (first,) = torch.autograd.grad(fused(offsets, 2, tensors, None).square().sum(), v, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(first.sum(), a)


def test_rows_of_one_sample_may_be_cut_over_threads():
    offsets, tensors = case(3, [150, 90], 2, 32)
    before = torch.get_num_threads()
    try:
        outs = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outs.append(run(fused, offsets, 2, [t.float().requires_grad_() for t in tensors]))
    finally:
        torch.set_num_threads(before)
    for other in outs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outs[0], other))


def test_nan_stays_in_its_sample():
    offsets, tensors = case(5, [20, 20, 20, 20], 2, 16)
    tensors = [t.float() for t in tensors]
    tensors[0][25, 3] = float("nan")
    out = fused(offsets, 2, tensors, None)
    assert (
        out[20:40].isnan().all()
        and out[60:].isnan().all()
        and out[:20].isfinite().all()
        and out[40:60].isfinite().all()
    )
