"""One run of every CPU op, forward and backward, shared by the tests of ISA units and of threads.

As a script under HHMPN_CPU_ISA it compares every op in every dtype with plain float64 PyTorch and exits 1 on a miss.
"""

from __future__ import annotations

import sys
from types import ModuleType

import torch
from torch import Tensor

from hhmpn_fast.backends.cpu.library import isa
from hhmpn_fast.ops.dropout import Dropout
from hhmpn_fast.weights import BlockWeights
from tests.ops.under import cpu, plain

LENGTHS = [[19, 0, 130, 33], [1, 97, 40, 0], [12, 5, 31, 64]]
D = 36


def inputs(dtype: torch.dtype) -> list[Tensor]:
    """Features, weights and biases of the embedding, then v, A and the update's weights."""
    g = torch.Generator().manual_seed(11)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        t = torch.randn(*shape, generator=g, dtype=torch.float64) * scale / shape[-1] ** 0.5
        return t.to(dtype).requires_grad_()

    nodes = [sum(row) for row in LENGTHS]
    xs = [random(n, e, scale=3.0) for n, e in zip(nodes, (7, 30, 5))]
    ws, bs = [random(D, e) for e in (7, 30, 5)], [random(D) for _ in nodes]
    v = random(sum(nodes), D, scale=D**0.5)
    return [*xs, *ws, *bs, v, random(D, D), random(D, D), random(3, D, D), random(D), random(D, D), random(D)]


def run(backend: ModuleType, dtype: torch.dtype, whole: bool) -> list[Tensor]:
    """Outputs and gradients: embed, absorb, attention, both updates, and F2F as one op or composed."""
    t = inputs(dtype)
    offsets = torch.tensor([0, *torch.tensor(LENGTHS).flatten().cumsum(0).tolist()], dtype=torch.int32)
    labels = torch.arange(0, 7 * 5, 7, dtype=torch.int32)
    v, a, w = t[9], t[10], BlockWeights(*t[10:])
    drop = Dropout(0.25, torch.tensor([3, 5]), 0)
    if whole:
        f2f = backend.f2f(v, offsets, w, drop, 0)
    else:
        s, _ = backend.attention(v @ a, v, offsets, offsets, 3, dropout=drop.at("f2f_attention", 0))
        f2f = backend.update_features(v, s, w, drop.at("f2f_update", 0))
    context, lse = backend.attention(backend.absorb(v[:28], a), v, labels, offsets, 3, dropout=drop)
    lse = torch.where(lse.isinf(), 0, lse).to(dtype)
    update = backend.update_labels(v[:28], context, w._replace(hidden=w.hidden[0]))
    outs = [backend.embed(t[:3], t[3:6], t[6:9]), backend.absorb(a.T, t[11], 0.5), f2f, context, lse, update]
    g = torch.Generator().manual_seed(12)
    total = sum((o * torch.randn(o.shape, generator=g, dtype=torch.float64).to(dtype)).sum() for o in outs)
    return [o.detach() for o in outs] + list(torch.autograd.grad(total, t))


def main() -> int:
    """Compares; prints the worst relative error of every dtype."""
    want = run(plain, torch.float64, False)
    bad = 0
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 2e-5), (torch.bfloat16, 8e-2)):
        got = run(cpu, dtype, True)
        worst = max(float((x.double() - y).norm() / (y.norm() + 1e-30)) for x, y in zip(got, want))
        print(f"{isa()} {dtype}: {worst:.2e}, bound {bound:.0e}")
        bad += not worst <= bound
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
