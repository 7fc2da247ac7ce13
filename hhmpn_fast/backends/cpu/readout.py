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


def readout(
    u: Tensor, present: Tensor, wl: Tensor | None, wo: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Fused states (B, L, d), logits (B, L), modality weights (M, B, L) of u (M, B, L, d)."""
    fused, logits, alpha = READOUT("cpu", u=u, present=present, wl=wl, wo=wo)
    return fused, (logits if bias is None else logits + bias), alpha


def joint_bce(
    logits: Tensor, targets: Tensor, intermediate_weight: float, label_weights: Tensor | None = None
) -> Tensor:
    """Eqs 18-20 for logits (T, B, L) and targets (B, L); the value is float32 for bfloat16 logits."""
    weight = float(intermediate_weight)
    return JOINT_BCE("cpu", logits=logits, targets=targets, intermediate_weight=weight, label_weights=label_weights)


BODIES = {"joint_bce": Body(joint_bce), "readout": Body(readout, ("m2l", "output_bias"))}
