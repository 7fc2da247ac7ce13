"""tower on the CPU: csrc/cpu/ops/tower."""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor

from hhmpn_fast.backends.cpu.library import accumulate_dtype
from hhmpn_fast.backends.record import Body
from hhmpn_fast.ops.dropout import Dropout
from hhmpn_fast.ops.tower import TOWER, TowerCall
from hhmpn_fast.weights import TowerWeights

KEPT = ("states", "fused", "queries", "probs", "label_probs", "alpha")


def _shapes(i: SimpleNamespace) -> dict[str, Tensor]:
    (modalities, batch), (labels, d), T = i.present.shape, i.label_embedding.shape, i.steps
    wide, l2l = accumulate_dtype(i.z.dtype), i.l2l_value is not None
    rows, label_rows = modalities * batch * labels, batch * labels
    return {
        "logits": i.z.new_empty(T, batch, labels),
        "states": i.z.new_empty(T, 7 if l2l else 3, rows, d),  # `TowerKind` of csrc/cpu/ops/tower/kernels.h
        "fused": i.z.new_empty(T, label_rows, d),
        "queries": i.z.new_empty(0 if i.f2l_query is None else labels + (T - 1) * label_rows, d),
        "probs": i.z.new_empty(T, i.z.shape[0] * labels, dtype=wide),
        "label_probs": i.z.new_empty(T, rows if l2l else 0, labels, dtype=wide),
        "alpha": i.z.new_empty(T, rows, dtype=wide),
    }


TOWER.define("cpu", _shapes, keeps=tuple(f"Tensor {name}" for name in KEPT))


def tower(
    z: Tensor,
    offsets: Tensor,
    present: Tensor,
    label_embedding: Tensor,
    w: TowerWeights,
    steps: int,
    mask: Tensor | None = None,
    dropout: Dropout | None = None,
) -> Tensor:
    """Logits (T, B, L) of all label steps; see `hhmpn_fast.ops.tower`. float64, float32 or bfloat16 (fp32 sums)."""
    return TOWER("cpu", **TowerCall(z, offsets, present, label_embedding, w, steps, mask, dropout).inputs())


HOLDS = (
    *("dropout", "sharing=tied", "exclude_self", "label_graph=prior", "output_weight=tied", "intermediate=none"),
    *("without=f2f", "without=f2l", "without=l2l", "without=m2l"),
)
BODIES = {"tower": Body(tower, HOLDS)}
