"""readout and the joint loss as compiled for sm_80, executed: forward, gradients, absent modalities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from triton_support.execute import DTYPES, close, execute  # noqa: E402

from hhmpn_fast import ops  # noqa: E402
from hhmpn_fast.backends.plain import BACKEND as plain  # noqa: E402
from hhmpn_fast.kernels.configs import Launch, launch  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:triton")


def unset(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What no kernel wrote stays NaN."""
    return torch.full(shape, torch.nan).to(dtype)


@pytest.mark.parametrize("mode", ["lockstep", "warps"])
@pytest.mark.parametrize("dim", [64, 50])
@pytest.mark.parametrize("dtype", ["bf16", "ieee"])
def test_readout(dtype: str, dim: int, mode: str) -> None:
    torch.manual_seed(2)
    modalities, batch, labels = 3, 5, 2
    kind = DTYPES[dtype]
    u, wl, wo = (torch.randn(*s).to(kind) for s in ((modalities, batch, labels, dim), (dim,), (labels, dim)))
    present = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 0, 1, 0], [1, 1, 1, 0, 1]], dtype=torch.bool)
    exact_inputs = [t.double().requires_grad_() for t in (u, wl, wo)]
    exact = plain.readout(exact_inputs[0], present, *exact_inputs[1:])
    u[~present] = torch.nan  # what an absent modality holds reaches nothing
    entry = launch("readout", "half", dim, "sm80")
    blocks = -(-batch // entry.m)
    named = {"u": u, "present": present, "wl": wl, "wo": wo, "modalities": modalities, "batch": batch, "dim": dim}
    named |= {"labels": labels, "fused": unset(batch, labels, dim, dtype=kind)}
    named |= {"logits": unset(batch, labels, dtype=kind), "alpha": unset(modalities, batch, labels, dtype=kind)}
    execute("readout_fwd", dtype, entry, (blocks, labels), mode, {}, **named)
    for name, right in zip(("fused", "logits", "alpha"), exact):
        close(name, named[name], right, dtype)

    pulls = [torch.randn(t.shape).to(kind) for t in exact]
    wanted = torch.autograd.grad([(t * p.double()).sum() for t, p in zip(exact, pulls)], exact_inputs)
    named |= dict(zip(("dfused", "dlogits", "dalpha"), pulls), du=unset(*u.shape, dtype=kind))
    named |= {f"partial_{w}": unset(blocks, labels, dim) for w in ("wl", "wo")}
    execute("readout_bwd", dtype, entry, (blocks, labels), mode, {}, **named)
    close("du", named["du"], wanted[0], dtype)
    close("dwl", named["partial_wl"].sum((0, 1)), wanted[1], dtype)
    close("dwo", named["partial_wo"].sum(0), wanted[2], dtype)


@pytest.mark.parametrize("mode", ["lockstep", "warps"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["bf16", "ieee"])
def test_joint_loss_and_its_gradient(dtype: str, weighted: bool, mode: str) -> None:
    torch.manual_seed(3)
    steps, batch, labels = 3, 30, 7
    logits, targets = (torch.randn(steps, batch, labels) * 9).to(DTYPES[dtype]), torch.rand(batch, labels).round()
    weights = (torch.rand(labels) + 0.5).to(DTYPES[dtype]) if weighted else None
    loss, gradient = unset(1), unset(steps, batch, labels)
    execute(
        "joint_bce_fwd", dtype, Launch(64, 0, 0, 4, 1, "several passes over the logits"), (1,), mode,
        {"WEIGHTED": weighted}, logits=logits, targets=targets.to(DTYPES[dtype]), label_weights=weights, out=loss,
        dlogits=gradient, steps=steps, count=batch * labels, labels=labels, intermediate=0.3, dim=64,
    )  # fmt: skip
    exact_logits = logits.double().requires_grad_()
    exact = ops.joint_bce(exact_logits, targets.double(), 0.3, None if weights is None else weights.double())
    # The kernel computes in fp32 whatever the logits' dtype.
    close("loss", loss[0], exact, "ieee")
    close("gradient", gradient, torch.autograd.grad(exact, exact_logits)[0], "ieee")
