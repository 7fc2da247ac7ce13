"""What kernels take: pointers with what describes them, and the constants they are compiled with.

Triton hands a NamedTuple to a kernel field by field. An integer in one is always specialised (1, multiples of 16), so
what varies from batch to batch (rows, segments) stays an argument of its own, under `do_not_specialize`. A form is one
constant; kernels bind its fields to names of their own, which every triton from 3.5 on takes as constants.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from hhmpn_fast.ops.dropout import threshold


class Rows(NamedTuple):
    """A matrix: its pointer, None where there is none, and the elements from a row to the next."""

    ptr: Any
    stride: Any

    @classmethod
    def of(cls, matrix: Tensor | None) -> Rows:
        """A tensor whose last axis is dense, the axes before it taken as one."""
        return cls(matrix, 0 if matrix is None else matrix.stride(-2))


class Ragged(NamedTuple):
    """A matrix in segments: segment i has the rows offsets[i] ... offsets[i+1] - 1."""

    ptr: Any
    stride: Any
    offsets: Any


class Drop(NamedTuple):
    """Dropout: [seed, step] (None without), the least word kept, the scale of what is kept, the call's site."""

    rng: Any
    threshold: Any
    scale: Any
    site: Any

    @classmethod
    def of(cls, p: float, rng: Tensor | None, site: int) -> Drop:
        """Of an op's arguments."""
        return cls(rng, threshold(p), 1.0 / (1.0 - p), site)


class Tile(NamedTuple):
    """Rows of a matrix that a tile holds, and which of them are there."""

    rows: Any
    live: Any


class Segment(NamedTuple):
    """A segment that a tile lies in: its number, its first row, the tile's first row, its end."""

    number: Any
    begin: Any
    start: Any
    end: Any


class Keys(NamedTuple):
    """A segment of keys: its first row, and how many."""

    begin: Any
    count: Any


class Sizes(NamedTuple):
    """Features a row, and key segments a query segment reads."""

    dim: Any
    groups: Any


class Pull(NamedTuple):
    """What attention's backward pass starts from.

    context, lse: gradients of the outputs (G, R, d), (G, R).  end, delta: of every row and group, fp32, the scores'
    log-sum-exp, and delta - d_lse, which the pass over queries writes.
    """

    context: Any
    lse: Any
    end: Any
    delta: Any


class Operands(NamedTuple):
    """The three matrices of attention's backward pass, or a tile of each."""

    q: Any
    d_context: Any
    x: Any


class Pair(NamedTuple):
    """Where a row and a key meet: the row's segment's first row, whether both segments are one, the group."""

    begin: Any
    itself: Any
    group: Any


class Kept(NamedTuple):
    """What an update keeps for its backward pass: the mixed state (labels) and the hidden layer, (R, d) each."""

    g: Any
    h: Any


class Scorers(NamedTuple):
    """Readout's weights (d,) and (L, d), or partial sums of their gradients, (blocks, L, d) fp32 each."""

    wl: Any
    wo: Any


class Outputs(NamedTuple):
    """Readout's outputs, fused (B, L, d), logits (B, L) and alpha (M, B, L), or their gradients."""

    fused: Any
    logits: Any
    alpha: Any


class AttentionForm(NamedTuple):
    """D: padded features, EVEN: d == D, BM and BN: rows and keys a tile, BK: features a step of the scores."""

    D: int
    EVEN: bool
    BM: int
    BN: int
    BK: int
    MASK: bool
    SELF: bool
    DROPOUT: bool
    PRECISION: str


class UpdateForm(NamedTuple):
    """D: padded features, EVEN: d == D, BM: rows a tile, BH: hidden units a chunk, BK: features a step."""

    D: int
    EVEN: bool
    BM: int
    BH: int
    BK: int
    SAVE: bool
    DROPOUT: bool
    PRECISION: str


class ProductForm(NamedTuple):
    """BM rows, BN columns, BK features a step; TWO: a second product, GATE and RESIDUAL: the operands are there."""

    BM: int
    BN: int
    BK: int
    TWO: bool
    GATE: bool
    RESIDUAL: bool
    DROPOUT: bool
    PRECISION: str


class GradientForm(NamedTuple):
    """BM rows a step, a tile of BN x BK of the gradient; SUM: of the sum of the sources; STACKED: each has its y."""

    BM: int
    BN: int
    BK: int
    SUM: bool
    STACKED: bool
    DROPOUT: bool
    PRECISION: str


class ReadoutForm(NamedTuple):
    """D: padded features, MP: padded modalities, BB: samples a program."""

    D: int
    MP: int
    BB: int


class LossForm(NamedTuple):
    """B: logits a pass; WEIGHTED: whether the labels have weights."""

    B: int
    WEIGHTED: bool
