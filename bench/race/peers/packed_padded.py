"""Packed linear layers; only queries, keys and values are padded, for batched scores.

Everything that costs d^2 a node runs on true nodes; what costs d a pair runs on padded pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bench.race.peers.base import Case, Packed, too_large
from bench.race.peers.packed_sdpa import sample_major
from hhmpn_fast import Ragged


class Indices(NamedTuple):
    """nodes (B, S) rows of the padded queries; keys[m] (B, S_m); back (N,) places of the nodes among B*S; masks[m]."""

    nodes: Tensor
    keys: list[Tensor]
    back: Tensor
    masks: list[Tensor]
    present: Tensor


class PackedPadded(Packed):
    """Packed, attention padded."""

    name = "packed, padded scores"

    @classmethod
    def why_not(cls, case: Case, batch: Ragged) -> str | None:
        """Scores are (B, S, S)."""
        queries, keys = int(batch.lengths.sum(0).max()), int(batch.lengths.max(1).values.sum())
        return too_large(batch.batch_size * queries * keys, case)

    def indices(self, batch: Ragged) -> Indices:
        """Where padded rows come from (row 0 for padding) and where packed rows went."""
        modalities, size = batch.lengths.shape
        starts = batch.offsets[:-1].long().view(modalities, size)
        keys, masks = [], []
        for start, lengths in zip(starts, batch.lengths):
            place = torch.arange(int(lengths.max()))
            masks.append((place < lengths[:, None])[:, None])
            keys.append(torch.where(masks[-1][:, 0], start[:, None] + place, 0))
        order, _, samples = sample_major(batch)
        counts = torch.tensor(samples)
        place = torch.arange(int(counts.max()))
        inside = place < counts[:, None]
        nodes = torch.zeros(inside.shape, dtype=torch.int64)
        nodes[inside] = order
        back = torch.empty_like(order)
        back[order] = inside.flatten().nonzero().flatten()
        return Indices(nodes, keys, back, masks, batch.present[..., None, None])

    def f2f(self, q: Tensor, k: Tensor, v: Tensor, extra: Indices) -> Tensor:
        """(N, M*d)."""
        padded = q.index_select(0, extra.nodes.flatten()).view(*extra.nodes.shape, -1)
        context = self.f2l(padded, k, v, extra)  # (M, B, S, d)
        flat = context.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)
        return flat.index_select(0, extra.back)

    def f2l(self, q: Tensor, k: Tensor, v: Tensor, extra: Indices) -> Tensor:
        """(M, B, rows, d)."""
        out = []
        for rows, mask in zip(extra.keys, extra.masks):
            k_m, v_m = (t.index_select(0, rows.flatten()).view(*rows.shape, -1) for t in (k, v))
            out.append(self.attend(q, k_m, v_m, mask))
        return torch.where(extra.present, torch.stack(out), 0.0)
