"""joint_loss: the joint loss from the features on, with every weight's gradient, as one op.

    loss, logits = joint_bce(tower(f2f(embed(x))), y)        Eqs 3-20, one chunk of samples after another

What a backward pass needs lives for one chunk only, so a training step's memory does not grow with the batch. The
chunks follow from the shapes; dropout draws the masks of the whole batch. Fields are those of `embed`, `f2f` (a list
over layers in each), `tower` and `joint_bce`.
"""

from __future__ import annotations

from hhmpn_fast.ops.op import Op, names
from hhmpn_fast.ops.tower import BLOCKS
from hhmpn_fast.ops.tower import named as _tower
from hhmpn_fast.weights import BlockWeights, ModelWeights

F2F_LAYERS = ", ".join(f"Tensor[] f2f_{name}" for name in BlockWeights._fields)
WEIGHTS = (
    f"Tensor[] embed_weights, Tensor[] embed_biases, {F2F_LAYERS}, Tensor label_embedding, {BLOCKS}, "
    "Tensor? wl, Tensor wo"
)
JOINT_LOSS = Op(
    "joint_loss(Tensor[] xs, Tensor offsets, Tensor present, Tensor targets, Tensor? label_weights, "
    f"{WEIGHTS}, Tensor? mask, int steps, float intermediate_weight, float p, Tensor? rng, int[] attention_sites, "
    "int[] update_sites, int chunk_bytes) -> Tensor loss, Tensor logits",
    rows=("xs",),
    weights=names(WEIGHTS.split(", ")),
    scaled=True,
)
# The gradients it keeps: a tensor or a list for each weight, empty where there is no such weight.
GRADIENTS = tuple(f"{kind.rstrip('?')} d_{name}" for kind, name in (w.split() for w in WEIGHTS.split(", ")))


def named(w: ModelWeights) -> dict[str, object]:
    """A model's weights by the op's names; every embedding has a bias here."""
    layers = {f"f2f_{name}": [getattr(layer, name) for layer in w.f2f] for name in BlockWeights._fields}
    embed = {"embed_weights": w.embed, "embed_biases": w.embed_bias}
    return {**embed, **layers, "label_embedding": w.label_embedding, **_tower(w.tower)}
