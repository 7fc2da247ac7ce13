"""The `torch` backend: every op in plain, packed PyTorch on any device and dtype; autograd derives its gradients."""

from __future__ import annotations

from hhmpn_fast.backends import Call
from hhmpn_fast.ops.attention import attention
from hhmpn_fast.ops.embed import absorb, embed
from hhmpn_fast.ops.readout import readout
from hhmpn_fast.ops.update import update_features, update_labels

__all__ = ["absorb", "attention", "embed", "readout", "update_features", "update_labels", "why_not"]


def why_not(op: str, call: Call) -> str | None:
    """Plain PyTorch runs everything it has."""
    return None
