"""attention: softmax messages between ragged sets, keys and values being the nodes themselves.

    s[g, r] = sum_j a_rj x_j      a_rj = softmax_j(q_r . x_j)      j over key segment  g * S + (i mod S)

for every row r of query segment i, with S = K / G. One head of Eqs 3-6 is this op: q = v W1^T W2 / sqrt(d), and the
message is `W^v s`. F2F, F2L and L2L differ in their segments only:

    case   query segments Q     key segments K   groups G   rows
    F2F    M*B                  M*B              M          every node reads each modality of its sample
    F2L    B                    M*B              M          L labels of a sample read each of its modalities
    L2L    M*B                  M*B              1          L labels read each other, optionally under an (L, L) mask
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hhmpn_fast.backends import Body, Call, choose
from hhmpn_fast.errors import InputError
from hhmpn_fast.lengths import known
from hhmpn_fast.ops import dropout as _dropout
from hhmpn_fast.ops import padded
from hhmpn_fast.ops.accelerator import saves_launches
from hhmpn_fast.ops.dropout import Block, Dropout, arguments, drawn, of_arguments
from hhmpn_fast.ops.op import Op
from hhmpn_fast.ops.public import Public

ATTENTION = Op(
    "attention(Tensor q, Tensor x, Tensor q_offsets, Tensor x_offsets, int groups, Tensor? mask, bool exclude_self, "
    "float p, Tensor? rng, int site) -> Tensor context, Tensor lse",
    rows=("q", "x"),
)


class Attention(Public):
    """attention on any backend."""

    def attention(
        self,
        q: Tensor,
        x: Tensor,
        q_offsets: Tensor,
        x_offsets: Tensor,
        groups: int = 1,
        *,
        mask: Tensor | None = None,
        exclude_self: bool = False,
        dropout: Dropout | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Softmax messages between ragged sets, keys and values being the nodes themselves.

        Args:
            q: (R, d) queries, the scale already inside.
            x: (N, d) nodes, keys and values at once.
            q_offsets: int32 (Q+1,), rows of query segment i are q_offsets[i]:q_offsets[i+1].
            x_offsets: int32 (K+1,), K = G * S; Q is a multiple of S.
            groups: G, key segments a query reads, each with a softmax of its own.
            mask: bool (rows of a query segment, rows of a key segment), True where the query may read the key; all
                segments then have these lengths.
            exclude_self: a row does not read the key at its own place; needs Q == K.
            dropout: acts on the normalised weights.

        Returns:
            context (G, R, d) and the scores' log-sum-exp (G, R), float32 for bfloat16 on the cpu backend. No key to
            read gives context 0, log-sum-exp -inf and gradient 0; so do rows of q and x behind the last offset, which
            nobody reads. The cpu backend refuses such rows.

        Raises:
            InputError: offsets, groups or mask that do not fit; a backend that cannot run the call.
        """
        if q.dim() != 2 or x.dim() != 2 or q.shape[1] != x.shape[1]:
            raise InputError(f"attention: q is {tuple(q.shape)} and x is {tuple(x.shape)}; expected (R, d) and (N, d).")
        _check_segments(q_offsets.numel() - 1, x_offsets.numel() - 1, groups, exclude_self)
        if mask is not None and (mask.dim() != 2 or mask.dtype != torch.bool):
            raise InputError(f"attention: mask is {mask.dtype} {tuple(mask.shape)}; expected bool (L, L).")
        p, rng, site = arguments(dropout)
        return self.body("attention", Call.of(x, "exclude_self" if exclude_self else ""))(
            q=q,
            x=x,
            q_offsets=q_offsets,
            x_offsets=x_offsets,
            groups=groups,
            mask=mask,
            exclude_self=exclude_self,
            p=p,
            rng=rng,
            site=site,
        )


def _check_segments(queries: int, keys: int, groups: int, exclude_self: bool) -> None:
    """Refuses counts that do not fit; offsets' contents are `Ragged`'s business."""
    if groups < 1 or keys % groups or (keys and queries % (keys // groups)):
        raise InputError(
            f"attention: found {queries} query segments, {keys} key segments and {groups} groups; "
            "expected key segments = groups * S and query segments a multiple of S."
        )
    if exclude_self and queries != keys:
        raise InputError(f"attention: exclude_self with {queries} query and {keys} key segments; expected as many.")


def plain(i: Any) -> tuple[Tensor, Tensor]:
    """The op in plain PyTorch: segments of one length in batched products, others sample by sample on the processor,
    where that saves padding, and padded together elsewhere, where it saves launches.
    """
    rows, nodes = _end(i.q_offsets), _end(i.x_offsets)
    behind = i.q.shape[0] - rows
    if behind or i.x.shape[0] > nodes:
        context, lse = plain(i._replace(q=i.q[:rows], x=i.x[:nodes]))
        return F.pad(context, (0, 0, 0, behind)), F.pad(lse, (0, behind), value=float("-inf"))
    q, groups = i.q, i.groups
    if q.shape[0] == 0 or i.x_offsets.numel() == 1:
        return q.new_zeros(groups, q.shape[0], q.shape[1]), q.new_full((groups, q.shape[0]), float("-inf"))
    if saves_launches(q.device):
        return _padded(i)
    sizes_q, sizes_x = i.q_offsets.diff().tolist(), i.x_offsets.diff().tolist()
    asked = _Asked(q, i.x, groups, i.mask, i.exclude_self, of_arguments(i.p, i.rng, i.site))
    if sizes_q and len(set(sizes_q)) == 1 and len(set(sizes_x)) == 1 and sizes_x[0] > 0:
        return _dense(asked, len(sizes_q), len(sizes_x))
    return _by_sample(asked, i.q_offsets.tolist(), i.x_offsets.tolist())


def _end(offsets: Tensor) -> int:
    """The last offset, without a question to the device."""
    return int(known(offsets).lengths.sum()) if saves_launches(offsets.device) else int(offsets[-1])


def draws_ahead(nodes: Tensor) -> bool:
    """Whether attention on these nodes is plain and padded, so that one pass may draw the dropout of many calls."""
    return saves_launches(nodes.device) and choose("attention", Call.of(nodes)) is BODIES["attention"].run


def _padded(i: Any) -> tuple[Tensor, Tensor]:
    """No loop over samples and no question to the device where the host knows the offsets (`hhmpn_fast.lengths`)."""
    dropout, segments = of_arguments(i.p, i.rng, i.site), Segments(i.q_offsets, i.x_offsets, i.groups)
    if segments.are_equal():
        asked = _Asked(i.q, i.x, i.groups, i.mask, i.exclude_self, dropout)
        return _dense(asked, i.q_offsets.numel() - 1, i.x_offsets.numel() - 1)
    kept = [] if dropout is None else drawn(dropout, segments.blocks(range(i.site, i.site + 1)), i.q.device)
    return padded.attention(i.q, i.x, segments.plan(), i.exclude_self, kept, i.p)


class Segments(NamedTuple):
    """The offsets of a call, as the padded form reads them."""

    q_offsets: Tensor
    x_offsets: Tensor
    groups: int

    @property
    def rows(self) -> int:
        """Query rows in all."""
        return int(known(self.q_offsets).lengths.sum())

    def are_equal(self) -> bool:
        """Whether all query segments, and all key segments, have one length."""
        queries, keys = known(self.q_offsets), known(self.x_offsets)
        return queries.equal and keys.equal and int(keys.lengths[0]) > 0

    def plan(self) -> padded.Plan:
        """What is padded together where they have not."""
        return padded.plan(self.q_offsets, self.x_offsets, self.groups, self.rows)

    def blocks(self, sites: range) -> list[Block]:
        """What dropout decides about in calls on these segments, whose first groups have these sites."""
        if not self.are_equal():
            return padded.blocks(self.plan(), sites)
        return [Block(self.rows, int(known(self.x_offsets).lengths[0]), sites, self.groups)]


def _softmax(scores: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Probabilities and log-sum-exp over the last axis; rows with nothing allowed get 0 and -inf."""
    if allowed is None:
        lse = torch.logsumexp(scores, -1)
        return torch.exp(scores - lse[..., None]), lse
    empty = ~allowed.any(-1)
    # Rows without a key would give NaN gradients; they read finite scores here and are cleared below.
    scores = scores.masked_fill(~allowed & ~empty[..., None], float("-inf"))
    lse = torch.logsumexp(scores, -1)
    probs = torch.exp(scores - lse[..., None]).masked_fill(empty[..., None], 0.0)
    return probs, lse.masked_fill(empty, float("-inf"))


class _Asked(NamedTuple):
    """One call, but for its offsets: see `Attention`."""

    q: Tensor
    x: Tensor
    groups: int
    mask: Tensor | None
    exclude_self: bool
    dropout: Dropout | None


def _dense(asked: _Asked, queries: int, keys: int) -> tuple[Tensor, Tensor]:
    """All segments of one length: plain batched products. Shapes: (Q/S, S, Lq, d) against (G, S, Lk, d)."""
    q, x, groups, mask, exclude_self, dropout = asked
    samples = keys // groups
    rows, d = q.shape[0] // queries, q.shape[1]
    q4, x4 = q.view(-1, 1, samples, rows, d), x.view(1, groups, samples, -1, d)
    scores = q4 @ x4.transpose(-1, -2)  # (Q/S, G, S, Lq, Lk)
    allowed = None
    if mask is not None:
        allowed = mask.expand(scores.shape)
    if exclude_self:
        own = torch.eye(queries // samples, groups, dtype=torch.bool, device=q.device)[:, :, None, None, None]
        off = ~(own & torch.eye(rows, scores.shape[-1], dtype=torch.bool, device=q.device))
        allowed = off.expand(scores.shape) if allowed is None else allowed & off
    if saves_launches(q.device):
        blocked = None if allowed is None else ~allowed
        probs, lse = padded.softmax(scores, blocked, None if blocked is None else blocked.all(-1, keepdim=True))
    else:
        probs, lse = _softmax(scores, allowed)
    if dropout is not None and dropout.p > 0:
        site = range(dropout.site, dropout.site + 1)
        (kept,) = drawn(dropout, [Block(q.shape[0], scores.shape[-1], site, groups)], q.device)
        kept = kept.view(groups, -1, *scores.shape[2:]).transpose(0, 1)
        probs = _dropout.scaled(probs, kept, dropout.p)
    context = (probs @ x4).transpose(0, 1)  # (G, Q/S, S, Lq, d)
    return context.reshape(groups, q.shape[0], d), lse.transpose(0, 1).reshape(groups, q.shape[0])


class _Sample(NamedTuple):
    """One sample of a ragged call: its query segments that hold rows, those rows, and its keys' bounds a group."""

    index: int
    segments: list[int]
    rows: Tensor
    bounds: list[tuple[int, int]]


def _by_sample(asked: _Asked, q_offsets: list[int], x_offsets: list[int]) -> tuple[Tensor, Tensor]:
    """One sample after another: all its query rows against all its keys in one product, softmax a group."""
    q, x, groups, mask, exclude_self, dropout = asked
    queries, samples = len(q_offsets) - 1, (len(x_offsets) - 1) // groups
    contexts: list[list[Tensor]] = [[q.new_zeros(0, groups, q.shape[1])] for _ in range(queries)]
    lses: list[list[Tensor]] = [[q.new_zeros(0, groups)] for _ in range(queries)]
    plan = []
    for b in range(samples):
        segments = [i for i in range(b, queries, samples) if q_offsets[i + 1] > q_offsets[i]]
        bounds = [(x_offsets[g * samples + b], x_offsets[g * samples + b + 1]) for g in range(groups)]
        if segments:
            rows = torch.cat([torch.arange(q_offsets[i], q_offsets[i + 1], device=q.device) for i in segments])
            plan.append(_Sample(b, segments, rows, bounds))
    kept = _kept(plan, dropout)
    for b, segments, _, bounds in plan:
        q_b = torch.cat([q[q_offsets[i] : q_offsets[i + 1]] for i in segments])
        x_b = [x[i:j] for i, j in bounds]
        scores = (q_b @ torch.cat(x_b).T).split([j - i for i, j in bounds], 1)
        lengths = [q_offsets[i + 1] - q_offsets[i] for i in segments]
        outs, ends = [], []
        for g, (i, j) in enumerate(bounds):
            if i == j:
                outs.append(torch.zeros_like(q_b))
                ends.append(q_b.new_full((q_b.shape[0],), float("-inf")))
                continue
            allowed = None
            if mask is not None or exclude_self:
                allowed = _allowed(asked, segments, lengths, g * samples + b, j - i)
            probs, lse = _softmax(scores[g], allowed)
            if (b, g) in kept:
                probs = _dropout.scaled(probs, kept[b, g], dropout.p)
            outs.append(probs @ x_b[g])
            ends.append(lse)
        for i, c, e in zip(segments, torch.stack(outs, 1).split(lengths), torch.stack(ends, 1).split(lengths)):
            contexts[i].append(c)
            lses[i].append(e)
    context = torch.cat([part for parts in contexts for part in parts])
    lse = torch.cat([part for parts in lses for part in parts])
    return context.transpose(0, 1), lse.transpose(0, 1)


def _kept(plan: list[_Sample], dropout: Dropout | None) -> dict[tuple[int, int], Tensor]:
    """What dropout keeps of each sample's softmax over each group that has keys: bool (rows, keys)."""
    if dropout is None or dropout.p == 0:
        return {}
    at = dropout.site
    blocks = {
        (s.index, g): Block(s.rows, j - i, range(at + g, at + g + 1))
        for s in plan
        for g, (i, j) in enumerate(s.bounds)
        if j > i
    }
    kept = _dropout.keep_blocks(dropout, list(blocks.values()), plan[0].rows.device) if blocks else []
    return {key: found[0, 0] for key, found in zip(blocks, kept)}


def _allowed(asked: _Asked, segments: list[int], lengths: list[int], key_segment: int, keys: int) -> Tensor:
    """bool (rows of these query segments, keys): what mask and exclude_self leave readable."""
    mask, device = asked.mask, asked.q.device
    parts = []
    for i, n in zip(segments, lengths):
        part = torch.ones(n, keys, dtype=torch.bool, device=device) if mask is None else mask[:n, :keys]
        if asked.exclude_self and i == key_segment:
            part = part & ~torch.eye(n, keys, dtype=torch.bool, device=device)
        parts.append(part)
    return torch.cat(parts)


BODIES = {"attention": Body(ATTENTION.over(plain), ("exclude_self",))}
