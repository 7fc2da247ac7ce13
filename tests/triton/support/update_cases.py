"""update in the guarded interpreter: both forms, forward and gradients. Run by test_triton_interpreter."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hhmpn_fast import InputError, ops
from tests.ops.bounds import bounds, check_all
from tests.ops.under import kernels, plain
from tests.triton.support import guard
from tests.triton.support.compare import DTYPES, ROUNDING, clear_rows, leaves, pull, sweep

guard.install()
DROPOUT = ops.Dropout(0.3, torch.tensor([2**35 + 11, 7]), ops.site("f2l_update", 1))
NAMES = ("out", "state", "context", "value", "hidden", "b1", "output", "b2")


def weights(dim: int, sources: int | None) -> list[Tensor]:
    """W^v, W^r or C, b1, W^b, b2, each a fair share of a unit output."""
    wide = (dim, dim) if sources is None else (sources, dim, dim)
    return [torch.randn(*s) * dim**-0.5 for s in ((dim, dim), wide, (dim,), (dim, dim), (dim,))]


def hold(op: str, state: Tensor, context: Tensor, w: list[Tensor], dtype: torch.dtype, dropout: object) -> None:
    """Output and every gradient against float64, within roundings of the dtype."""
    low = [t.to(dtype) for t in (state, context, *w)]
    wide = [t.double() for t in low]
    clear = clear_rows(op, *wide[:2], ops.BlockWeights(None, *wide[2:]), 4 * ROUNDING[dtype])
    pulled = (torch.randn(*clear.shape[:-1], state.shape[-1]) * clear).to(dtype)

    def run(module: ModuleType, kind: torch.dtype) -> list[Tensor]:
        first, second, *rest = leaves(*(t.to(kind) for t in low))
        out = getattr(module, op)(first, second, ops.BlockWeights(None, *rest), dropout)
        return [out, *pull([out], [first, second, *rest], [pulled])]

    found = run(kernels, dtype)
    assert all(t.dtype == dtype for t in found)
    check_all([f"{op} {name}" for name in NAMES], found, bounds(lambda: run(plain, torch.float64), dtype))


@sweep
@given(st.data())
def test_both_forms(data: st.DataObject) -> None:
    rows = data.draw(st.sampled_from([1, 15, 16, 17, 33]))
    sources, dim = data.draw(st.integers(1, 5)), data.draw(st.sampled_from([3, 16, 24, 64]))
    dtype, dropout = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from([None, DROPOUT]))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    context = torch.randn(sources, rows, dim)
    if data.draw(st.booleans()):
        hold("update_features", torch.randn(rows, dim), context, weights(dim, sources), dtype, dropout)
    else:
        shared = data.draw(st.booleans())
        state = torch.randn(rows, dim) if shared else torch.randn(sources, rows, dim)
        hold("update_labels", state, context, weights(dim, None), dtype, dropout)


@pytest.mark.parametrize("op", ["update_labels", "update_features"])
def test_weights_in_several_steps(op: str) -> None:
    sources = None if op == "update_labels" else 2
    hold(op, torch.randn(19, 130), torch.randn(2, 19, 130), weights(130, sources), torch.float32, DROPOUT)


@pytest.mark.parametrize("op", ["update_labels", "update_features"])
def test_rows_in_several_splits(op: str) -> None:
    sources = None if op == "update_labels" else 1
    hold(op, torch.randn(515, 16), torch.randn(1, 515, 16), weights(16, sources), torch.float32, None)


@pytest.mark.parametrize("op", ["update_labels", "update_features"])
def test_no_rows(op: str) -> None:
    sources = None if op == "update_labels" else 2
    w = leaves(*weights(8, sources))
    context = torch.zeros(2, 0, 8, requires_grad=True)
    out = getattr(kernels, op)(torch.zeros(0, 8), context, ops.BlockWeights(None, *w))
    assert out.shape == ((2, 0, 8) if sources is None else (0, 8))
    assert all((g == 0).all() for g in torch.autograd.grad(out.sum(), w))


def test_nan_stays_in_its_rows() -> None:
    w = ops.BlockWeights(None, *weights(16, None))
    context = torch.randn(1, 20, 16)
    context[0, 4, 3] = float("nan")
    out = kernels.update_labels(torch.zeros(20, 16), context, w)[0]
    assert out[4].isnan().all() and torch.isfinite(out[torch.arange(20) != 4]).all()


def test_inference_keeps_nothing_and_gives_the_same() -> None:
    w = ops.BlockWeights(None, *weights(16, 2))
    v, context = torch.randn(9, 16), torch.randn(2, 9, 16)
    with torch.no_grad():
        bare = kernels.update_features(v, context, w)
    assert torch.equal(bare, kernels.update_features(v, context, w))


def test_second_derivative_is_refused() -> None:
    u, *w = leaves(torch.randn(4, 16), *weights(16, None))
    out = kernels.update_labels(u, torch.randn(1, 4, 16), ops.BlockWeights(None, *w))
    (grad,) = torch.autograd.grad(out.square().sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(grad.sum(), w)


def test_mixed_dtypes_are_refused_by_name() -> None:
    w, u, context = ops.BlockWeights(None, *weights(16, None)), torch.randn(4, 16), torch.randn(1, 4, 16)
    with pytest.raises(InputError, match="context is torch.float16, state is torch.float32; expected torch.float32"):
        kernels.update_labels(u, context.half(), w)
    low = w._replace(b1=w.b1.bfloat16())
    expected = "update: b1 is torch.bfloat16, state is torch.float16; expected torch.float16 or torch.float32"
    with pytest.raises(InputError, match=expected):
        kernels.update_labels(u.half(), context.half(), low)


def test_what_the_kernels_do_not_hold_is_refused_by_name() -> None:
    v, context, w = torch.randn(4, 16), torch.randn(2, 4, 16), ops.BlockWeights(None, *weights(16, 2))
    for options, words in (
        (ops.UpdateOptions(residual="node"), "f2f_residual node"),
        (ops.UpdateOptions(message_dropout=DROPOUT), "message_dropout"),
        (ops.UpdateOptions(norms=ops.Norms(*torch.ones(4, 16))), "norm"),
    ):
        with pytest.raises(InputError, match=f"update_features: found {words}; expected none"):
            kernels.update_features(v, context, w, options=options)
    wide = w._replace(b1=torch.randn(24))
    with pytest.raises(InputError, match=r"b1 is \(24,\); the triton kernels expect \(16,\)"):
        kernels.update_features(v, context, wide)
