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

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hhmpn_fast.ops.dropout import Dropout, arguments
from hhmpn_fast.ops.op import Op, names
from hhmpn_fast.weights import BlockWeights, TowerWeights

BLOCKS = (
    "Tensor? f2l_query, Tensor f2l_value, Tensor f2l_hidden, Tensor f2l_b1, Tensor f2l_output, Tensor f2l_b2, "
    "Tensor? l2l_query, Tensor? l2l_value, Tensor? l2l_hidden, Tensor? l2l_b1, Tensor? l2l_output, Tensor? l2l_b2"
)
TOWER = Op(
    f"tower(Tensor z, Tensor offsets, Tensor present, Tensor label_embedding, {BLOCKS}, Tensor? wl, Tensor wo, "
    "Tensor? mask, int steps, float p, Tensor? rng) -> Tensor logits",
    rows=("z",),
    weights=("label_embedding", *names(BLOCKS.split(", ")), "wl", "wo"),
)


def named(w: TowerWeights) -> dict[str, Tensor | None]:
    """The label steps' weights by the op's names."""
    empty = dict.fromkeys(BlockWeights._fields)
    blocks = {"f2l_": w.f2l._asdict(), "l2l_": empty if w.l2l is None else w.l2l._asdict()}
    fields = {prefix + name: t for prefix, block in blocks.items() for name, t in block.items()}
    return {**fields, "wl": w.wl, "wo": w.wo}


class TowerCall(NamedTuple):
    """A call with its weights in records; see the table above."""

    z: Tensor
    offsets: Tensor
    present: Tensor
    label_embedding: Tensor
    weights: TowerWeights
    steps: int
    mask: Tensor | None = None
    dropout: Dropout | None = None

    def inputs(self) -> dict[str, Any]:
        """TOWER's inputs by name."""
        p, rng, _ = arguments(self.dropout)
        data = {"z": self.z, "offsets": self.offsets, "present": self.present, "label_embedding": self.label_embedding}
        return {**data, **named(self.weights), "mask": self.mask, "steps": self.steps, "p": p, "rng": rng}


def composed(call: TowerCall, attention: Callable, update_labels: Callable, readout: Callable) -> Tensor:
    """The tower step by step from a backend's single ops: logits (T, B, L)."""
    (modalities, batch), (labels, d), w = call.present.shape, call.label_embedding.shape, call.weights
    rows, device = batch * labels, call.z.device
    u = call.label_embedding.expand(batch, -1, -1).reshape(rows, d)
    q_offsets = torch.arange(0, rows + 1, labels, dtype=torch.int32, device=device)
    own = torch.arange(0, modalities * rows + 1, labels, dtype=torch.int32, device=device)
    logits = []
    for t in range(call.steps):

        def at(kind: str, t: int = t) -> Dropout | None:
            return call.dropout and call.dropout.at(kind, t)

        block = w.f2l.at(0 if w.f2l.value.shape[0] == 1 else t)
        q = torch.zeros_like(u) if block.query is None else u @ block.query
        context, _ = attention(q, call.z, q_offsets, call.offsets, modalities, dropout=at("f2l_attention"))
        states = update_labels(u, context, block, at("f2l_update"))
        if w.l2l is not None:
            block = w.l2l.at(0 if w.l2l.value.shape[0] == 1 else t)
            flat = states.view(-1, d)
            context, _ = attention(flat @ block.query, flat, own, own, 1, mask=call.mask, dropout=at("l2l_attention"))
            states = update_labels(states, context.view(states.shape), block, at("l2l_update"))
        fused, out, _ = readout(states.view(modalities, batch, labels, d), call.present, w.wl, w.wo)
        logits.append(out)
        u = fused.reshape(rows, d)
    return torch.stack(logits)
