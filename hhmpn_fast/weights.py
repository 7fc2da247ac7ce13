"""Weights as the ops read them: one record, one order and one set of names, in every language.

    query    A = W1^T W2 / sqrt(d / H)   (d, H*d)                Eqs 3-5: q = v A; None is the uniform mean
    value    W^v                         (d, H*d)                Eq 6, block-structured for H > 1 heads
    hidden   W^r                         (h, d)                  Eq 7 of a label block
             C_m = W^r_m W^v             (M, h, H*d)             Eq 10 of a feature block, read from contexts
    b1       b1                          (h,)
    output   W^b                         (d, h)
    b2       b2                          (d,)

All are (out, in), y = x W^T, but `query`, from the right: q = v A. A label block has one set a label step, along a
leading axis S = T, or S = 1 where the steps share one; `BlockWeights.at` takes a set out.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class BlockWeights(NamedTuple):
    """One MP + UPD pair; see the table above."""

    query: Tensor | None
    value: Tensor
    hidden: Tensor
    b1: Tensor
    output: Tensor
    b2: Tensor

    def at(self, index: int) -> BlockWeights:
        """The set of one label step."""
        return BlockWeights(*(None if t is None else t[index] for t in self))

    def sets(self) -> list[BlockWeights]:
        """Every label step's."""
        return [BlockWeights(*parts) for parts in zip(*(_unbound(t, self.b1.shape[0]) for t in self))]


def _unbound(t: Tensor | None, count: int) -> tuple[Tensor | None, ...]:
    return (None,) * count if t is None else t.unbind(0)


class Norms(NamedTuple):
    """LayerNorm after both residuals of a block (`norm="post"`): weight and bias (d,) of each."""

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor

    def at(self, index: int) -> Norms:
        """The set of one label step."""
        return Norms(*(t[index] for t in self))


class TowerWeights(NamedTuple):
    """The label steps' own: both blocks (S, ...), W^l (d,) or None for the plain sum, W^o (L, d).

    `l2l` is None without label-to-label messages.
    """

    f2l: BlockWeights
    l2l: BlockWeights | None
    wl: Tensor | None
    wo: Tensor


class ModelWeights(NamedTuple):
    """A whole model's.

    embed: W_x (d, e_m) of each modality.  embed_bias: (d,) of each, or None.  f2f: each layer's, `hidden` C (M, h, d).
    label_embedding: (L, d), every sample's first label states.  f2l, l2l, wl, wo: those of `TowerWeights`.
    """

    embed: list[Tensor]
    embed_bias: list[Tensor | None]
    f2f: list[BlockWeights]
    f2l: BlockWeights
    l2l: BlockWeights | None
    label_embedding: Tensor
    wl: Tensor | None
    wo: Tensor

    @property
    def tower(self) -> TowerWeights:
        """The part that the label steps read."""
        return TowerWeights(self.f2l, self.l2l, self.wl, self.wo)
