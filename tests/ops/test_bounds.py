"""The bound on rounding errors itself: what keeps it for any inputs, and what it notices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hhmpn_fast.backends import use_backend
from hhmpn_fast.backends.cpu.library import load_error
from tests.cpu import test_absorb as test_cpu_absorb
from tests.cpu import test_attention as test_cpu_attention
from tests.cpu import test_embed as test_cpu_embed
from tests.cpu import test_f2f as test_cpu_f2f
from tests.cpu import test_joint_loss as test_cpu_joint_loss
from tests.cpu import test_readout as test_cpu_readout
from tests.cpu import test_tower as test_cpu_tower
from tests.cpu import test_update as test_cpu_update
from tests.model.cases import random_batch, random_model
from tests.ops.bounds import FACTOR, PRODUCTS, TF32, Bound, Rounded, bounds, check_all

needs_kernels = pytest.mark.skipif(load_error() is not None, reason=str(load_error()))
OPS: dict[str, Callable[[torch.dtype, int], None]] = {
    "absorb": test_cpu_absorb.check_roundings,
    "embed": test_cpu_embed.check_roundings,
    "attention": lambda dtype, seed: test_cpu_attention.check_roundings(dtype, 33, seed),
    "update_labels": lambda dtype, seed: test_cpu_update.check_roundings("labels", dtype, 33, seed),
    "update_features": lambda dtype, seed: test_cpu_update.check_roundings("features", dtype, 33, seed),
    "f2f": lambda dtype, seed: test_cpu_f2f.check_roundings(dtype, 33, seed),
    "readout": test_cpu_readout.check_roundings,
    "tower": lambda dtype, seed: test_cpu_tower.check_roundings(dtype, {}, seed),
    "joint_loss": lambda dtype, seed: test_cpu_joint_loss.check_roundings(dtype, 0.0, seed),
}


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(100, 120))
def test_every_op_keeps_its_bound_whatever_the_inputs(seed: int, dtype: torch.dtype, op: str) -> None:
    OPS[op](dtype, seed)


def checked(op: str, dtype: torch.dtype) -> list[tuple[str, Bound, torch.Tensor]]:
    """What an op's test checks: every result with its name and bound."""
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bound, "check", lambda self, name, found: kept.append((name, self, found.detach().double())))
        OPS[op](dtype, 7)
    return kept


@needs_kernels
@pytest.mark.parametrize(("op", "dtype"), list(zip(OPS, [torch.float32, torch.bfloat16] * len(OPS))))
def test_an_error_of_twice_the_bound_is_noticed_in_every_result(op: str, dtype: torch.dtype) -> None:
    """Eighty in all: one element of each result, first, last or between, is off by twice what is allowed."""
    for i, (name, bound, found) in enumerate(checked(op, dtype)):
        bound.check(name, found)
        places = torch.isfinite(bound.exact).flatten().nonzero().flatten()
        at = int(places[i * 7919 % len(places)])
        found.view(-1)[at] = bound.exact.flatten()[at] + (-2 if i % 2 else 2) * bound.largest
        with pytest.raises(AssertionError, match=f"^{name}: off by"):
            bound.check(name, found)


def product(dtype: torch.dtype) -> tuple[Bound, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    a, b = (torch.randn(60, 200, generator=g).to(dtype).double() for _ in range(2))
    (allowed,) = bounds(lambda: [a @ b.T], dtype)
    return allowed, a, b


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_small_error_everywhere_is_noticed(dtype: torch.dtype) -> None:
    allowed, a, b = product(dtype)
    signs = torch.randint(0, 2, allowed.exact.shape, generator=torch.Generator().manual_seed(2)) * 2 - 1
    allowed.check("half", allowed.exact + 0.5 * allowed.rms * signs)
    with pytest.raises(AssertionError, match="root mean square"):
        allowed.check("spread", allowed.exact + 1.1 * allowed.rms * signs)
    with pytest.raises(AssertionError, match="off by"):
        allowed.check("a term left out", allowed.exact - a[:, :1] @ b[:, :1].T)


def test_a_product_may_be_off_by_a_few_roundings_of_its_terms() -> None:
    allowed, a, b = product(torch.float32)
    terms = float((a.abs() @ b.abs().T).max())
    assert 2**-24 * terms / 8 < allowed.largest < FACTOR * 8 * 2**-24 * terms
    again, _, _ = product(torch.float32)
    assert (again.largest, again.rms) == (allowed.largest, allowed.rms)


class Operands(TorchDispatchMode):
    """Products of operands that keep this many of float32's bits behind the point: the rest cut off, or rounded."""

    def __init__(self, bits: int, nearest: bool) -> None:
        super().__init__()
        self.low, self.nearest = 2 ** (23 - bits), nearest

    def _shorter(self, t: torch.Tensor) -> torch.Tensor:
        word = t.float().view(torch.int32) + (self.low // 2 if self.nearest else 0)
        return (word & -self.low).view(torch.float32).double()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in PRODUCTS:
            args = (*args[:-2], *map(self._shorter, args[-2:]))
        return func(*args, **(kwargs or {}))


def test_a_whole_model_in_tf32_may_cut_its_operands_or_round_them() -> None:
    sizes = {"m0": 3, "m1": 5}
    model, generator = random_model(3, torch.float64, modalities=sizes, dim=32, labels=("a", "b", "c"), steps=2)
    batch = random_batch(generator, sizes, 4, 12)
    parameters = list(model.parameters())

    def run() -> list[torch.Tensor]:
        model.seed_dropout(3)
        with use_backend("torch"):
            logits = model(batch)
        return [logits, *torch.autograd.grad(logits.sum(), parameters)]

    names, allowed = ["logits", *(n for n, _ in model.named_parameters())], bounds(run, torch.float32, TF32)
    for nearest in (False, True):
        with Operands(10, nearest):
            check_all(names, run(), allowed)
    with Operands(7, False), pytest.raises(AssertionError, match="^logits: "):
        check_all(names, run(), allowed)


def test_a_gate_on_the_edge_may_be_open_or_shut() -> None:
    hidden = torch.linspace(-1, 1, 64, dtype=torch.float64)
    hidden[20] = 1e-9  # nothing beside the errors of its row

    def run() -> list[torch.Tensor]:
        x = hidden.clone().requires_grad_()
        return [torch.autograd.grad(torch.relu(x * 1.1).sum(), x)[0]]

    (allowed,) = bounds(run, torch.float32)
    shut = allowed.exact.clone()
    shut[20] = 0.0
    allowed.check("shut", shut)


def test_the_mode_leaves_what_is_exact() -> None:
    x = torch.randn(5, 7, dtype=torch.float64)
    with Rounded(torch.bfloat16, 0, []):
        same = torch.cat([x.T, x.T]).abs().clone()[:, 1:]
        moved = x * 1.0
    assert torch.equal(same, torch.cat([x.T, x.T]).abs()[:, 1:])
    assert 0 < float(((moved - x) / x).abs().max()) <= 2**-8


def test_not_finite_elsewhere_is_noticed() -> None:
    bound = Bound(torch.tensor([1.0, float("-inf")]).double(), 1.0, 1.0)
    bound.check("same", torch.tensor([1.5, float("-inf")]))
    for wrong in ([1.0, 0.0], [float("nan"), float("-inf")], [1.0, float("inf")]):
        with pytest.raises(AssertionError):
            bound.check("other", torch.tensor(wrong))
