"""readout: the labels' states of every modality fused into one, its logits, and the joint loss.

alpha_i^m = softmax_m(W^l u_i^m) over the modalities present      u_i = sum_m alpha_i^m u_i^m      (Eqs 15-16)
logit_i   = W^o_i . u_i                                                                            (Eq 17)
J         = BCE(logits^T) + lambda sum_{t<T} BCE(logits^t),  mean over labels and samples          (Eqs 18-20)

name      shape         meaning
u         (M, B, L, d)  label states         present  (M, B) bool   whether modality m has nodes in sample b
wl        (d,)          W^l                  wo       (L, d)        W^o
fused     (B, L, d)     u^{t+1}              logits   (B, L)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hhmpn_fast.backends import Body, Call
from hhmpn_fast.ops.op import Op
from hhmpn_fast.ops.public import Public

READOUT = Op(
    "readout(Tensor u, Tensor present, Tensor? wl, Tensor wo) -> Tensor fused, Tensor logits, Tensor alpha",
    rows=("u",),
    weights=("wl", "wo"),
)
JOINT_BCE = Op(
    "joint_bce(Tensor logits, Tensor targets, float intermediate_weight, Tensor? label_weights) -> Tensor loss",
    scaled=True,
)


class JointLoss(NamedTuple):
    """What Eqs 18-20 ask of a whole model: T, lambda, (L,) weights of positive terms, bool (L, L) mask of L2L."""

    steps: int
    intermediate_weight: float
    label_weights: Tensor | None = None
    mask: Tensor | None = None


class Readout(Public):
    """readout and joint_bce on any backend."""

    def readout(
        self, u: Tensor, present: Tensor, wl: Tensor | None, wo: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Eqs 15-17: fused states (B, L, d), logits (B, L), modality weights (M, B, L); bias (L,) adds to the logits.

        `wl=None` is the ablation "w/o M2L": the plain sum over the modalities present, weights 1.

        Raises:
            InputError: a backend that cannot run the call.
        """
        call = Call.of(u, "m2l" if wl is None else "", "output_bias" if bias is not None else "")
        fused, logits, alpha = self.body("readout", call)(u=u, present=present, wl=wl, wo=wo)
        return fused, (logits if bias is None else logits + bias), alpha

    def joint_bce(
        self,
        logits: Tensor,
        targets: Tensor,
        intermediate_weight: float,
        label_weights: Tensor | None = None,
        samples: Tensor | None = None,
    ) -> Tensor:
        """Eqs 18-20 for logits (T, B, L) and targets (B, L) in [0, 1]: a scalar, 0 for an empty batch.

        `label_weights` (L,) scales each label's positive term; None is the paper's. `samples` (), an integer on the
        logits' device, says how many of the B are real: the first ones, the mean is over them, and the others get
        gradients of 0 whatever their finite logits and any targets are. Plain PyTorch stands in where the backend has
        none; the value is float32 for shorter logits on cpu and triton. Autocast casts nothing here.
        """
        if samples is not None:
            if logits.device.type != "cpu":
                return live_bce(JOINT_BCE.record(logits, targets, float(intermediate_weight), label_weights), samples)
            # The host reads its own memory: the sum is over the batch's own logits, in their order.
            logits, targets = logits[:, : int(samples)], targets[: int(samples)]
        call = Call(logits.device.type, logits.dtype, logits.shape[-1])
        return self.body("joint_bce", call, BODIES["joint_bce"].run)(
            logits=logits,
            targets=targets,
            intermediate_weight=float(intermediate_weight),
            label_weights=label_weights,
        )


def plain_readout(i: Any) -> tuple[Tensor, Tensor, Tensor]:
    """readout in plain PyTorch."""
    u, present = i.u, i.present
    if i.wl is None:
        alpha = present[:, :, None].to(u.dtype).expand(u.shape[:3])
    else:
        scores = (u @ i.wl).masked_fill(~present[:, :, None], float("-inf"))
        alpha = torch.softmax(scores, 0)
    # An absent modality's states may be anything, NaN included: they are cleared, not multiplied by 0.
    fused = torch.where(present[:, :, None, None], alpha[..., None] * u, 0.0).sum(0)
    return fused, (fused * i.wo).sum(-1), alpha


def plain_joint_bce(i: Any) -> Tensor:
    """joint_bce in plain PyTorch."""
    if i.logits.shape[1] == 0:
        return i.logits.sum()
    losses = F.binary_cross_entropy_with_logits(
        i.logits, i.targets.expand_as(i.logits), reduction="none", pos_weight=i.label_weights
    ).mean((1, 2))
    return losses[-1] + i.intermediate_weight * losses[:-1].sum()


def live_bce(i: Any, samples: Tensor) -> Tensor:
    """joint_bce in plain PyTorch over the first `samples` of the batch, a count that stays on the device."""
    behind = (torch.arange(i.targets.shape[0], device=i.targets.device) >= samples)[:, None]
    targets = i.targets.masked_fill(behind, 0.0).expand_as(i.logits)
    losses = F.binary_cross_entropy_with_logits(i.logits, targets, reduction="none", pos_weight=i.label_weights)
    means = losses.masked_fill(behind, 0.0).sum((1, 2)) / (samples * targets.shape[-1])
    return means[-1] + i.intermediate_weight * means[:-1].sum()


BODIES = {
    "joint_bce": Body(JOINT_BCE.over(plain_joint_bce)),
    "readout": Body(READOUT.over(plain_readout), ("m2l", "output_bias")),
}
