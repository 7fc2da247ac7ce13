"""The bound on rounding errors itself: what keeps it for any inputs, and what it notices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import test_cpu_absorb
import test_cpu_attention
import test_cpu_embed
import test_cpu_f2f
import test_cpu_joint_loss
import test_cpu_readout
import test_cpu_tower
import test_cpu_update
import torch
from bounds import FACTOR, Bound, Rounded, bounds

from hhmpn_fast.ops.cpu_library import load_error

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


def plant(monkeypatch: pytest.MonkeyPatch, tensor: int, place: int) -> list[str]:
    """From now on, tensor number `tensor` checked is off at one element by twice what is allowed; its name is kept."""
    hit, count, check = [], iter(range(1 << 30)), Bound.check

    def planted(self: Bound, name: str, found: torch.Tensor) -> None:
        if next(count) == tensor:
            hit.append(name)
            found = found.detach().double()
            at = torch.isfinite(self.exact).flatten().nonzero().flatten()
            at = int(at[place * 7919 % len(at)])
            found.view(-1)[at] = self.exact.flatten()[at] + (-2 if place % 2 else 2) * self.largest
        check(self, name, found)

    monkeypatch.setattr(Bound, "check", planted)
    return hit


# Twenty: each op's output, and gradients here and there, in float32 and bfloat16 in turns.
PLANTED = [
    *(("absorb", 0), ("embed", 0), ("embed", 2), ("embed", 5), ("attention", 0), ("attention", 1), ("attention", 2)),
    *(("attention", 3), ("update_labels", 0), ("update_labels", 4), ("update_features", 1), ("update_features", 3)),
    *(("f2f", 0), ("f2f", 2), ("readout", 1), ("readout", 4), ("tower", 0), ("tower", 3), ("joint_loss", 1)),
    ("joint_loss", 9),
]


@needs_kernels
@pytest.mark.parametrize(("place", "op", "tensor"), [(i, *p) for i, p in enumerate(PLANTED)])
def test_an_error_of_twice_the_bound_is_noticed(
    place: int, op: str, tensor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hit = plant(monkeypatch, tensor, place)
    with pytest.raises(AssertionError) as caught:
        OPS[op]((torch.float32, torch.bfloat16)[place % 2], 7)
    assert hit and str(caught.value).startswith(f"{hit[0]}: off by")


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
