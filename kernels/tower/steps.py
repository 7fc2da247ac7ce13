"""The rows of all label steps, and what the single ops' bodies read of one step.

name                     shape                           meaning
segments                 (M B + 1,) int32           offsets of L2L's segments; F2L's queries have the first B
u                        (T + 1, B, L, d)           fused states: the embedding's, then every step's
q_f2l, q_l2l             (T, B, L, d), (T, M, B, L, d)   queries
contexts, g, h, states   (2, T, M, B, L, d)         of both blocks
lse                      (2, T, M, B, L)            fp32
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import SimpleNamespace

import torch
from torch import Tensor

from hhmpn_fast.ops.dropout import site
from hhmpn_fast.weights import BlockWeights

BLOCKS = ("f2l", "l2l")
KEEPS = ("segments", "u", "q_f2l", "q_l2l", "contexts", "g", "h", "states", "lse")


def rows_of(i: SimpleNamespace, steps: int) -> dict[str, Tensor]:
    """Room for the rows of so many steps, for u of all and for the segments."""
    (modalities, batch), (labels, d) = i.present.shape, i.label_embedding.shape
    shared, own = (batch, labels, d), (modalities, batch, labels, d)
    made = {"u": (i.steps + 1, *shared), "q_f2l": (steps, *shared), "q_l2l": (steps, *own)}
    made |= dict.fromkeys(("contexts", "g", "h", "states"), (len(BLOCKS), steps, *own))
    room = {name: i.z.new_empty(shape) for name, shape in made.items()}
    segments = i.z.new_empty(modalities * batch + 1, dtype=torch.int32)
    return room | {"segments": segments, "lse": i.z.new_empty(len(BLOCKS), steps, *own[:-1], dtype=torch.float32)}


class Steps:
    """A call's inputs `i` and rows of its steps by name, or those of one step for all."""

    def __init__(self, i: SimpleNamespace, rows: Mapping[str, Tensor]) -> None:
        self.i, self._rows = i, rows
        (self.modalities, self.batch), (self.labels, self.dim) = i.present.shape, i.label_embedding.shape
        self.rows = torch.Size((self.modalities, self.batch, self.labels, self.dim))
        self._sets = {
            block: [
                dict(zip(BlockWeights._fields, one))
                for one in zip(*(getattr(i, f"{block}_{name}").unbind() for name in BlockWeights._fields))
            ]
            for block in BLOCKS
        }

    def with_rows(self, rows: Mapping[str, Tensor]) -> Steps:
        """The same call with other rows."""
        other = copy.copy(self)
        other._rows = rows
        return other

    def kind(self, name: str) -> Tensor:
        """Rows of every step."""
        return self._rows[name]

    def of(self, name: str, block: str, t: int) -> Tensor:
        """Rows of a step."""
        of_block = self._rows[name][BLOCKS.index(block)]
        return of_block[min(t, of_block.shape[0] - 1)]

    def queries(self, block: str, t: int) -> Tensor:
        """Queries of a step, (rows, d)."""
        rows = self._rows[f"q_{block}"]
        return rows[min(t, rows.shape[0] - 1)].view(-1, self.dim)

    def states(self, block: str, t: int) -> Tensor:
        """The states that a block of a step starts from, (rows, d)."""
        return (self._rows["u"][t] if block == "f2l" else self.of("states", "f2l", t)).view(-1, self.dim)

    def weights(self, block: str, t: int) -> dict[str, Tensor]:
        """A block's set of a step."""
        sets = self._sets[block]
        return sets[min(t, len(sets) - 1)]

    def attention(self, block: str, t: int) -> SimpleNamespace:
        """attention's inputs."""
        i, segments = self.i, self.kind("segments")
        own = {"p": i.p, "rng": i.rng, "site": site(f"{block}_attention", t), "exclude_self": False}
        if block == "f2l":
            own |= {"x": i.z, "q_offsets": segments[: self.batch + 1], "x_offsets": i.offsets, "mask": None}
            return SimpleNamespace(q=self.queries(block, t), groups=self.modalities, **own)
        own |= {"x": self.states("l2l", t), "q_offsets": segments, "x_offsets": segments, "mask": i.mask}
        return SimpleNamespace(q=self.queries(block, t), groups=1, **own)

    def update(self, block: str, t: int) -> SimpleNamespace:
        """update's inputs; F2L's states are shared by the modalities."""
        context = self.of("contexts", block, t).view(self.modalities, -1, self.dim)
        own = {"p": self.i.p, "rng": self.i.rng, "site": site(f"{block}_update", t)}
        return SimpleNamespace(state=self.states(block, t), context=context, **self.weights(block, t), **own)

    def readout(self, t: int) -> SimpleNamespace:
        """readout's inputs."""
        u, i = self.of("states", "l2l", t), self.i
        return SimpleNamespace(u=u, present=i.present, wl=i.wl, wo=i.wo)
