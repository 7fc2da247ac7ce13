"""infer: a frozen model's whole forward pass on packed weights, embed, f2f layer after layer and tower in one op.

Weights are those of `joint_loss`, packed for one process by the backend that runs them.
"""

from __future__ import annotations

from hhmpn_fast.ops.joint_loss import WEIGHTS
from hhmpn_fast.ops.op import Op

INFER = Op(
    f"infer(Tensor[] xs, Tensor offsets, Tensor present, {WEIGHTS}, Tensor? mask, int steps) -> Tensor logits",
    inference=True,
)
