"""The cells of single ops: attention among segments of equal length, and the update of as many feature rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.flops import attention_flop, update_features_flop
from bench.core.workloads import DIM
from bench.gpu.clock import TORCH_DTYPES
from bench.gpu.model import Entrant
from bench.gpu.plan import Cell
from bench.race.contestants import LIMITS, CannotRun, WrongResult
from bench.race.kernel import rows
from bench.race.peers.base import Case
from bench.race.peers.varlen import PackedFlash, PackedVarlen
from hhmpn_fast import backends, ops

MODALITIES = 3  # contexts that the update adds up
FLASH = {"varlen_attn": PackedVarlen, "flash-attn": PackedFlash}
Op = Callable[[], Tensor]


class Singles:
    """One cell: `enter(name)` and `capture(name)` give what is timed, or raise the reason why not."""

    def __init__(self, cell: Cell, device: str) -> None:
        self.cell, self.case = cell, Case(cell.mode, cell.dtype, device)
        made, self.flop = {"attention": _attention, "update": _update}[cell.part](cell)
        self.tensors = [t.detach().to(device, TORCH_DTYPES[cell.dtype]).requires_grad_() for t in made]
        self.offsets = torch.arange(0, cell.batch * cell.length + 1, cell.length, dtype=torch.int32).to(device)
        out = self.tensors[0]
        inside, size = sum(t.numel() for t in self.tensors), out.element_size()
        self.bytes = size * (3 * inside + 2 * out.numel() if cell.mode == "both" else inside + out.numel())
        self.flop *= 3 if cell.mode == "both" else 1
        generator = torch.Generator().manual_seed(9)
        self.slope = torch.randn(out.shape, generator=generator).to(out)
        self.truth = self._outcome(self._plain([t.detach().double().requires_grad_() for t in self.tensors]))

    def enter(self, name: str) -> Entrant:
        """The op as a contestant runs it, within the limits of its dtype of float64."""
        run = lambda: self._outcome((self._op(name), self.tensors))  # noqa: E731
        errors: dict[str, float] = {}
        for i, (found, true) in enumerate(zip(run(), self.truth, strict=True)):
            what, error = (
                "grad" if i else "output",
                float((found.double() - true).norm() / true.norm().clamp(min=1e-30)),
            )
            errors[what] = max(errors.get(what, 0.0), error)
            if not error <= LIMITS[self.cell.dtype, "grad"]:
                raise WrongResult(f"{name}: {what} is off by {error:.1e}")
        return Entrant(run, errors)

    def capture(self, name: str) -> None:
        """None: an op's kernels are timed by Triton's do_bench_cudagraph already."""

    def _outcome(self, call: tuple[Op, Sequence[Tensor]]) -> list[Tensor]:
        run, tensors = call
        if self.cell.mode == "forward":
            with torch.no_grad():
                return [run()]
        out = run()
        return [out.detach(), *torch.autograd.grad(out, list(tensors), self.slope.to(out.dtype))]

    def _plain(self, tensors: list[Tensor]) -> tuple[Op, Sequence[Tensor]]:
        """In plain PyTorch and float64."""
        if self.cell.part == "attention":
            q, x = (t.view(self.cell.batch, self.cell.length, DIM) for t in tensors)
            slice_ = max(1, 2**28 // self.cell.length**2)  # elements of scores at a time
            parts = list(zip(q.split(slice_), x.split(slice_)))
            return lambda: torch.cat([torch.softmax(a @ b.mT, -1) @ b for a, b in parts]).flatten(0, 1), tensors
        return self._ours("torch", tensors), tensors

    def _op(self, name: str) -> Op:
        tensors = self.tensors
        if name.startswith("ours"):
            return self._ours(name.removeprefix("ours (").removesuffix(")"), tensors)
        q, x = tensors
        batch, length = self.cell.batch, self.cell.length
        if name in FLASH:
            if reason := FLASH[name].why_not(self.case, None):
                raise CannotRun(reason)
            attention, by, scale = (
                FLASH[name].function(),
                (self.offsets, self.offsets, length, length),
                FLASH[name].scale,
            )
            return lambda: attention(q[:, None], x[:, None], x[:, None], *by, **{scale: 1.0})[:, 0]

        def dense() -> Tensor:
            q_, x_ = (t.view(batch, 1, length, DIM) for t in (q, x))
            return F.scaled_dot_product_attention(q_, x_, x_, scale=1.0).reshape(-1, DIM)

        return dense

    def _ours(self, backend: str, tensors: Sequence[Tensor]) -> Op:
        def run() -> Tensor:
            with backends.use_backend(backend):
                if self.cell.part == "attention":
                    return ops.attention(*tensors, self.offsets, self.offsets, 1)[0].view(-1, DIM)
                v, s, value, hidden, b1, output, b2 = tensors
                return ops.update_features(v, s, ops.BlockWeights(None, value, hidden, b1, output, b2))

        return run


def _attention(cell: Cell) -> tuple[list[Tensor], int]:
    count, lengths = cell.batch * cell.length, [cell.length] * cell.batch
    made = [rows(count, DIM, dtype=torch.float32, scale=DIM**-0.5), rows(count, DIM, dtype=torch.float32, seed=1)]
    return made, attention_flop(DIM, lengths, lengths)


def _update(cell: Cell) -> tuple[list[Tensor], int]:
    count, scale = cell.batch * cell.length, DIM**-0.5
    made = [rows(*shape, DIM, dtype=torch.float32, seed=len(shape)) for shape in ((count,), (MODALITIES, count))]
    square, bias = (DIM, DIM), (DIM,)
    weights = (square, (MODALITIES, DIM, DIM), bias, square, bias)
    made += [rows(*shape, dtype=torch.float32, seed=5 + i, scale=scale) for i, shape in enumerate(weights)]
    return made, update_features_flop(DIM, count, MODALITIES)
