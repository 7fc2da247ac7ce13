"""The `torch` backend: every op in plain, packed PyTorch on any device and dtype; autograd derives its gradients."""

from __future__ import annotations

from hhmpn_fast.backends.record import Backend, Op
from hhmpn_fast.ops.attention import attention
from hhmpn_fast.ops.embed import absorb, embed
from hhmpn_fast.ops.readout import joint_bce, readout
from hhmpn_fast.ops.update import update_features, update_labels

_UPDATE = ("norm", "heads", "message_dropout", "update_hidden")
BACKEND = Backend(
    "torch",
    device="cpu",
    ops={
        "absorb": Op(absorb),
        "attention": Op(attention, ("exclude_self",)),
        "embed": Op(embed),
        "joint_bce": Op(joint_bce),
        "readout": Op(readout, ("m2l", "output_bias")),
        "update_features": Op(update_features, (*_UPDATE, "f2f_residual node", "f2f_residual proj")),
        "update_labels": Op(update_labels, (*_UPDATE, "weights per modality")),
    },
    unavailable=lambda device: None,
)
