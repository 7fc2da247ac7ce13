"""attention's CUDA kernels under the host harness against float64, forward and backward, three thread orders."""

import pytest
import torch

from hhmpn_fast.ops.dropout import Dropout
from tests.cuda.cases import DTYPES, SWEPT, needs_harness, on_cpu
from tests.ops.behind import check_behind
from tests.ops.bounds import bounds, check_all
from tests.ops.under import cuda, plain

pytestmark = needs_harness
# Tiles hold 32 queries and 32 keys: nothing, one, a tile less one, a tile, a tile and one, two tiles and one.
LENGTHS = [[0, 33, 1], [32, 31, 65]]
RESULTS = ("context", "lse", "dq", "dx")


def table(lengths: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.flatten().cumsum(0)]).to(torch.int32)


def case(kind: str, generator: torch.Generator) -> dict:
    lengths = torch.tensor(LENGTHS)
    samples, keys = lengths.shape[1], table(lengths)
    if kind == "f2f":
        return {"q_offsets": keys, "x_offsets": keys, "groups": 2}
    if kind == "f2f_exclude_self":
        return {"q_offsets": keys, "x_offsets": keys, "groups": 2, "exclude_self": True}
    if kind == "f2l":
        return {"q_offsets": torch.arange(samples + 1, dtype=torch.int32) * 7, "x_offsets": keys, "groups": 2}
    if kind == "no_queries":
        return {"q_offsets": torch.tensor([0, 0, 7, 14], dtype=torch.int32), "x_offsets": keys, "groups": 2}
    if kind == "no_keys":  # sample 0's queries read nothing in any group
        lengths[:, 0] = 0
        return {"q_offsets": torch.arange(samples + 1, dtype=torch.int32) * 7, "x_offsets": table(lengths), "groups": 2}
    labels = 11 if kind == "l2l" else 37
    offsets = torch.arange(4, dtype=torch.int32) * labels
    mask = torch.rand(labels, labels, generator=generator) < 0.3
    mask[2] = False
    return {"q_offsets": offsets, "x_offsets": offsets, "groups": 1, "mask": mask}


def one_key_case(kind: str, dtype: torch.dtype, rate: float) -> tuple:
    """Arguments of `run`: every row has its weight on one key, and a gradient orthogonal to it.

    So the exact gradient of its score is 0, and whatever rounding leaves of it shows in dq.
    """
    generator = torch.Generator().manual_seed(1)
    d, lengths, scale = (256, [[1, 1, 1]], 0.06) if kind == "one_key" else (64, [[40, 33]], 2.0)
    offsets = table(torch.tensor(lengths))
    x = torch.randn(int(offsets[-1]), d, generator=generator)
    grad = torch.randn(1, *x.shape, generator=generator)
    grad = grad - (grad * x).sum(-1, keepdim=True) * x / x.square().sum(-1, keepdim=True)
    options = {"q_offsets": offsets, "x_offsets": offsets, "groups": 1}
    if rate:
        options["dropout"] = Dropout(rate, torch.tensor([2**50 + 3, 4]), 512)
    q, x, grad = (t.to(dtype) for t in (scale * x, x, grad))
    return q, x, grad, torch.zeros(1, q.shape[0], dtype=dtype), options


def run(function, q, x, grad, grad_lse, options):
    q, x = q.clone().requires_grad_(), x.clone().requires_grad_()
    context, lse = function(q, x, **options)
    read = torch.isfinite(lse)
    if grad is None:
        grad = torch.zeros_like(context)
    (context * grad.to(context.dtype)).sum().add((lse[read] * grad_lse.to(lse.dtype)[read]).sum()).backward()
    return context.detach(), lse.detach(), q.grad, x.grad


def allowed(q, x, grad, grad_lse, options):
    """Bounds of `run`'s four results in q's dtype."""
    wide = [t.double() for t in (q, x, grad, grad_lse)]
    return bounds(lambda: run(plain.attention, *wide, options), q.dtype)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("kind", ["f2f", "f2f_exclude_self", "f2l", "no_queries", "no_keys", "l2l", "l2l_two_tiles"])
@pytest.mark.parametrize("dtype", SWEPT)
def test_equals_float64(dtype: str, kind: str, order: int) -> None:
    generator = torch.Generator().manual_seed(100 * order + len(kind))
    options = case(kind, generator)
    d = 64
    rows, nodes = int(options["q_offsets"][-1]), int(options["x_offsets"][-1])
    q = (torch.randn(rows, d, generator=generator) * d**-0.5).to(DTYPES[dtype])
    x = torch.randn(nodes, d, generator=generator).to(DTYPES[dtype])
    if order == 1:
        options["dropout"] = Dropout(0.3, torch.tensor([-(2**61) + 5, 7]), 512)
    grad = torch.randn(options["groups"], rows, d, generator=generator).to(DTYPES[dtype])
    grad_lse = torch.randn(options["groups"], rows, generator=generator).to(DTYPES[dtype])
    with on_cpu(order):
        found = run(cuda.attention, q, x, grad, grad_lse, options)
    check_all(RESULTS, found, allowed(q, x, grad, grad_lse, options))


def test_float16() -> None:
    test_equals_float64("fp16", "l2l", 1)


@pytest.mark.parametrize("f2f", [True, False], ids=["f2f", "f2l"])
@pytest.mark.parametrize("dtype", SWEPT)
def test_rows_behind_the_last_offset_are_inert(dtype: str, f2f: bool) -> None:
    with on_cpu(0):
        check_behind(cuda.attention, DTYPES[dtype], 64, f2f)


@pytest.mark.parametrize("d", [128, 256])
@pytest.mark.parametrize("dtype", SWEPT)
def test_other_sizes(dtype: str, d: int) -> None:
    generator = torch.Generator().manual_seed(d)
    offsets = table(torch.tensor([[5, 0], [33, 2]]))
    q = (torch.randn(40, d, generator=generator) * d**-0.5).to(DTYPES[dtype])
    x = torch.randn(40, d, generator=generator).to(DTYPES[dtype])
    options = {"q_offsets": offsets, "x_offsets": offsets, "groups": 2}
    grad, grad_lse = torch.randn(2, 40, d, generator=generator).to(DTYPES[dtype]), torch.zeros(2, 40)
    with on_cpu(0):
        found = run(cuda.attention, q, x, grad, grad_lse, options)
    check_all(RESULTS, found, allowed(q, x, grad, grad_lse, options))


@pytest.mark.parametrize("rate", [0.0, 0.25])
@pytest.mark.parametrize("kind", ["one_key", "one_of_two_tiles"])
@pytest.mark.parametrize("dtype", SWEPT)
def test_a_row_whose_weight_is_on_one_key(dtype: str, kind: str, rate: float) -> None:
    q, x, grad, grad_lse, options = one_key_case(kind, DTYPES[dtype], rate)
    with on_cpu(0):
        found = run(cuda.attention, q, x, grad, grad_lse, options)
    check_all(RESULTS, found, allowed(q, x, grad, grad_lse, options))


@pytest.mark.parametrize("dtype", SWEPT)
def test_nan_stays_in_its_rows(dtype: str) -> None:
    generator = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, 5, 9], dtype=torch.int32)
    q = torch.randn(9, 64, generator=generator).to(DTYPES[dtype])
    q[3] = float("nan")
    x = torch.randn(9, 64, generator=generator).to(DTYPES[dtype])
    x[8] = float("nan")
    with on_cpu(0):
        context, _ = cuda.attention(q, x, offsets, offsets)
    bad = torch.isnan(context[0]).any(1)
    assert bad.tolist() == [False, False, False, True, False] + [True] * 4


def test_same_bits_in_every_thread_order() -> None:
    generator = torch.Generator().manual_seed(3)
    offsets = table(torch.tensor(LENGTHS))
    q, x = (torch.randn(int(offsets[-1]), 64, generator=generator) for _ in range(2))
    grad, grad_lse = torch.randn(2, *q.shape, generator=generator), torch.zeros(2, q.shape[0])
    results = []
    for order in (0, 1, 2):
        with on_cpu(order):
            results.append(
                run(cuda.attention, q, x, grad, grad_lse, {"q_offsets": offsets, "x_offsets": offsets, "groups": 2})
            )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("nodes", [0, 3])
def test_no_keys(nodes: int) -> None:
    q, x = torch.randn(9, 64, requires_grad=True), torch.randn(nodes, 64, requires_grad=True)
    keys = torch.tensor([0, 0, 0, 0, 0, 0, nodes], dtype=torch.int32)
    with on_cpu(0):
        context, lse = cuda.attention(q, x, torch.arange(4, dtype=torch.int32) * 3, keys, 2)
        context.sum().backward()
    read = torch.zeros(2, 9, dtype=torch.bool)
    read[1, 6:] = nodes > 0
    assert torch.equal(torch.isfinite(lse), read) and not context[~read].any()
    assert not q.grad[:6].any() and torch.isfinite(x.grad).all()


def test_double_backward_raises() -> None:
    offsets = torch.tensor([0, 2], dtype=torch.int32)
    q = torch.randn(2, 64, requires_grad=True)
    with on_cpu(0):
        context, _ = cuda.attention(q, torch.randn(2, 64), offsets, offsets)
        (first,) = torch.autograd.grad(context.square().sum(), q, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(first.sum(), q)
