"""One batch in buffers of fixed capacity: sizes are the bucket's, how much of them is real lies on the device.

    buffer[m]   (cap_m, e_m)   rows behind the batch's own hold anything, NaN included: no result depends on them
    offsets     (M*B+1,)       int32, those of `Ragged`: nodes stand densely, so every row has the number it has there
    present     (M, B)         a sample behind the last real one counts as present in all: it has no node and no weight
    samples     ()             int32, how many of the B are real

Node tensors are (sum cap_m, d), modality-major. Behind offsets[-1] `dense` and attention give rows of 0 and gradients
of 0, and every other op works row by row: what such a row adds to a weight's gradient is 0 times a finite number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from hhmpn_fast.errors import InputError
from hhmpn_fast.ragged import Ragged

ROWS = 16  # the smallest capacity of a modality


def capacity(count: int, least: int = 1) -> int:
    """`count` rounded up to one of four steps an octave: 16, 20, 24, 28, 32, 40, ..."""
    count = max(count, least)
    step = max((1 << (count - 1).bit_length()) // 8, 1)
    return -(-count // step) * step


class Bucket(NamedTuple):
    """Capacities: rows of every modality, and samples."""

    rows: tuple[int, ...]
    samples: int

    @classmethod
    def of(cls, batch: Ragged, *, round_samples: bool) -> Bucket:
        """The smallest that holds a batch; it follows from the batch alone.

        round_samples: whether samples are rounded up too. Not under dropout: the label states' row numbers, from which
        its masks are drawn, are m*B*L + b*L + l.
        """
        rows = tuple(capacity(v.shape[0], ROWS) for v in batch.values)
        return cls(rows, capacity(batch.batch_size) if round_samples else batch.batch_size)

    def holds(self, other: Bucket) -> bool:
        """Whether it is as large as the other one in everything."""
        return self.samples >= other.samples and all(a >= b for a, b in zip(self.rows, other.rows))

    def __str__(self) -> str:
        return f"{' + '.join(map(str, self.rows))} nodes, {self.samples} samples"


@dataclass(frozen=True, eq=False)
class Buffered:
    """The batch that the buffers hold, read by a model as it reads a `Ragged`; see the table above.

    Attributes:
        names: the M modality names.
        values: the buffers, (cap_m, e_m).
        offsets, present, samples: tensors on the buffers' device.
    """

    names: tuple[str, ...]
    values: tuple[Tensor, ...]
    offsets: Tensor
    present: Tensor
    samples: Tensor
    _constants: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def batch_size(self) -> int:
        """B, the bucket's samples."""
        return self.present.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the buffers lie."""
        return self.offsets.device

    def select(self, names: Sequence[str]) -> Buffered:
        """Refuses: buffers are made for the modalities that are read."""
        raise InputError(f"buffers of {', '.join(self.names)}: asked for {', '.join(names)}; expected the same.")

    def inputs(self) -> list[Tensor]:
        """The features (cap_m, e_m), 0 behind the batch's own rows."""
        counts = self._starts.diff()
        rows = (torch.arange(v.shape[0], device=self.device) for v in self.values)
        return [v.masked_fill((r >= n)[:, None], 0) for v, r, n in zip(self.values, rows, counts)]

    def dense(self, x: Tensor) -> Tensor:
        """Rows (sum cap_m, d) at their modality's capacity, moved to where their offsets are; 0 behind the last."""
        return _Dense.apply(x, self._places)

    def places(self) -> tuple[Tensor, Tensor]:
        """Of every row of the node tensor: its place in its segment, and its modality."""
        rows = torch.arange(sum(v.shape[0] for v in self.values), device=self.device)
        segment = torch.searchsorted(self.offsets[1:], rows, right=True).clamp(max=self.present.numel() - 1)
        place = (rows - self.offsets[segment]).clamp(max=self.longest - 1)
        return place, segment // self.batch_size

    def constant(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives, made for the first step over these buffers and kept: a captured step copies nothing."""
        if name not in self._constants:
            self._constants[name] = make()
        return self._constants[name]

    @property
    def longest(self) -> int:
        """A bound of the segments' lengths."""
        return max(v.shape[0] for v in self.values)

    @property
    def _starts(self) -> Tensor:
        """Where each modality's nodes begin, and where the last one's end: (M+1,)."""
        return self.offsets[:: self.batch_size].contiguous()

    @property
    def _capacities(self) -> Tensor:
        """Where each modality's buffer begins in a concatenation, and where the last one ends: (M+1,)."""
        sizes = [0, *(v.shape[0] for v in self.values)]
        return self.constant("capacities", lambda: torch.tensor(sizes).cumsum(0).to(self.device))

    @property
    def _places(self) -> _Places:
        starts, first = self._starts, self._capacities
        rows = torch.arange(sum(v.shape[0] for v in self.values), device=self.device)
        modality = torch.searchsorted(starts[1:], rows, right=True)
        source = torch.where(rows < starts[-1], rows - starts[modality] + first[modality], 0)
        modality = torch.searchsorted(first[1:], rows, right=True)
        target = rows - first[modality] + starts[modality]
        held = target < starts[modality + 1]
        return _Places(source, rows < starts[-1], torch.where(held, target, 0), held)


class _Places(NamedTuple):
    """From which row each dense one comes, and whether one does; where each row goes, and whether it is real."""

    source: Tensor
    live: Tensor
    target: Tensor
    held: Tensor


class _Dense(torch.autograd.Function):
    """A gather in both directions: no sum, whose order would have to be fixed."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, places: _Places) -> Tensor:
        ctx.save_for_backward(places.target, places.held)
        return torch.where(places.live[:, None], x.index_select(0, places.source), 0.0)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, d_v: Tensor) -> tuple[Tensor, None]:
        target, held = ctx.saved_tensors
        return torch.where(held[:, None], d_v.index_select(0, target), 0.0), None
