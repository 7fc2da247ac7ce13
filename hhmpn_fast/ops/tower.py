"""tower: every label step of Eqs 11-17 as one op.

for t < T:  q = u A_xy[t]                      u (B, L, d), shared by the modalities
            s = softmax(q z^T) z               (M, B, L, d), over the segments of z
            x = update(u, s; xy[t])            Eqs 11-12
            x = update(x, L2L(x A_yy[t], x))   Eqs 13-14
            u, logits[t] = readout(x)          Eqs 15-17

name             shape                meaning
z                (N, d)               nodes, modality-major      offsets  (M*B+1,) int32, segment m*B+b
present          (M, B) bool          an absent modality sends nothing to the readout
label_embedding  (L, d)               every sample's first label states
f2l_*, l2l_*     (S, d, d), (S, d)    a block's weights, S = T sets or 1 for tied steps; no f2l_query: the uniform mean;
                                      no l2l_*: no label-to-label messages
wl, wo           (d,), (L, d)         readout; no wl: the plain sum over the modalities present
mask             (L, L) bool          [i, j] says label i reads label j
logits           (T, B, L)
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hhmpn_fast.ops.dropout import Dropout, arguments, site
from hhmpn_fast.ops.op import Op
from hhmpn_fast.weights import BlockWeights, TowerWeights

BLOCKS = (
    "Tensor? f2l_query, Tensor f2l_value, Tensor f2l_hidden, Tensor f2l_b1, Tensor f2l_output, Tensor f2l_b2, "
    "Tensor? l2l_query, Tensor? l2l_value, Tensor? l2l_hidden, Tensor? l2l_b1, Tensor? l2l_output, Tensor? l2l_b2"
)
TOWER = Op(
    f"tower(Tensor z, Tensor offsets, Tensor present, Tensor label_embedding, {BLOCKS}, Tensor? wl, Tensor wo, "
    "Tensor? mask, int steps, float p, Tensor? rng) -> Tensor logits"
)


def inputs(
    z: Tensor,
    offsets: Tensor,
    present: Tensor,
    label_embedding: Tensor,
    w: TowerWeights,
    steps: int,
    mask: Tensor | None = None,
    dropout: Dropout | None = None,
) -> dict[str, Any]:
    """TOWER's inputs by name, in its order."""
    p, rng, _ = arguments(dropout)
    absent = dict.fromkeys(BlockWeights._fields)
    blocks = {"f2l": w.f2l._asdict(), "l2l": absent if w.l2l is None else w.l2l._asdict()}
    return {
        "z": z,
        "offsets": offsets,
        "present": present,
        "label_embedding": label_embedding,
        **{f"{block}_{name}": t for block, weights in blocks.items() for name, t in weights.items()},
        "wl": w.wl,
        "wo": w.wo,
        "mask": mask,
        "steps": steps,
        "p": p,
        "rng": rng,
    }


def composed(i: SimpleNamespace, ops: SimpleNamespace) -> Tensor:
    """The tower step by step from single ops: TOWER's inputs by name; `ops` holds attention, update_labels, readout."""
    (modalities, batch), (labels, d) = i.present.shape, i.label_embedding.shape
    rows = batch * labels
    u = i.label_embedding.expand(batch, -1, -1).reshape(rows, d)
    q_offsets = torch.arange(0, rows + 1, labels, dtype=torch.int32, device=i.z.device)
    own = torch.arange(0, modalities * rows + 1, labels, dtype=torch.int32, device=i.z.device)
    logits = []
    for t in range(i.steps):
        w = _weights(i, "f2l", t)
        q = torch.zeros_like(u) if w.query is None else u @ w.query
        context, _ = ops.attention(q, i.z, q_offsets, i.offsets, modalities, dropout=_dropout(i, "f2l_attention", t))
        states = ops.update_labels(u, context, w, _dropout(i, "f2l_update", t))
        if i.l2l_value is not None:
            w = _weights(i, "l2l", t)
            flat, dropout = states.view(-1, d), _dropout(i, "l2l_attention", t)
            context, _ = ops.attention(flat @ w.query, flat, own, own, 1, mask=i.mask, dropout=dropout)
            states = ops.update_labels(states, context.view(states.shape), w, _dropout(i, "l2l_update", t))
        fused, out, _ = ops.readout(states.view(modalities, batch, labels, d), i.present, i.wl, i.wo)
        logits.append(out)
        u = fused.reshape(rows, d)
    return torch.stack(logits)


def _weights(i: SimpleNamespace, block: str, t: int) -> BlockWeights:
    """A block's weights at step t; one set serves every step."""
    sets = BlockWeights(**{name: getattr(i, f"{block}_{name}") for name in BlockWeights._fields})
    return sets.at(0 if sets.value.shape[0] == 1 else t)


def _dropout(i: SimpleNamespace, kind: str, t: int) -> Dropout | None:
    return None if i.rng is None else Dropout(i.p, i.rng, site(kind, t))
