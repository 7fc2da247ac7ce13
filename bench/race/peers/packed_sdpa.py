"""Packed linear layers, and `scaled_dot_product_attention` on one sample and modality after another.

Nodes are put sample after sample once, so that all nodes of a sample query a modality in one call; `split` instead of
slicing keeps the backward pass from building a full-size gradient a call.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.race.peers.base import Packed
from hhmpn_fast import Ragged


class Indices(NamedTuple):
    """order (N,): modality-major row of each sample-major node.  segments: lengths, by sample.  samples: T_b."""

    order: Tensor
    segments: list[int]
    samples: list[int]


def sample_major(batch: Ragged) -> Indices:
    """The order that puts a sample's nodes together, its modalities one after the other."""
    modalities, size = batch.lengths.shape
    starts = batch.offsets[:-1].long().view(modalities, size).T.flatten()
    lengths = batch.lengths.T.flatten()
    before = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    order = torch.repeat_interleave(starts, lengths) + torch.arange(int(lengths.sum())) - before
    return Indices(order, lengths.tolist(), batch.lengths.sum(0).tolist())


class PackedSDPA(Packed):
    """Packed, attention by sample."""

    name = "packed, SDPA by sample"

    def indices(self, batch: Ragged) -> Indices:
        """Sample-major order and lengths."""
        return sample_major(batch)

    def order(self, v: Tensor, extra: Indices) -> Tensor:
        """Sample after sample."""
        return v.index_select(0, extra.order)

    def f2f(self, q: Tensor, k: Tensor, v: Tensor, extra: Indices) -> Tensor:
        """(N, M*d)."""
        out = self.read(q.split(extra.samples), k, v, extra)
        return torch.cat([torch.cat(parts, 1) for parts in out])

    def f2l(self, q: Tensor, k: Tensor, v: Tensor, extra: Indices) -> Tensor:
        """(M, B, L, d)."""
        return torch.stack([torch.stack(parts) for parts in self.read(q.unbind(0), k, v, extra)], 1)

    def read(self, qs: tuple[Tensor, ...], k: Tensor, v: Tensor, extra: Indices) -> list[list[Tensor]]:
        """[sample][modality] -> (rows, d)."""
        ks, vs = k.split(extra.segments), v.split(extra.segments)
        modalities, p = len(ks) // len(qs), self.rate if self.training else 0.0
        out = []
        for b, q in enumerate(qs):
            at = range(b * modalities, (b + 1) * modalities)
            q4 = q[None, None]
            out.append(
                [
                    F.scaled_dot_product_attention(q4, ks[i][None, None], vs[i][None, None], dropout_p=p)[0, 0]
                    if extra.segments[i]
                    else torch.zeros_like(q)
                    for i in at
                ]
            )
        return out
