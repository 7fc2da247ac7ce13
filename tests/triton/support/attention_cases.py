"""attention in the guarded interpreter: ragged sweeps, masks, dropout, NaN, strides. Run by test_triton_interpreter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hhmpn_fast import ops
from hhmpn_fast.backends import use_backend
from hhmpn_fast.ops.dropout import keep
from tests.ops.behind import check_behind
from tests.ops.bounds import bounds, check_all
from tests.ops.under import kernels, plain
from tests.triton.support import guard
from tests.triton.support.compare import DTYPES, ROUNDING, leaves, offsets_of, pull, sweep

guard.install()
# Tiles of 16 rows at the narrow widths used here: lengths around them.
LENGTHS = st.sampled_from([0, 0, 1, 2, 15, 16, 17, 31, 32, 33])
DROPOUT = ops.Dropout(0.3, torch.tensor([2**35 + 11, 7]), ops.site("f2f_attention", 1))


def hold(q: Tensor, x: Tensor, q_offsets: Tensor, x_offsets: Tensor, groups: int, **options: object) -> None:
    """Outputs and gradients against float64, within roundings of q's dtype."""
    weights = [torch.randn(groups, *q.shape).to(q.dtype), torch.randn(groups, q.shape[0]).to(q.dtype)]

    def run(op: Callable, dtype: torch.dtype) -> list[Tensor]:
        inputs = leaves(q.to(dtype), x.to(dtype))
        context, lse = op(*inputs, q_offsets, x_offsets, groups, **options)
        return [context, lse, *pull([context, torch.where(torch.isinf(lse), 0, lse)], inputs, weights)]

    found = run(kernels.attention, q.dtype)
    assert all(t.dtype == q.dtype for t in found)
    check_all(("context", "lse", "d_q", "d_x"), found, bounds(lambda: run(plain.attention, torch.float64), q.dtype))


@sweep
@given(st.data())
def test_f2f_and_f2l(data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, 5))
    samples = data.draw(st.integers(1, min(3, 6 // groups)))
    dim = data.draw(st.sampled_from([3, 16, 24, 64]))
    dtype = data.draw(st.sampled_from(DTYPES))
    x_lengths = [data.draw(LENGTHS) for _ in range(groups * samples)]
    f2f = data.draw(st.booleans())
    q_lengths = x_lengths if f2f else [data.draw(st.sampled_from([1, 6, 17]))] * samples
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    q, x = torch.randn(sum(q_lengths), dim).to(dtype), torch.randn(sum(x_lengths), dim).to(dtype)
    dropout = data.draw(st.sampled_from([None, DROPOUT]))
    hold(q, x, offsets_of(q_lengths), offsets_of(x_lengths), groups, dropout=dropout)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("labels", [1, 6, 17])
def test_l2l_under_a_mask(dtype: torch.dtype, labels: int) -> None:
    torch.manual_seed(labels)
    mask = torch.rand(labels, labels) < 0.5
    mask[0] = False  # a label that reads nobody
    q, x = torch.randn(3 * labels, 16).to(dtype), torch.randn(3 * labels, 16).to(dtype)
    table = offsets_of([labels] * 3)
    hold(q, x, table, table, 1, mask=mask, dropout=DROPOUT)
    context, lse = kernels.attention(q, x, table, table, 1, mask=mask)
    assert (context[0, ::labels] == 0).all() and (lse[0, ::labels] == float("-inf")).all()


def test_exclude_self() -> None:
    table = offsets_of([1, 17, 0, 5])
    hold(torch.randn(23, 24), torch.randn(23, 24), table, table, 2, exclude_self=True)


@pytest.mark.parametrize(("dim", "dtype"), [(130, torch.float32), (300, torch.float32), (512, torch.bfloat16)])
def test_wide_rows(dim: int, dtype: torch.dtype) -> None:
    q, x = torch.randn(5, dim) * dim**-0.5, torch.randn(18, dim)
    hold(q.to(dtype), x.to(dtype), offsets_of([5]), offsets_of([17, 1]), 2, dropout=DROPOUT)


def test_long_segments_take_long_tiles() -> None:
    table = offsets_of([65, 40])
    hold(torch.randn(105, 64), torch.randn(105, 64), table, table, 2, dropout=DROPOUT)


@pytest.mark.parametrize("dropout", [None, DROPOUT], ids=["no dropout", "dropout"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("keys", [1, 5, 40], ids=["one key", "one of a tile", "one of several tiles"])
def test_rows_with_all_their_weight_on_one_key(keys: int, dtype: torch.dtype, dropout: ops.Dropout | None) -> None:
    """The score gradients of such rows are 0 but for lse's: what is left of dP - delta is error alone."""
    torch.manual_seed(keys)
    rows, groups, dim = 24, 4, 64
    q, x = torch.randn(rows, dim), torch.randn(groups * keys, dim)
    if keys > 1:  # every row scores one key of a segment at least 50 above the others
        q[:, 0], x[:, 0], x[keys // 2 :: keys, 0] = 10.0, 0.0, 12.0
    inputs = leaves(q.to(dtype), x.to(dtype))
    q_offsets, x_offsets = offsets_of([rows]), offsets_of([keys] * groups)
    for weight in (0.0, 1.0):
        context, lse = kernels.attention(*inputs, q_offsets, x_offsets, groups, dropout=dropout)
        total = (context * torch.randn(context.shape).to(dtype)).sum() + weight * lse.sum()
        dq = torch.autograd.grad(total, inputs[0])[0]
        own = inputs[1].detach()[keys // 2 :: keys]  # the keys that have the weight
        exact = weight * own.double().sum(0).expand(rows, dim)
        torch.testing.assert_close(dq.double(), exact, rtol=ROUNDING[dtype], atol=weight * 4e-5 + 1e-9)


def test_many_segments() -> None:
    lengths = torch.randint(0, 3, (600,)).tolist()
    table = offsets_of(lengths)
    found = kernels.attention(torch.randn(sum(lengths), 4), torch.randn(sum(lengths), 4), table, table, 1)[1]
    assert torch.isfinite(found).all()


def test_no_rows_and_no_keys() -> None:
    none = torch.zeros(0, 8)
    context, lse = kernels.attention(none, torch.randn(3, 8), offsets_of([0, 0]), offsets_of([1, 2]), 1)
    assert context.shape == (1, 0, 8) and lse.shape == (1, 0)
    q, x = leaves(torch.randn(4, 8), none)
    context, lse = kernels.attention(q, x, offsets_of([4]), offsets_of([0, 0]), 2)
    assert (context == 0).all() and (lse == float("-inf")).all()
    assert (torch.autograd.grad(context.sum(), q)[0] == 0).all()


@pytest.mark.parametrize("f2f", [True, False], ids=["f2f", "f2l"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_behind_the_last_offset_are_inert(dtype: torch.dtype, f2f: bool) -> None:
    check_behind(kernels.attention, dtype, 24, f2f)


def test_dropout_mask_is_the_references_bit_for_bit() -> None:
    rows, keys = 37, 35
    x = torch.eye(keys, 64)
    q = torch.zeros(rows, 64)  # equal weights: context column j is keep_j / keys / (1 - p)
    context, _ = kernels.attention(q, x, offsets_of([rows]), offsets_of([keys]), 1, dropout=DROPOUT)
    assert torch.equal(context[0, :, :keys] != 0, keep(DROPOUT, torch.arange(rows), keys))


def test_nan_stays_in_its_rows() -> None:
    q, x = torch.randn(20, 16), torch.randn(20, 16)
    table = offsets_of([7, 13])
    clean = kernels.attention(q, x, table, table, 1)[0]
    q[3] = float("nan")
    x[8, 2] = float("nan")
    found = kernels.attention(q, x, table, table, 1)[0]
    rows = torch.tensor([3, *range(7, 20)])
    assert found[0, 3].isnan().all() and found[0, rows[1:], 2].isnan().all()
    others = torch.tensor([0, 1, 2, 4, 5, 6])
    assert torch.equal(found[0, others], clean[0, others])


def test_strided_inputs() -> None:
    q, x, table = torch.randn(9, 32)[:, 8:24], torch.randn(16, 11).T, offsets_of([4, 7])
    assert q.stride() == (32, 1) and x.stride() == (1, 11)
    found = kernels.attention(q, x, offsets_of([9]), table, 2)
    expected = kernels.attention(q.contiguous(), x.contiguous(), offsets_of([9]), table, 2)
    assert all(torch.equal(f, e) for f, e in zip(found, expected))


def test_second_derivative_is_refused() -> None:
    q, x = leaves(torch.randn(3, 16), torch.randn(4, 16))
    with use_backend("triton"):
        context, _ = ops.attention(q, x, offsets_of([3]), offsets_of([4]))
    (grad,) = torch.autograd.grad(context.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(grad.sum(), x)


def test_the_guard_sees_a_read_out_of_bounds_and_a_race() -> None:
    import triton
    import triton.language as tl

    @triton.jit
    def careless(x, y, N: tl.constexpr):  # noqa: ANN001, ANN202
        i = tl.arange(0, N)
        tl.store(y + i, tl.load(x + i))

    with pytest.raises(Exception, match="outside every tensor argument"):
        careless[(1,)](torch.zeros(7), torch.zeros(8), 8)
    with pytest.raises(Exception, match="another program wrote"):
        careless[(2,)](torch.zeros(8), torch.zeros(8), 8)


def test_bf16_is_rounded_to_nearest_even() -> None:
    import triton
    import triton.language as tl

    @triton.jit
    def copy(x, y, N: tl.constexpr):  # noqa: ANN001, ANN202
        i = tl.arange(0, N)
        tl.store(y + i, tl.load(x + i).to(tl.bfloat16))

    corners = [
        1.00390625,
        1.01171875,
        0.0,
        -0.0,
        torch.inf,
        -torch.inf,
        3.4e38,
        -3.4e38,
        1e-45,
        -1e-45,
        torch.nan,
        -2.0,
    ]
    x = torch.cat([torch.randn(500) * 10.0 ** torch.randint(-42, 38, (500,)), torch.tensor(corners)])
    found = torch.empty(512, dtype=torch.bfloat16)
    copy[(1,)](x, found, 512)
    assert torch.equal(found[~x.isnan()], x.bfloat16()[~x.isnan()]) and found[x.isnan()].isnan().all()
