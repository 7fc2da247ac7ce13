"""The ops, each run by the chosen backend; one stem names an op here, in kernels/, csrc/, tests/ and bench/."""

from __future__ import annotations

from hhmpn_fast.ops.attention import Attention, Segments, draws_ahead
from hhmpn_fast.ops.dropout import Block, Dropout, draw_ahead, site
from hhmpn_fast.ops.embed import Embed, query_matrix, value_matrix
from hhmpn_fast.ops.readout import JointLoss, Readout
from hhmpn_fast.ops.update import Update, UpdateOptions
from hhmpn_fast.weights import BlockWeights, Norms, TowerWeights

__all__ = [
    "Block",
    "BlockWeights",
    "Dropout",
    "JointLoss",
    "Norms",
    "Ops",
    "Segments",
    "TowerWeights",
    "UpdateOptions",
    "absorb",
    "attention",
    "draw_ahead",
    "draws_ahead",
    "embed",
    "joint_bce",
    "query_matrix",
    "readout",
    "site",
    "update_features",
    "update_labels",
    "value_matrix",
]


class Ops(Attention, Embed, Readout, Update):
    """Every op's public function: on the chosen backend, or with `Ops(bodies)` on the one whose bodies these are."""


_chosen = Ops()
embed, absorb, attention = _chosen.embed, _chosen.absorb, _chosen.attention
update_labels, update_features = _chosen.update_labels, _chosen.update_features
readout, joint_bce = _chosen.readout, _chosen.joint_bce
