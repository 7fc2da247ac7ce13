"""Buffers of one bucket, filled with batch after batch: what a captured step reads.

A fill is one copy a modality, one of the labels, and one of the small table that says how much is real: offsets,
samples and presence, laid end to end. Nothing else is written, so what larger batches left behind stays there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hhmpn_fast.bucket import Bucket, Buffered
from hhmpn_fast.errors import InputError
from hhmpn_fast.lengths import note
from hhmpn_fast.ragged import Ragged


class Buffers:
    """Room for any batch that fits a bucket.

    Args:
        bucket: the capacities.
        like: a batch whose modalities, feature sizes and dtypes the buffers have.
        labels: labels (B, L) like those that come; None where there are none.
        device: where the buffers lie.

    Attributes:
        features: the buffers' batch as `Buffered`, the same tensors whatever they hold.
        labels: (the bucket's samples, L), those behind the real ones anything.
        bytes: what the buffers take.
    """

    def __init__(self, bucket: Bucket, like: Ragged, labels: Tensor | None, device: torch.device) -> None:
        self.bucket = bucket
        segments = len(like.names) * bucket.samples
        values = tuple(v.new_zeros(n, v.shape[1], device=device) for v, n in zip(like.values, bucket.rows))
        self._table = table = _Table.new(segments, device=device)
        present = table.present.view(-1, bucket.samples)
        self.features = Buffered(like.names, values, table.offsets, present, table.samples)
        self.labels = None if labels is None else labels.new_zeros(bucket.samples, *labels.shape[1:], device=device)
        parts = (*values, table.all, *(() if self.labels is None else (self.labels,)))
        self.bytes = sum(t.nbytes for t in parts)
        self._lengths: Tensor | None = None

    def fill(self, batch: Ragged, labels: Tensor | None = None) -> None:
        """Copies a batch in, in the order of the current stream.

        Raises:
            InputError: a batch of other modalities, or one that does not fit; labels missing or beside the point.
        """
        own = Bucket.of(batch, round_samples=False)
        sizes = [v.shape[1] for v in batch.values]
        if batch.names != self.features.names or sizes != [v.shape[1] for v in self.features.values]:
            found = ", ".join(f"{n} of size {e}" for n, e in zip(batch.names, sizes))
            made = ", ".join(f"{n} of size {v.shape[1]}" for n, v in zip(self.features.names, self.features.values))
            raise InputError(f"buffers: found a batch of {found}; expected {made}.")
        if not self.bucket.holds(own):
            raise InputError(f"buffers: found a batch of {own}; expected at most {self.bucket}.")
        if (labels is None) != (self.labels is None):
            found, expected = ("no labels", "some") if labels is None else ("labels", "none")
            raise InputError(f"buffers: found {found}; expected {expected}, as in the first batch.")
        for buffer, v in zip(self.features.values, batch.values):
            buffer[: v.shape[0]].copy_(v, non_blocking=True)
        if labels is not None:
            self.labels[: labels.shape[0]].copy_(labels, non_blocking=True)
        self._lengths = batch.lengths
        held = torch.zeros(len(batch.names), self.bucket.samples, dtype=torch.int64)
        held[:, : batch.batch_size] = batch.lengths
        self._table.all.copy_(self._described(held).all, non_blocking=True)
        note(self.features.offsets, held.flatten())

    def live(self) -> Ragged:
        """The last batch as a `Ragged` over the buffers' own memory, for kernels that read lengths on the host."""
        values = (v[: int(n)] for v, n in zip(self.features.values, self._lengths.sum(1)))
        return Ragged(self.features.names, tuple(values), self._lengths)

    def live_labels(self) -> Tensor | None:
        """The labels of the last batch's samples."""
        return None if self.labels is None else self.labels[: self._lengths.shape[1]]

    def _described(self, held: Tensor) -> _Table:
        """The table of lengths (M, B), in memory that a copy to a GPU need not wait for."""
        out, samples = _Table.new(held.numel(), pin_memory=self._table.all.is_cuda), self._lengths.shape[1]
        torch.cumsum(held.flatten(), 0, out=out.offsets[1:])
        out.samples.fill_(samples)
        present = held > 0
        present[:, samples:] = True
        out.present.copy_(present.flatten())
        return out


class _Table(NamedTuple):
    """How much of the buffers is real, in one piece of memory whose parts are offsets, samples, present."""

    all: Tensor
    offsets: Tensor
    samples: Tensor
    present: Tensor

    @classmethod
    def new(cls, segments: int, **options: Any) -> _Table:
        """An empty batch's."""
        table = torch.zeros(4 * (segments + 2) + segments, dtype=torch.uint8, **options)
        numbers, present = table.split([4 * (segments + 2), segments])
        offsets, samples = numbers.view(torch.int32).split([segments + 1, 1])
        return cls(table, offsets, samples.view(()), present.view(torch.bool))
