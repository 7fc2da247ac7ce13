"""Eqs 15-20 on the CPU, the readout and the joint loss: csrc/cpu/ops/readout and joint_bce."""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor

from hhmpn_fast.backends.cpu.library import accumulate_dtype
from hhmpn_fast.backends.record import Body
from hhmpn_fast.ops.readout import JOINT_BCE, READOUT


def _readout(i: SimpleNamespace) -> dict[str, Tensor]:
    fused, logits, alpha = i.u.shape[1:], i.u.shape[1:3], i.u.shape[:3]
    return {"fused": i.u.new_empty(fused), "logits": i.u.new_empty(logits), "alpha": i.u.new_empty(alpha)}


def _joint_bce(i: SimpleNamespace) -> dict[str, Tensor]:
    loss = i.logits.new_empty((), dtype=accumulate_dtype(i.logits.dtype))
    return {"loss": loss, "d_logits": i.logits.new_empty(i.logits.shape)}


READOUT.define("cpu", _readout, saves=("fused", "alpha"))
JOINT_BCE.define("cpu", _joint_bce, keeps=("Tensor d_logits",))


BODIES = {
    "joint_bce": Body(JOINT_BCE.on("cpu")),
    "readout": Body(READOUT.on("cpu"), ("m2l", "output_bias")),
}
