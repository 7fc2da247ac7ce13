"""The one bound on rounding errors: what an op's result may be off by, with no other library's run beside it.

An error is judged against float64 plain PyTorch in which every operation has been given rounding errors of the dtype
under test (`Rounded`), drawn at random inside the intervals that the standard model of arithmetic allows:

    operation                        result moved by                 U uniform in (-1, 1), N normal: drawn an element
    elementwise                      u |y| U                         u = eps / 2 of the dtype
    copies, choices, signs           nothing
    products and sums  y = sum_i t_i u |y| U + a S N                 a = 2^-24: sums are kept in float32
    softmax's gradient p (g - p.g)   u p (|g| + sum |p g|) N         what is left when the two cancel
    log-sum-exp                      u (|y| + 1) N                   its sum's relative error is its own
    BCE with logits                  u (|x| w + |y| + 1) N           a difference of logit-sized numbers

a S is the standard deviation of the error of a chain of n float32 additions, S^2 = (sum_i |t_i| / 2)^2 + n y^2 / 9:
partial sums of terms of random signs and size sigma grow like sqrt(k) sigma and leave a n sigma / sqrt(6), where
sum_i |t_i| is 0.8 n sigma; partial sums that grow straight to a large y leave a |y| sqrt(n) / 3. Sums in blocks, as
kernels and libraries make them, stay below. The worst case, a n sum_i |t_i|, would let faults of a few percent through.

The errors travel through the rest of the computation, gradients included, as real ones do: so the bound knows how far a
softmax or three label steps amplify them, tensor by tensor. RUNS such runs give two numbers a tensor, the largest error
and the largest root mean square; a result may have FACTOR times each, and one rounding of its largest value always.

A hidden unit of which rounding decides whether its ReLU is open moves gradients by their full size. In float32 there is
one in some cases and none in most: units within FACTOR standard deviations of 0 are opened and closed on purpose, in
turns, so that none is left to luck. Shorter dtypes have them by the dozen in every run.

Nothing in this is measured on a library: the draws are seeded and float64 is exact beside them, so the bound is the
same number on every machine, to float64's own rounding. FACTOR covers what a kernel rounds in other places than the
plain composition (an exponential of two steps, a product formed in another order) and a largest of few draws that came
out small: over many seeds of every op's test the worst float32 result had 1.5 times the largest error of the runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

RUNS = 6
FACTOR = 3.0
TF32 = 2.0**-10  # ten bits behind the point: Triton's products cut the rest off, cuBLAS rounds to nearest
ACCUMULATOR = 2.0**-24
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "mv", "dot")
EXACT = {
    *("abs", "neg", "sign", "relu", "threshold_backward", "maximum", "minimum", "amax", "amin", "max", "min"),
    *("clone", "copy_", "_to_copy", "_unsafe_view", "cat", "stack", "where", "masked_fill", "masked_fill_", "triu"),
    *("index", "index_select", "gather", "scatter", "index_put", "index_put_", "slice_backward", "select_backward"),
    *("zeros", "zeros_like", "new_zeros", "new_full", "new_empty", "empty", "empty_like", "full", "full_like", "fill_"),
    *("ones", "ones_like", "arange", "scalar_tensor", "zero_", "constant_pad_nd", "repeat_interleave", "new_ones"),
    *("lift_fresh", "lift_fresh_copy", "slice_scatter", "select_scatter", "repeat", "eye", "roll", "detach"),
}


class Rounded(TorchDispatchMode):
    """Float64 PyTorch whose results are moved as operations in `dtype` may move them.

    `gates` are the inputs of the ReLUs without errors, in order; seeds 2 i and 2 i + 1 put units near 0 on opposite
    sides. `cut` is the largest part that a product cuts off its operands, U in (0, 1) of it an element: all towards 0,
    so that nothing averages out over a sum and the next product. What rounds operands to nearest is off by less.
    """

    def __init__(self, dtype: torch.dtype, seed: int, gates: Sequence[Tensor], cut: float = 0.0) -> None:
        super().__init__()
        self.gates, self.coin = iter(gates), torch.Generator().manual_seed(seed // 2)
        self.opposite = bool(seed % 2)
        self.unit = torch.finfo(dtype).eps / 2
        self.tiny = torch.finfo(dtype).tiny if dtype == torch.float16 else 0.0
        self.cut, self.generator = cut, torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name in PRODUCTS and self.cut:
            first = name in ("addmm", "baddbmm")  # what is added is no operand of the product
            args = (*args[:first], *(t - t * self.cut * self._draw(t).abs() for t in args[first:]))
        out = func(*args, **kwargs)
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if name == "relu":
            return self._either_side(args[0], next(self.gates), out)
        if view or name in EXACT:
            return out
        terms = _terms(func, name, out, args, kwargs)
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, Tensor) and t.dtype == torch.float64 and t.numel():
                self._round(t, name, terms)
        return out

    def _either_side(self, moved: Tensor, exact: Tensor, out: Tensor) -> Tensor:
        deviation = (moved - exact).square().mean(-1, keepdim=True).sqrt()
        near = exact.abs() <= FACTOR * deviation
        if self.unit > 2**-12 or not near.any():
            return out
        opened = torch.rand(exact.shape, generator=self.coin) < 0.5
        return torch.where(near, torch.where(opened ^ self.opposite, moved.abs(), 0.0), out)

    def _draw(self, like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=self.generator, dtype=torch.float64).mul_(2).sub_(1)

    def _round(self, out: Tensor, name: str, terms: Tensor | None) -> None:
        """Moves `out` in place: relatively, and by the part of `terms` that its operation may leave behind."""
        if self.tiny:  # below the normal numbers, which float16 meets, steps are equal
            out.add_(self._draw(out).mul_(self.unit * self.tiny).mul_(out != 0))
        out.mul_(self._draw(out).mul_(self.unit).add_(1))
        if terms is not None:
            unit = ACCUMULATOR if name in (*PRODUCTS, "sum", "mean") else self.unit
            normal = torch.randn(out.shape, generator=self.generator, dtype=torch.float64)
            out.add_(terms.nan_to_num(0.0, 0.0, 0.0).mul_(unit).mul_(normal))


def _terms(func: Any, name: str, out: Any, args: tuple, kwargs: dict) -> Tensor | None:
    """The size of the error that summing or cancelling leaves, over its unit; None where nothing does."""
    if name in PRODUCTS or name in ("sum", "mean"):
        sizes = func(*(a.abs() if isinstance(a, Tensor) else a for a in args), **kwargs)
        length = args[0].numel() / max(out.numel(), 1) if name in ("sum", "mean") else args[-1].shape[-2:][0]
        return torch.hypot(sizes / 2, out * length**0.5 / 3)
    if name == "_softmax_backward_data":
        grad, p, dim = args[:3]
        return p * (grad.abs() + (grad * p).abs().sum(dim, keepdim=True))
    if name == "logsumexp":
        return torch.ones_like(func(*args, **kwargs))
    if name == "binary_cross_entropy_with_logits":
        logits, weight = args[0], args[3] if len(args) > 3 else None
        return logits.abs() * (1 if weight is None else weight) + 1
    return None


class Gates(TorchDispatchMode):
    """Keeps the input of every ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.overloadpacket.__name__ == "relu":
            self.inputs.append(args[0].detach().clone())
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Bound:
    """A result in float64, and the largest error and root mean square that a result may have."""

    exact: Tensor
    largest: float
    rms: float

    def check(self, name: str, found: Tensor) -> None:
        """Fails where `found` is off by more, or is not finite where float64 is."""
        found, exact = found.detach().double().cpu(), self.exact
        assert found.shape == exact.shape, f"{name}: shape {tuple(found.shape)}; expected {tuple(exact.shape)}"
        finite = torch.isfinite(exact)
        assert torch.equal(torch.isfinite(found), finite), f"{name}: not finite in other places than float64"
        assert torch.equal(found[exact.isinf()], exact[exact.isinf()]), f"{name}: infinities in other places"
        if finite.any():
            error = (found - exact)[finite]
            largest, rms = float(error.abs().max()), float(error.square().mean().sqrt())
            assert largest <= self.largest, f"{name}: off by {largest:.2e}; expected at most {self.largest:.2e}"
            assert rms <= self.rms, f"{name}: root mean square error {rms:.2e}; expected at most {self.rms:.2e}"


def bounds(run: Callable[[], Sequence[Tensor]], dtype: torch.dtype, cut: float = 0.0) -> list[Bound]:
    """A bound a tensor that `run` returns; `run` computes in float64, on the CPU, from inputs that `dtype` holds.

    Every call of `run` must start from fresh leaves and draw the same dropout masks.
    """
    with Gates() as gates:
        exact = [t.detach() for t in run()]
    assert all(t.dtype == torch.float64 for t in exact), "bounds: the run is not in float64"
    errors: list[list[Tensor]] = [[] for _ in exact]
    for seed in range(RUNS):
        with Rounded(dtype, seed, gates.inputs, cut):
            moved = [t.detach() for t in run()]
        for e, m, each in zip(exact, moved, errors, strict=True):
            each.append((m - e)[torch.isfinite(e)])
    return [_bound(e, each, dtype) for e, each in zip(exact, errors)]


def _bound(exact: Tensor, errors: list[Tensor], dtype: torch.dtype) -> Bound:
    finite = exact[torch.isfinite(exact)]
    if not finite.numel():
        return Bound(exact, 0.0, 0.0)
    floor = torch.finfo(dtype).eps / 2 * float(finite.abs().max())
    largest = max(float(e.abs().max()) for e in errors)
    rms = max(float(e.square().mean().sqrt()) for e in errors)
    return Bound(exact, FACTOR * largest + floor, FACTOR * rms + floor)


def check_all(names: Sequence[str], found: Sequence[Tensor], allowed: Sequence[Bound]) -> None:
    """Checks one result after another, by name."""
    for name, f, bound in zip(names, found, allowed, strict=True):
        bound.check(name, f)
