"""Dense ops of the accelerators: outputs and gradients against float64, in the order of memory of their inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hhmpn_fast.ops.embed import ABSORB, EMBED
from hhmpn_fast.ops.readout import JOINT_BCE, plain_joint_bce
from tests.ops.bounds import bounds, check_all
from tests.ops.under import cuda, kernels, plain


def leaves(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [t.to(dtype).requires_grad_() for t in tensors]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_embed(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    sizes, rows, d = (3, 5, 2), (4, 0, 7), 6
    drawn = [torch.randn(n, e) for n, e in zip(rows, sizes)] + [torch.randn(d, e) for e in sizes]
    drawn = [t.to(dtype) for t in [*drawn, *torch.randn(3, d)]]

    def run(ops: object, kind: torch.dtype) -> list[Tensor]:
        own = leaves(drawn, kind)
        v = ops.embed(own[:3], own[3:6], own[6:] if bias else [None] * 3)
        pull = torch.linspace(-1, 1, v.numel(), dtype=kind).view(v.shape)
        return [v, *torch.autograd.grad((v * pull).sum(), own if bias else own[:6])]

    names = [f"{kind}{m}" for kind in ("x", "w", "b") for m in range(3)]
    names = ["v", *(names if bias else names[:6])]
    for ops in (kernels, cuda):
        check_all(names, run(ops, dtype), bounds(lambda: run(plain, torch.float64), dtype))


@pytest.mark.parametrize(("left", "right"), [((4, 3), (3, 5)), ((2, 4, 3), (3, 5)), ((2, 2, 4, 3), (2, 2, 3, 5))])
def test_absorb(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    a, b = torch.randn(left).mT.contiguous(), torch.randn(right)

    def run(ops: object, kind: torch.dtype) -> list[Tensor]:
        first, second = leaves([a, b], kind)
        out = ops.absorb(first.mT, second.expand(*left[:-2], *right[-2:]), 0.3)
        return [out, *torch.autograd.grad(out.square().sum(), (first, second))]

    for ops in (kernels, cuda):
        found = run(ops, torch.float32)
        assert found[1].is_contiguous()  # so that nobody copies it
        check_all(["product", "left", "right"], found, bounds(lambda: run(plain, torch.float64), torch.float32))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(3, 5, 4), (1, 5, 4), (2, 0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_joint_bce(dtype: torch.dtype, shape: tuple[int, ...], weighted: bool) -> None:
    torch.manual_seed(2)
    logits, targets = (8 * torch.randn(shape)).to(dtype), torch.rand(shape[1:]).to(dtype)
    weights = torch.rand(shape[-1]) * 3 if weighted else None

    def run(body: object, kind: torch.dtype) -> list[Tensor]:
        (own,) = leaves([logits], kind)
        asked = {"targets": targets.to(kind), "intermediate_weight": 0.3}
        loss = body(logits=own, label_weights=None if weights is None else weights.to(kind), **asked)
        return [loss, *torch.autograd.grad(loss * 2, own)]

    found = run(JOINT_BCE.on("cuda"), dtype)
    check_all(["loss", "logits"], found, bounds(lambda: run(JOINT_BCE.over(plain_joint_bce), torch.float64), dtype))


def test_a_gradient_that_nobody_asks_for_is_not_made() -> None:
    x, w = torch.randn(4, 3), torch.randn(5, 3, requires_grad=True)
    found = EMBED.registered_backward["cuda"](torch.randn(4, 5), [x], [w], [], [False, True])
    assert [t.shape for t in found] == [w.shape]


def test_products_have_no_second_derivative() -> None:
    a, b = torch.randn(3, 3, requires_grad=True), torch.randn(3, 3, requires_grad=True)
    out = ABSORB("cuda", left=a, right=b, scale=1.0, half=False)
    (grad,) = torch.autograd.grad(out.square().sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(grad.sum(), b)
