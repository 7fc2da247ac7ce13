"""attention in plain PyTorch where a launch is dear: samples padded together, nothing asked of the device.

A call's segments become a few dense products. `Plan` says which: samples in order of their work, in as few slices as
keep the padding small, and within a slice the groups together or apart. Everything follows from lengths that the host
knows (`hhmpn_fast.lengths`), the indices are made on the device from the offsets, once for all calls on the same ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hhmpn_fast.lengths import known
from hhmpn_fast.ops.accelerator import Dropped
from hhmpn_fast.ops.dropout import Block

SMALL = 1 << 22  # scores so few that padding costs less than another launch
WASTE = 2  # beyond that: how many scores may be computed for each that is read


class Chunk(NamedTuple):
    """Groups begin..end of a slice with the longest of their key segments.

    index: the packed row of every key (samples, groups, keys); out: where there is none.  empty: key segments without
    any (samples, groups, 1, 1), None where every one has a key.
    """

    begin: int
    end: int
    keys: int
    index: Tensor
    out: Tensor
    empty: Tensor | None


class Slice(NamedTuple):
    """Samples padded together.

    rows: the packed query row of every place (samples, rows), the first of all where there is none; out: where there is
    none.  segment, place: which of the sample's query segments a row is of, and where in it.
    """

    rows: Tensor
    out: Tensor
    segment: Tensor
    place: Tensor
    chunks: tuple[Chunk, ...]


class Plan(NamedTuple):
    """All slices of a call, and where each (group, packed query row) lies in their chunks' (samples, groups, rows)."""

    slices: tuple[Slice, ...]
    inverse: Tensor


def plan(q_offsets: Tensor, x_offsets: Tensor, groups: int, rows: int) -> Plan:
    """The plan of a call with `rows` query rows in all, kept as long as the keys' offsets live."""
    queries, keys = known(q_offsets), known(x_offsets)
    asked = (None if queries is keys else queries.key, groups)  # a record in itself would wait for the collector
    if asked not in keys.made:
        keys.made[asked] = _plan(q_offsets, x_offsets, groups, rows)
    return keys.made[asked]


def _plan(q_offsets: Tensor, x_offsets: Tensor, groups: int, rows: int) -> Plan:
    samples = (x_offsets.numel() - 1) // groups
    q_host, x_host = (known(offsets).lengths.view(-1, samples) for offsets in (q_offsets, x_offsets))
    per_sample, per_key = q_host.sum(0), x_host.amax(0)
    order = torch.argsort(per_sample * per_key, stable=True)
    bounds = _bounds(per_sample[order], x_host[:, order])
    device = None
    if len(bounds) > 1:  # the same order, found there
        q_length, x_length = (offsets.long().diff().view(-1, samples) for offsets in (q_offsets, x_offsets))
        device = torch.argsort(q_length.sum(0) * x_length.amax(0), stable=True)
    slices = []
    for begin, end in bounds:
        at = slice(None) if device is None else device[begin:end]
        host = slice(None) if device is None else order[begin:end]
        if longest := int(per_sample[host].max()):
            tables = [_table(offsets, samples, at) for offsets in (q_offsets, x_offsets)]
            slices.append(_slice(*tables, longest, x_host[:, host]))
    return Plan(tuple(slices), _inverse(slices, groups, rows))


def _inverse(slices: list[Slice], groups: int, rows: int) -> Tensor:
    places = []
    for s in slices:
        row = torch.where(s.out, groups * rows, s.rows)[:, None]  # behind the last: forgotten
        for c in s.chunks:
            group = torch.arange(c.begin, c.end, device=row.device)[:, None]
            places.append((row + group * rows).flatten())
    place = torch.cat(places).clamp_(max=groups * rows)
    inverse = place.new_empty(groups * rows + 1)
    return inverse.index_copy_(0, place, torch.arange(place.numel(), device=place.device))[:-1]


def _bounds(rows: Tensor, keys: Tensor) -> list[tuple[int, int]]:
    """Slices of the ordered samples, halved until each wastes little: rows (S,), keys (G, S), on the host."""
    work, found, waiting = rows * keys.sum(0), [], [(0, rows.numel())]
    while waiting:
        begin, end = waiting.pop()
        padded = (end - begin) * int(rows[begin:end].max()) * sum(_longest(keys[:, begin:end]))
        if end - begin == 1 or padded <= max(SMALL, WASTE * int(work[begin:end].sum())):
            found.append((begin, end))
        else:
            middle = (begin + end) // 2
            waiting += [(begin, middle), (middle, end)]
    return sorted(found)


def _longest(keys: Tensor) -> list[int]:
    return keys.amax(1).tolist()


def _table(offsets: Tensor, samples: int, at: slice | Tensor) -> tuple[Tensor, Tensor]:
    """Where the segments of some samples begin and how long they are: both (segments, samples)."""
    begins = offsets.long()
    return begins[:-1].view(-1, samples)[:, at], begins.diff().view(-1, samples)[:, at]


def _slice(queries: tuple[Tensor, Tensor], keys: tuple[Tensor, Tensor], rows: int, host: Tensor) -> Slice:
    begins, lengths = queries
    device, samples = begins.device, begins.shape[1]
    before = lengths.cumsum(0) - lengths  # rows of the sample before each segment
    row = torch.arange(rows, device=device)
    segment = (row >= (before + lengths)[:-1, :, None]).sum(0)
    last = begins.shape[0] - 1
    segment = segment.clamp_(max=last) if last else torch.zeros(samples, rows, dtype=torch.int64, device=device)
    place = row - before.T.gather(1, segment)
    out = row >= lengths.sum(0)[:, None]
    index_q = (begins.T.gather(1, segment) + place).masked_fill_(out, 0)
    begins, lengths = keys
    longest, chunks = _longest(host), []
    together = len(longest) * max(longest) * samples * rows
    for begin, end in (
        [(0, len(longest))]
        if together <= max(SMALL, WASTE * sum(longest) * samples * rows)
        else [(g, g + 1) for g in range(len(longest))]
    ):
        width, own = max(longest[begin:end]), lengths[begin:end].T[..., None]
        key = torch.arange(width, device=device)
        beyond = key >= own
        index = (begins[begin:end].T[..., None] + key).masked_fill_(beyond, 0)
        empty = None if bool(host[begin:end].all()) else (own == 0)[..., None]
        chunks.append(Chunk(begin, end, width, index.contiguous(), beyond, empty))
    return Slice(index_q, out, segment, place, tuple(chunks))


def blocks(planned: Plan, sites: range) -> list[Block]:
    """The elements that dropout decides about, chunk after chunk; `sites` are the first group's, call after call."""
    return [
        Block(s.rows.flatten(), c.keys, range(sites.start + c.begin, sites.stop + c.begin, sites.step), c.end - c.begin)
        for s in planned.slices
        for c in s.chunks
        if c.keys
    ]


def attention(q: Tensor, x: Tensor, planned: Plan, exclude_self: bool, kept: list[Tensor], p: float) -> tuple:
    """context (G, R, d) and log-sum-exp (G, R). kept: one bool (groups, places, keys) a block, or none at all."""
    contexts, lses, kept, d = [], [], list(kept), q.shape[1]
    for s in planned.slices:
        samples, rows = s.rows.shape
        # Places without a row or key read the first row and forget it: nothing of it may reach a result or a gradient.
        q_s = _rows(q, s.rows, s.out)[:, None]
        for c in s.chunks:
            if c.keys == 0:
                count = samples * (c.end - c.begin) * rows
                contexts.append(q.new_zeros(count, d))
                lses.append(q.new_full((count,), -torch.inf))
                continue
            x_c, blocked, empty = _rows(x, c.index, c.out), c.out[:, :, None], c.empty
            if exclude_self:
                group = torch.arange(c.begin, c.end, device=q.device)[:, None, None]
                key = torch.arange(c.keys, device=q.device)
                own = (s.segment[:, None, :, None] == group) & (s.place[:, None, :, None] == key)
                blocked = blocked | own
                empty = blocked.all(-1, keepdim=True)
            probs, lse = softmax(q_s @ x_c.transpose(-1, -2), blocked, empty)
            if kept:
                probs = Dropped.apply(probs, kept.pop(0).view(-1, samples, rows, c.keys).transpose(0, 1), p)
            contexts.append((probs @ x_c).view(-1, d))
            lses.append(lse.flatten())
    context, lse = (torch.cat(o) if len(o) > 1 else o[0] for o in (contexts, lses))
    context, lse = context.index_select(0, planned.inverse), lse.index_select(0, planned.inverse)
    return context.view(-1, *q.shape), lse.view(-1, q.shape[0])


def _rows(values: Tensor, index: Tensor, out: Tensor) -> Tensor:
    found = values.index_select(0, index.flatten()).view(*index.shape, values.shape[1])
    return found.masked_fill(out[..., None], 0.0)


def softmax(scores: Tensor, blocked: Tensor | None, empty: Tensor | None) -> tuple[Tensor, Tensor]:
    """Probabilities and log-sum-exp over the last axis, 0 and -inf in rows where everything is blocked (`empty`).

    The log-sum-exp is top - log p(top), whose gradient is p too: a third of the launches of `torch.logsumexp`.
    """
    if blocked is not None:
        scores = scores.masked_fill(blocked, -torch.inf)
    if empty is not None:  # such rows would give NaN gradients: they read zeros here and are cleared below
        scores = scores.masked_fill(empty, 0.0)
    probs = torch.softmax(scores, -1)
    top, at = scores.max(-1, keepdim=True)
    lse = top - probs.gather(-1, at).log()
    if empty is not None:
        probs, lse = probs.masked_fill(empty, 0.0), lse.masked_fill(empty, -torch.inf)
    return probs, lse.squeeze(-1)
