"""readout and the joint loss as compiled for sm_80, executed: forward, gradients, absent modalities."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
from hhmpn_fast.kernels.joint_bce import op as joint_bce  # noqa: E402
from hhmpn_fast.kernels.launch_table import Entry  # noqa: E402
from tests.ops.under import kernels, plain  # noqa: E402
from tests.triton.support.compare import leaves  # noqa: E402
from tests.triton.support.execute import DTYPES, close, executed  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:triton")


@pytest.mark.parametrize("mode", ["lockstep", "warps"])
@pytest.mark.parametrize("dim", [64, 50])
@pytest.mark.parametrize("dtype", ["bf16", "ieee"])
def test_readout(dtype: str, dim: int, mode: str) -> None:
    torch.manual_seed(2)
    modalities, batch, labels = 3, 5, 2
    kind = DTYPES[dtype]
    u, wl, wo = (torch.randn(*s).to(kind) for s in ((modalities, batch, labels, dim), (dim,), (labels, dim)))
    present = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 0, 1, 0], [1, 1, 1, 0, 1]], dtype=torch.bool)
    exact_inputs = leaves(*(t.double() for t in (u, wl, wo)))
    exact = plain.readout(exact_inputs[0], present, *exact_inputs[1:])
    pulls = [torch.randn(t.shape).to(kind) for t in exact]
    wanted = torch.autograd.grad([(t * p.double()).sum() for t, p in zip(exact, pulls)], exact_inputs)
    u[~present] = torch.nan  # what an absent modality holds reaches nothing
    inputs = leaves(u, wl, wo)
    with executed(dtype, mode):
        outputs = kernels.readout(inputs[0], present, *inputs[1:])
        found = torch.autograd.grad([(t * p).sum() for t, p in zip(outputs, pulls)], inputs)
    for name, one, right in zip(("fused", "logits", "alpha"), outputs, exact):
        close(name, one, right, dtype)
    for name, one, right in zip(("u", "wl", "wo"), found, wanted):
        close(name, one, right, dtype)


@pytest.mark.parametrize("mode", ["lockstep", "warps"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["bf16", "ieee"])
def test_joint_loss_and_its_gradient(dtype: str, weighted: bool, mode: str) -> None:
    torch.manual_seed(3)
    steps, batch, labels = 3, 30, 7
    kind = DTYPES[dtype]
    logits = (torch.randn(steps, batch, labels) * 9).to(kind)
    targets = torch.rand(batch, labels).round().to(kind)
    weights = (torch.rand(labels) + 0.5).to(kind) if weighted else None
    i = SimpleNamespace(logits=logits, targets=targets, label_weights=weights, intermediate_weight=0.3)
    with executed(dtype, mode, Entry(64, 0, 0, 4, 1, "several passes over the logits")):
        found = joint_bce.forward(i, True)
    exact_logits = logits.double().requires_grad_()
    exact = plain.joint_bce(exact_logits, targets.double(), 0.3, None if weights is None else weights.double())
    # The kernel computes in fp32 whatever the logits' dtype; the loss is rounded to theirs.
    close("loss", found["loss"], exact, dtype)
    close("gradient", found["d_logits"], torch.autograd.grad(exact, exact_logits)[0], "ieee")
