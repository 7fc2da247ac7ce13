"""The ops as PyTorch sees them: schemas, fake kernels, autograd, tracing. Run by test_triton_interpreter."""

from __future__ import annotations

import pytest
import torch

from hhmpn_fast import ops
from tests.ops.under import kernels
from tests.triton.support import guard
from tests.triton.support.compare import leaves, offsets_of

guard.install()
RNG = torch.tensor([5, 1])
TESTS = ("test_schema", "test_faketensor", "test_autograd_registration")


def inputs(name: str) -> dict:
    """The inputs of a call of an op; `update` by its form."""
    torch.manual_seed(0)
    table, d = offsets_of([3, 2]), 16
    if name == "attention":
        q, x = leaves(torch.randn(5, d), torch.randn(5, d))
        options = {"groups": 2, "mask": None, "exclude_self": False, "p": 0.3, "rng": RNG, "site": 256}
        return {"q": q, "x": x, "q_offsets": table, "x_offsets": table, **options}
    if name == "readout":
        u, wl, wo = leaves(torch.randn(2, 3, 4, d), torch.randn(d), torch.randn(4, d))
        return {"u": u, "present": torch.ones(2, 3, dtype=torch.bool), "wl": wl, "wo": wo}
    if name == "joint_bce":
        (logits,) = leaves(torch.randn(2, 3, 4))
        return {"logits": logits, "targets": torch.ones(3, 4), "intermediate_weight": 0.3, "label_weights": None}
    shapes = {"state": (5, d), "context": (2, 5, d), "value": (d, d), "hidden": (d, d), "b1": (d,), "output": (d, d)}
    shapes |= {"b2": (d,)} | ({"hidden": (2, d, d)} if name == "update of features" else {})
    tensors = leaves(*(torch.randn(*shape) for shape in shapes.values()))
    return {**dict(zip(shapes, tensors)), "p": 0.3, "rng": RNG, "site": 256}


@pytest.mark.parametrize("keep", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", ["attention", "update of labels", "update of features", "readout", "joint_bce"])
def test_opcheck(name: str, keep: bool) -> None:
    overload = getattr(torch.ops.hhmpn_fast, f"{name.split()[0]}_triton").default
    given = inputs(name)
    if not keep:
        given = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    torch.library.opcheck(overload, (), {**given, "keep": keep}, test_utils=TESTS)


def test_torch_compile_traces_the_ops_whole() -> None:
    table = offsets_of([3, 2])
    q, x = leaves(torch.randn(5, 16), torch.randn(5, 16))
    dropout = ops.Dropout(0.3, RNG, 256)
    kernels.attention(q, x, table, table)

    def loss(q: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return kernels.attention(q, x, table, table, dropout=dropout)[0].square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(q, x), (q, x))
    expected = torch.autograd.grad(loss(q, x), (q, x))
    assert all(torch.allclose(a, b) for a, b in zip(found, expected))
