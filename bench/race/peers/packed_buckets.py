"""Packed linear layers, and `scaled_dot_product_attention` over samples of similar length, padded a bucket.

Samples whose node counts round up to the same power of two share a bucket, so that a batch takes a few large calls and
padding at most doubles a sample.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.race.peers.base import Packed
from hhmpn_fast import Ragged


class Bucket(NamedTuple):
    """samples (b,); nodes (b, S) rows of the padded queries; keys[m] (b, S_m), masks[m] (b, 1, 1, S_m); present."""

    samples: Tensor
    nodes: Tensor
    keys: list[Tensor]
    masks: list[Tensor]
    present: Tensor  # bool (M, b, 1, 1)


class Indices(NamedTuple):
    """The buckets; back (N,): places of the nodes among all padded rows; samples (B,): places among the buckets'."""

    buckets: list[Bucket]
    back: Tensor
    samples: Tensor


class PackedBuckets(Packed):
    """Packed, attention padded by bucket."""

    name = "packed, SDPA by length bucket"

    def indices(self, batch: Ragged) -> Indices:
        """Buckets, shortest samples first; padding reads row 0."""
        starts = batch.offsets[:-1].long().view(batch.lengths.shape)
        sizes = torch.tensor([max(1, n).bit_length() for n in (batch.lengths.sum(0) - 1).tolist()])
        buckets, rows = [], []
        for size in sizes.unique().tolist():
            samples = (sizes == size).nonzero().flatten()
            buckets.append(_bucket(samples, starts[:, samples], batch.lengths[:, samples]))
            inside = torch.arange(buckets[-1].nodes.shape[1]) < batch.lengths.sum(0)[samples, None]
            rows.append(torch.where(inside, buckets[-1].nodes, -1).flatten())
        flat = torch.cat(rows)
        back = torch.empty(int(batch.lengths.sum()), dtype=torch.int64)
        back[flat[flat >= 0]] = (flat >= 0).nonzero().flatten()
        return Indices(buckets, back, torch.cat([b.samples for b in buckets]).argsort())

    def f2f(self, q: Tensor, k: Tensor, v: Tensor, extra: Indices) -> Tensor:
        """(N, M*d)."""
        out = []
        for bucket in extra.buckets:
            read = self.read(_rows(q, bucket.nodes), k, v, bucket)  # (M, b, S, d)
            out.append(read.permute(1, 2, 0, 3).flatten(2).flatten(0, 1))
        return torch.cat(out).index_select(0, extra.back)

    def f2l(self, q: Tensor, k: Tensor, v: Tensor, extra: Indices) -> Tensor:
        """(M, B, L, d)."""
        out = [self.read(q.index_select(0, b.samples), k, v, b) for b in extra.buckets]
        return torch.cat(out, 1).index_select(1, extra.samples)

    def read(self, q: Tensor, k: Tensor, v: Tensor, bucket: Bucket) -> Tensor:
        """Messages (M, b, rows, d) to q (b, rows, d)."""
        p = self.rate if self.training else 0.0
        out = []
        for keys, mask in zip(bucket.keys, bucket.masks):
            k_m, v_m = (_rows(t, keys)[:, None] for t in (k, v))
            out.append(F.scaled_dot_product_attention(q[:, None], k_m, v_m, attn_mask=mask, dropout_p=p)[:, 0])
        return torch.where(bucket.present, torch.stack(out), 0.0)


def _rows(t: Tensor, at: Tensor) -> Tensor:
    """Rows of t (N, d) at places (b, S): (b, S, d)."""
    return t.index_select(0, at.flatten()).view(*at.shape, -1)


def _bucket(samples: Tensor, starts: Tensor, lengths: Tensor) -> Bucket:
    """starts, lengths (M, b). An absent modality keeps one key, whose message is then left out."""
    keys, masks, nodes = [], [], []
    for start, length in zip(starts, lengths):
        place = torch.arange(max(1, int(length.max())))
        keys.append(torch.where(place < length[:, None], start[:, None] + place, 0))
        masks.append((place < length.clamp(min=1)[:, None])[:, None, None])
    for b in range(len(samples)):
        nodes.append(torch.cat([torch.arange(int(s), int(s + n)) for s, n in zip(starts[:, b], lengths[:, b])]))
    padded = torch.nn.utils.rnn.pad_sequence(nodes, batch_first=True)
    return Bucket(samples, padded, keys, masks, (lengths > 0)[..., None, None])
