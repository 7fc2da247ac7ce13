"""The CUDA ops under torch.compile: schemas, shapes for tracing and gradients, as PyTorch's opcheck asks for them."""

import pytest
import torch

from hhmpn_fast.ops.attention import ATTENTION
from hhmpn_fast.ops.tower import TOWER
from hhmpn_fast.ops.update import UPDATE
from tests.cuda.cases import DTYPES, SWEPT, needs_harness, on_cpu
from tests.cuda.test_tower import Shape, tower, tower_case
from tests.cuda.test_update import inputs as update_tensors
from tests.ops import registration

pytestmark = needs_harness
RNG = torch.tensor([5, 9])


def attention_inputs(dtype: torch.dtype) -> dict[str, object]:
    offsets = torch.tensor([0, 2, 2, 5, 6], dtype=torch.int32)
    q, x = (torch.randn(6, 64).to(dtype).requires_grad_() for _ in range(2))
    call = {"q": q, "x": x, "q_offsets": offsets, "x_offsets": offsets, "groups": 2, "mask": None}
    return call | {"exclude_self": True, "p": 0.25, "rng": RNG, "site": 256}


def update_inputs(dtype: torch.dtype, kind: str) -> dict[str, object]:
    names = ("state", "context", "value", "hidden", "b1", "output", "b2")
    tensors = [t.requires_grad_() for t in update_tensors(kind, 2, 64, dtype, 1)]
    return dict(zip(names, tensors, strict=True)) | {"p": 0.25, "rng": RNG, "site": 256}


def tower_arguments(dtype: torch.dtype) -> dict[str, object]:
    case = tower_case(Shape(2, 2, 3, 2, 2, dropout=0.25, masked=True, longest=3), dtype)
    return case.call([t.requires_grad_() for t in case.leaves]).inputs()


CALLS = {
    "attention": (ATTENTION, attention_inputs),
    "update of labels": (UPDATE, lambda dtype: update_inputs(dtype, "labels")),
    "update of features": (UPDATE, lambda dtype: update_inputs(dtype, "features")),
    "tower": (TOWER, tower_arguments),
}


@pytest.mark.parametrize("dtype", SWEPT)
@pytest.mark.parametrize("call", CALLS)
def test_registered_as_pytorch_asks(call: str, dtype: str) -> None:
    op, inputs = CALLS[call]
    with on_cpu(0):
        registration.check(op, "cuda", **inputs(DTYPES[dtype]))


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "autocast"])
def test_compiled_tower_gives_the_same_bits(mixed: bool) -> None:
    case = tower_case(Shape(2, 2, 3, 2, 2, dropout=0.25, masked=True, longest=3), torch.float32)
    results = []
    for function in (tower, torch.compile(tower, backend="aot_eager", fullgraph=True)):
        leaves = [t.clone().requires_grad_() for t in case.leaves]
        with on_cpu(0):
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                out = function(case.call(leaves))
            out.sum().backward()
        assert out.dtype == (torch.bfloat16 if mixed else torch.float32)
        results.append([out.detach(), *(t.grad for t in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
