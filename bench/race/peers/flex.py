"""FlexAttention over one long packed sequence with a document mask. Forward only: it has no backward on CPUs.

All groups read in one call: the queries are repeated a group, a query sees the keys of its own (modality, sample).
Blocks are found from segment ranges, as building the whole mask would take memory quadratic in nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bench.race.peers.base import Case, Packed
from hhmpn_fast import Ragged

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128


class Indices(NamedTuple):
    """The block masks, and which outputs have a key at all."""

    f2f: BlockMask
    f2l: BlockMask
    f2f_reads: Tensor
    f2l_reads: Tensor


@cache
def compiled() -> Callable[..., Tensor]:
    """FlexAttention needs the compiler to be more than a reference; importing it imports the compiler, hence here."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def block_mask(queries: Tensor, keys: Tensor) -> BlockMask:
    """Rows of equal segment number see each other; blocks whose ranges of numbers do not meet are left out."""
    from torch.nn.attention.flex_attention import BlockMask

    ranges = []
    for segments in (queries, keys):
        blocks = torch.nn.functional.pad(segments, (0, -len(segments) % BLOCK), value=int(segments[-1])).view(-1, BLOCK)
        ranges.append((blocks.min(1).values, blocks.max(1).values))
    (q_low, q_high), (k_low, k_high) = ranges
    meet = (q_low[:, None] <= k_high) & (k_low <= q_high[:, None])
    order = torch.argsort(~meet, dim=1, stable=True).int()

    def same(_b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return queries[q] == keys[k]

    counts = meet.sum(1).int()
    return BlockMask.from_kv_blocks(
        counts[None, None],
        order[None, None].contiguous(),
        BLOCK_SIZE=BLOCK,
        mask_mod=same,
        seq_lengths=(len(queries), len(keys)),
    )


class Flex(Packed):
    """Packed, FlexAttention."""

    name = "FlexAttention"
    compiles = True

    @classmethod
    def why_not(cls, case: Case, batch: Ragged) -> str | None:
        """Inference on CPUs only: its mask reads what `prepare` left there."""
        if case.device != "cpu":
            return "its block mask is built for CPUs here"
        return "FlexAttention has no backward on CPUs" if case.mode == "train" else None

    def indices(self, batch: Ragged) -> Indices:
        """Segment m*B+b of every key, the segment every query row reads."""
        modalities, size = batch.lengths.shape
        lengths, labels = batch.lengths.flatten(), len(self.model.config.labels)
        keys = torch.repeat_interleave(torch.arange(modalities * size), lengths)
        f2f = torch.cat([keys % size + g * size for g in range(modalities)])
        f2l = torch.arange(modalities * size).repeat_interleave(labels)
        reads = lengths > 0
        return Indices(
            block_mask(f2f, keys), block_mask(f2l, keys), reads[f2f][:, None], reads[f2l].view(modalities, size, -1, 1)
        )

    def f2f(self, q: Tensor, k: Tensor, v: Tensor, extra: Indices) -> Tensor:
        """(N, M*d)."""
        groups = len(extra.f2f_reads) // len(q)
        context = self.read(q.repeat(groups, 1), k, v, extra.f2f)
        return torch.where(extra.f2f_reads, context, 0.0).view(groups, len(q), -1).transpose(0, 1).flatten(1)

    def f2l(self, q: Tensor, k: Tensor, v: Tensor, extra: Indices) -> Tensor:
        """(M, B, L, d)."""
        rows = q.flatten(0, 1)
        groups = extra.f2l_reads.shape[0]
        return torch.where(extra.f2l_reads, self.read(rows.repeat(groups, 1), k, v, extra.f2l).view(-1, *q.shape), 0.0)

    def read(self, q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
        """Messages (rows, d)."""
        return compiled()(q[None, None], k[None, None], v[None, None], block_mask=mask)[0, 0]
