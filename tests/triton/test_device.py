"""On a GPU: the kernels against float64, whole models, CUDA graphs, torch.compile. Run with `pytest -m gpu`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from hhmpn_fast import ops
from hhmpn_fast.backends import use_backend
from tests.model.cases import random_batch, random_model
from tests.ops.bounds import TF32, bounds, check_all
from tests.ops.under import kernels, plain
from tests.triton.support.compare import ROUNDING, clear_rows, leaves, offsets_of, pull

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def dropout(device: str = "cuda") -> ops.Dropout:
    return ops.Dropout(0.3, torch.tensor([2**35 + 11, 7], device=device), ops.site("f2f_attention", 1))


def hold(run: Callable, dtype: torch.dtype, cut: float = 0.0) -> None:
    """What `run(ops, dtype, device)` returns of the kernels, against plain PyTorch in float64 on the CPU."""
    found = run(kernels, dtype, "cuda")
    allowed = bounds(lambda: run(plain, torch.float64, "cpu"), dtype, cut)
    check_all([str(i) for i in range(len(found))], found, allowed)


@pytest.mark.parametrize("dim", [64, 100, 256, 512])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("longest", [20, 200])
def test_attention(dim: int, dtype: torch.dtype, longest: int) -> None:
    torch.manual_seed(0)
    lengths = torch.randint(0, longest, (12,)).tolist()
    table = offsets_of(lengths)
    q = (torch.randn(sum(lengths), dim) * dim**-0.5).to(dtype)
    x, weights = torch.randn(sum(lengths), dim).to(dtype), torch.randn(3, sum(lengths), dim).to(dtype)

    def run(module: ModuleType, kind: torch.dtype, device: str) -> list[Tensor]:
        inputs, there = leaves(q.to(device, kind), x.to(device, kind)), table.to(device)
        context, lse = module.attention(*inputs, there, there, 3, dropout=dropout(device))
        return [context, lse, *pull([context], inputs, [weights.to(device)])]

    hold(run, dtype)


@pytest.mark.parametrize("op", ["update_labels", "update_features"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_update(op: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    dim, rows, sources = 256, 700, 3
    shapes = ((dim, dim), (dim, dim) if op == "update_labels" else (sources, dim, dim), (dim,), (dim, dim), (dim,))
    w = [torch.randn(*s) * dim**-0.5 for s in shapes]
    low = [t.to(dtype) for t in (torch.randn(rows, dim), torch.randn(sources, rows, dim), *w)]
    wide = [t.double() for t in low]
    clear = clear_rows(op, *wide[:2], ops.BlockWeights(None, *wide[2:]), 4 * ROUNDING[dtype])
    weights = (torch.randn(*clear.shape[:-1], dim) * clear).to(dtype)

    def run(module: ModuleType, kind: torch.dtype, device: str) -> list[Tensor]:
        first, second, *rest = leaves(*(t.to(device, kind) for t in low))
        out = getattr(module, op)(first, second, ops.BlockWeights(None, *rest), dropout(device))
        return [out, *pull([out], [first, second, *rest], [weights.to(device)])]

    hold(run, dtype)


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_model_equals_the_torch_backend(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", precision)
    model, generator = random_model(3, torch.float32, modalities={"m0": 3, "m1": 5}, dim=64, dropout=0.2)
    batch = random_batch(generator, {"m0": 3, "m1": 5}, 9, 70, torch.float32)
    backend_of = {kernels: "triton", plain: "torch"}

    def run(module: ModuleType, kind: torch.dtype, device: str) -> list[Tensor]:
        there = copy.deepcopy(model).to(device, kind)
        there.seed_dropout(3)
        with use_backend(backend_of[module]):
            logits = there(batch.to(kind).to(device))
        parameters = list(there.parameters())
        grads = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
        return [logits, *(torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads))]

    hold(run, torch.float32, TF32 if precision == "tf32" else 0.0)


def test_same_bits_every_time() -> None:
    table = offsets_of([70, 5, 0, 130]).cuda()
    q, x = leaves(torch.randn(205, 256, device="cuda"), torch.randn(205, 256, device="cuda"))
    first = None
    for _ in range(20):
        context, _ = kernels.attention(q, x, table, table, 2, dropout=dropout())
        found = [context, *torch.autograd.grad(context.sum(), (q, x))]
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(found, first))


def test_cuda_graph() -> None:
    table = offsets_of([70, 5, 0, 130]).cuda()
    q, x = torch.randn(205, 256, device="cuda"), torch.randn(205, 256, device="cuda")
    kernels.attention(q, x, table, table, 2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured, _ = kernels.attention(q, x, table, table, 2)
    q.copy_(torch.randn_like(q))
    graph.replay()
    assert torch.equal(captured, kernels.attention(q, x, table, table, 2)[0])


def test_torch_compile_in_one_graph() -> None:
    table = offsets_of([7, 5]).cuda()
    q, x = leaves(torch.randn(12, 64, device="cuda"), torch.randn(12, 64, device="cuda"))
    run = torch.compile(lambda q, x: kernels.attention(q, x, table, table)[0].sum(), fullgraph=True)
    (found,) = torch.autograd.grad(run(q, x), x)
    (expected,) = torch.autograd.grad(kernels.attention(q, x, table, table)[0].sum(), x)
    assert torch.allclose(found, expected)
