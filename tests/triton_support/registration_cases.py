"""The ops as PyTorch sees them: schemas, fake kernels, autograd, tracing. Run by test_triton_interpreter."""

from __future__ import annotations

import pytest
import torch

from hhmpn_fast import kernels, ops
from triton_support import guard
from triton_support.compare import leaves, offsets_of

guard.install()
RNG = torch.tensor([5, 1])
TESTS = ("test_schema", "test_faketensor", "test_autograd_registration")


def arguments(name: str) -> tuple:
    """A call of an op."""
    torch.manual_seed(0)
    table, d = offsets_of([3, 2]), 16
    if name == "attention":
        return (*leaves(torch.randn(5, d), torch.randn(5, d)), table, table, None, RNG, 2, False, 0.3, 256)
    if name == "readout":
        u, wl, wo = leaves(torch.randn(2, 3, 4, d), torch.randn(d), torch.randn(4, d))
        return u, torch.ones(2, 3, dtype=torch.bool), wl, wo
    if name == "joint_bce":
        return *leaves(torch.randn(2, 3, 4)), torch.ones(3, 4), None, 0.3
    features = name == "update_features"
    shapes = ((5, d), (2, 5, d) if features else (10, d), (d, d), (2, d, d) if features else (d, d), (d,), (d, d), (d,))
    return *leaves(*(torch.randn(*s) for s in shapes)), RNG, True, 0.3, 256


@pytest.mark.parametrize("name", ["attention", "update_labels", "update_features", "readout", "joint_bce"])
def test_opcheck(name: str) -> None:
    import hhmpn_fast.kernels.attention_op  # noqa: F401
    import hhmpn_fast.kernels.readout_op  # noqa: F401
    import hhmpn_fast.kernels.update_op  # noqa: F401

    op = getattr(torch.ops.hhmpn_fast_triton, name).default
    torch.library.opcheck(op, arguments(name), test_utils=TESTS)


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
