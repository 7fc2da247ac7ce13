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
NAMES = ("attention", "update of labels", "update of features", "readout", "joint_bce", "tower", "embed", "absorb")
TESTS = ("test_schema", "test_faketensor", "test_autograd_registration")


def inputs(name: str) -> dict:
    """The inputs of a call of an op; `update` by its form."""
    torch.manual_seed(0)
    table, d = offsets_of([3, 2]), 16
    if name == "attention":
        q, x = leaves(torch.randn(5, d), torch.randn(5, d))
        options = {"groups": 2, "mask": None, "exclude_self": False, "p": 0.3, "rng": RNG, "site": 256}
        return {"q": q, "x": x, "q_offsets": table, "x_offsets": table, **options}
    if name == "tower":
        block = {"query": (2, d, d), "value": (2, d, d), "hidden": (2, d, d), "b1": (2, d), "output": (2, d, d)}
        own = {f"{of}_{name}": shape for of in ("f2l", "l2l") for name, shape in (block | {"b2": (2, d)}).items()}
        own |= {"z": (5, d), "label_embedding": (3, d), "wl": (d,), "wo": (3, d)}
        rest = {"offsets": table, "present": torch.ones(2, 1, dtype=torch.bool), "mask": None}
        drawn = leaves(*(torch.randn(*shape) for shape in own.values()))
        return {**dict(zip(own, drawn)), **rest, "steps": 2, "p": 0.3, "rng": RNG}
    if name == "absorb":
        left, right = leaves(torch.randn(2, d, d), torch.randn(d, d))
        return {"left": left.mT, "right": right.expand(2, d, d), "scale": 0.3, "half": False}
    if name == "embed":
        x, w, b = leaves(torch.randn(5, 3), torch.randn(d, 3), torch.randn(d))
        return {"xs": [x, x[:2]], "weights": [w, w], "biases": [b, b]}
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
@pytest.mark.parametrize("name", NAMES)
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
