"""update on the CPU: csrc/cpu/ops/update."""

from __future__ import annotations

import math
from types import SimpleNamespace

from torch import Tensor

from hhmpn_fast.backends.record import Body
from hhmpn_fast.ops.dropout import Dropout, arguments
from hhmpn_fast.ops.update import EQUATIONS, UPDATE, UpdateOptions
from hhmpn_fast.weights import BlockWeights


def _shapes(i: SimpleNamespace) -> dict[str, Tensor]:
    out = i.state.new_empty(i.state.shape if i.hidden.dim() == 3 else i.context.shape)
    rows = math.prod(out.shape[:-1])
    return {"out": out, "g": out.new_empty(rows, out.shape[-1]), "h": out.new_empty(rows, i.b1.shape[0])}


UPDATE.define("cpu", _shapes, keeps=("Tensor g", "Tensor h"))


def update_labels(
    u: Tensor,
    context: Tensor,
    w: BlockWeights,
    dropout: Dropout | None = None,
    options: UpdateOptions = EQUATIONS,
) -> Tensor:
    """u (B*L, d) or (M, B*L, d), context (M, B*L, d) -> (M, B*L, d); see `hhmpn_fast.ops.update`."""
    options.must_be_own("update_labels")
    return _update(u, context, w, dropout)


def update_features(
    v: Tensor,
    context: Tensor,
    w: BlockWeights,
    dropout: Dropout | None = None,
    options: UpdateOptions = EQUATIONS,
) -> Tensor:
    """v (N, d), context (M, N, d), w.hidden holding C (M, h, d) -> z (N, d); see `hhmpn_fast.ops.update`."""
    options.must_be_own("update_features")
    return _update(v, context, w, dropout)


def _update(state: Tensor, context: Tensor, w: BlockWeights, dropout: Dropout | None) -> Tensor:
    p, rng, site = arguments(dropout)
    weights = {name: value for name, value in w._asdict().items() if name != "query"}
    return UPDATE("cpu", state=state, context=context, **weights, p=p, rng=rng, site=site)


BODIES = {"update_labels": Body(update_labels), "update_features": Body(update_features)}
