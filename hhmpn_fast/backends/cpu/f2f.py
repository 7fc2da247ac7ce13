"""f2f on the CPU: csrc/cpu/ops/f2f."""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor

from hhmpn_fast.backends.cpu import attention, update
from hhmpn_fast.backends.cpu.library import accumulate_dtype
from hhmpn_fast.backends.record import Body
from hhmpn_fast.ops import Ops
from hhmpn_fast.ops.dropout import Dropout, arguments, site
from hhmpn_fast.ops.f2f import F2F
from hhmpn_fast.weights import BlockWeights

OWN = Ops({**attention.BODIES, **update.BODIES})
KEPT = ("q", "w", "s", "h")


def _shapes(i: SimpleNamespace) -> dict[str, Tensor]:
    lse = i.v.new_empty(i.v.shape[0], i.hidden.shape[0], dtype=accumulate_dtype(i.v.dtype))
    return {"lse": lse, **{name: i.v.new_empty(i.v.shape) for name in ("z", *KEPT)}}


F2F.define("cpu", _shapes, keeps=tuple(f"Tensor {name}" for name in (*KEPT, "lse")))


def f2f(v: Tensor, offsets: Tensor, w: BlockWeights, dropout: Dropout | None = None, layer: int = 0) -> Tensor:
    """Eqs 3-5 and 9-10 for all nodes v (N, d) in one op -> z (N, d); w.query is A (d, d), w.hidden is C (M, d, d).

    With one modality the projected form costs more than the contexts', so the two single ops run instead.
    """
    if w.hidden.shape[0] == 1:
        at = dropout and dropout.at("f2f_attention", layer)
        context, _ = OWN.attention(v @ w.query, v, offsets, offsets, 1, dropout=at)
        return OWN.update_features(v, context, w, dropout and dropout.at("f2f_update", layer))
    p, rng, base = arguments(dropout)
    sites = {f"{kind}_site": base + site(f"f2f_{kind}", layer) for kind in ("attention", "update")}
    return F2F("cpu", v=v, offsets=offsets, **w._asdict(), p=p, rng=rng, **sites)


HOLDS = ("dropout", "f2f_layers")
BODIES = {"f2f": Body(f2f, (*HOLDS, "one modality"))}
