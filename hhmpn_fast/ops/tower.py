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

from torch import Tensor

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


def named(w: TowerWeights) -> dict[str, Tensor | None]:
    """The label steps' weights by the op's names."""
    empty = dict.fromkeys(BlockWeights._fields)
    blocks = {"f2l_": w.f2l._asdict(), "l2l_": empty if w.l2l is None else w.l2l._asdict()}
    fields = {prefix + name: t for prefix, block in blocks.items() for name, t in block.items()}
    return {**fields, "wl": w.wl, "wo": w.wo}
