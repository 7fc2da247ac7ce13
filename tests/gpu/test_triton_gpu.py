"""On a GPU: the kernels against float64, whole models, CUDA graphs, torch.compile. Run with `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch
from model_cases import random_batch, random_model
from torch import Tensor
from triton_support.compare import ROUNDING, assert_close, clear_rows, leaves, offsets_of, pull

from hhmpn_fast import ops
from hhmpn_fast.backends import use_backend
from hhmpn_fast.backends.plain import BACKEND as plain
from hhmpn_fast.kernels import BACKEND as kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def dropout() -> ops.Dropout:
    return ops.Dropout(0.3, torch.tensor([2**35 + 11, 7], device="cuda"), ops.site("f2f_attention", 1))


def hold(name: str, runs: list[list[Tensor]]) -> None:
    for i, (found, exact, eager) in enumerate(zip(*runs)):
        assert_close(f"{name} {i}", found.cpu(), exact.detach().cpu(), eager.cpu(), 3)


@pytest.mark.parametrize("dim", [64, 100, 256, 512])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("longest", [20, 200])
def test_attention(dim: int, dtype: torch.dtype, longest: int) -> None:
    torch.manual_seed(0)
    lengths = torch.randint(0, longest, (12,)).tolist()
    table = offsets_of(lengths).cuda()
    q = (torch.randn(sum(lengths), dim, device="cuda") * dim**-0.5).to(dtype)
    x = torch.randn(sum(lengths), dim, device="cuda").to(dtype)
    runs = []
    for kind, module in ((dtype, kernels), (torch.float64, plain), (dtype, plain)):
        inputs = leaves(q.to(kind), x.to(kind))
        context, lse = module.attention(*inputs, table, table, 3, dropout=dropout())
        if not runs:
            weights = torch.randn(context.shape, device="cuda")
        runs.append([context, lse, *pull([context], inputs, [weights])])
    hold("attention", runs)


@pytest.mark.parametrize("op", ["update_labels", "update_features"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_update(op: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    dim, rows, sources = 256, 700, 3
    shapes = ((dim, dim), (dim, dim) if op == "update_labels" else (sources, dim, dim), (dim,), (dim, dim), (dim,))
    w = [torch.randn(*s, device="cuda") * dim**-0.5 for s in shapes]
    state, context = torch.randn(rows, dim, device="cuda"), torch.randn(sources, rows, dim, device="cuda")
    runs = []
    for kind, module in ((dtype, kernels), (torch.float64, plain), (dtype, plain)):
        first, second, *rest = inputs = leaves(*(t.to(dtype).to(kind) for t in (state, context, *w)))
        out = getattr(module, op)(first, second, ops.BlockWeights(None, *rest), dropout())
        if not runs:
            first, second, *rest = (t.detach().double() for t in inputs)
            clear = clear_rows(op, first, second, ops.BlockWeights(None, *rest), 4 * ROUNDING[dtype])
            weights = torch.randn(out.shape, device="cuda") * clear
        runs.append([out, *pull([out], inputs, [weights])])
    hold(op, runs)


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_model_equals_the_torch_backend(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", precision)
    model, generator = random_model(3, torch.float32, modalities={"m0": 3, "m1": 5}, dim=64, dropout=0.2)
    batch = random_batch(generator, {"m0": 3, "m1": 5}, 9, 70, torch.float32).to("cuda")
    model.cuda()
    runs = []
    for backend, kind in (("triton", torch.float32), ("torch", torch.float64), ("torch", torch.float32)):
        model.to(kind).seed_dropout(3)
        values = tuple(v.to(kind) for v in batch.values)
        with use_backend(backend):
            logits = model(type(batch)(batch.names, values, batch.lengths).to("cuda"))
        grads = torch.autograd.grad(logits.sum(), list(model.parameters()), allow_unused=True)
        runs.append([logits, *(torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), grads))])
        model.to(torch.float32)
    hold("model", runs)


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
