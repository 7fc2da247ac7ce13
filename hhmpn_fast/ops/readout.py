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

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hhmpn_fast.backends.record import Body
from hhmpn_fast.ops.op import Op

READOUT = Op("readout(Tensor u, Tensor present, Tensor? wl, Tensor wo) -> Tensor fused, Tensor logits, Tensor alpha")
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


def readout(
    u: Tensor, present: Tensor, wl: Tensor | None, wo: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Eqs 15-17: fused states (B, L, d), logits (B, L), modality weights (M, B, L).

    `wl=None` is the ablation "w/o M2L": the plain sum over the modalities present, weights 1.
    """
    if wl is None:
        alpha = present[:, :, None].to(u.dtype).expand(u.shape[:3])
    else:
        scores = (u @ wl).masked_fill(~present[:, :, None], float("-inf"))
        alpha = torch.softmax(scores, 0)
    # An absent modality's states may be anything, NaN included: they are cleared, not multiplied by 0.
    fused = torch.where(present[:, :, None, None], alpha[..., None] * u, 0.0).sum(0)
    logits = (fused * wo).sum(-1)
    return fused, (logits if bias is None else logits + bias), alpha


def joint_bce(
    logits: Tensor, targets: Tensor, intermediate_weight: float, label_weights: Tensor | None = None
) -> Tensor:
    """Eqs 18-20 for logits (T, B, L) and targets (B, L) in [0, 1]: a scalar, 0 for an empty batch.

    `label_weights` (L,) scales each label's positive term; None is the paper's.
    """
    if logits.shape[1] == 0:
        return logits.sum()
    losses = F.binary_cross_entropy_with_logits(
        logits, targets.expand_as(logits), reduction="none", pos_weight=label_weights
    ).mean((1, 2))
    return losses[-1] + intermediate_weight * losses[:-1].sum()


BODIES = {"joint_bce": Body(joint_bce), "readout": Body(readout, ("m2l", "output_bias"))}
