"""joint_bce on a GPU: shapes, the launch, registration."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from hhmpn_fast.kernels.launch import chosen, run
from hhmpn_fast.kernels.records import LossForm
from hhmpn_fast.ops.bodies import implement
from hhmpn_fast.ops.readout import JOINT_BCE


def shapes(i: SimpleNamespace) -> dict[str, Tensor]:
    """The loss and the logits' gradient, empty; fp32 whatever the logits are, so that a scaled loss fits."""
    return {
        "loss": i.logits.new_empty((), dtype=torch.float32),
        "d_logits": i.logits.new_empty(i.logits.shape, dtype=torch.float32),
    }


def forward(i: SimpleNamespace, keep: bool) -> dict[str, Tensor]:
    """The loss and, fp32, the logits' gradient; see forward.py."""
    from hhmpn_fast.kernels.joint_bce.forward import joint_bce_forward

    logits, targets, d_logits = i.logits.contiguous(), i.targets.contiguous(), shapes(i)["d_logits"]
    if logits.numel() == 0:
        return {"loss": logits.sum(dtype=torch.float32), "d_logits": d_logits}
    loss = logits.new_empty(1, dtype=torch.float32)
    entry = chosen("joint_bce_forward", logits.view(-1, 1))
    run(
        joint_bce_forward,
        (1,),
        entry,
        LossForm(B=entry.m, WEIGHTED=i.label_weights is not None),
        logits=logits,
        targets=targets,
        label_weights=None if i.label_weights is None else i.label_weights.contiguous(),
        loss=loss,
        d_logits=d_logits,
        steps=logits.shape[0],
        count=targets.numel(),
        labels=targets.shape[1],
        intermediate=i.intermediate_weight,
    )
    return {"loss": loss[0], "d_logits": d_logits}


implement(JOINT_BCE, "triton", forward, None, shapes, keeps=("Tensor d_logits",))
