"""Counter-based dropout: the same mask on every backend, whatever its tiling.

An element at (row, column) of a site is kept iff its Philox-4x32-10 word is at least `round(p * 2**32)`:

    key = (seed low 32 bits, seed high 32 bits)    counter = (column >> 2, row, site, step)    word = output[column & 3]

Attention weights: row = packed query row, column = the key's index in its segment, site = the call's site + its group.
Update output: row = packed row, column = feature. Kept values are scaled by 1 / (1 - p).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from hhmpn_fast.ops.accelerator import Dropped, saves_launches

GROUPS = 256
KINDS = (
    "f2f_attention",
    "f2f_update",
    "f2l_attention",
    "f2l_update",
    "l2l_attention",
    "l2l_update",
    "message",
)
KINDS_A_LAYER = 8


class Dropout(NamedTuple):
    """Dropout of one call.

    p: the rate, 0 <= p < 1.  rng: int64 (2,), [seed, step].  site: which call of the model this is (`site`).
    """

    p: float
    rng: Tensor
    site: int

    def at(self, kind: str, layer: int) -> Dropout:
        """The same stream at another call of the model."""
        return self._replace(site=site(kind, layer))


def arguments(dropout: Dropout | None) -> tuple[float, Tensor | None, int]:
    """(p, rng, site) as registered ops take them; no rng means no dropout."""
    if dropout is None or dropout.p == 0.0:
        return 0.0, None, 0
    return float(dropout.p), dropout.rng, int(dropout.site)


def of_arguments(p: float, rng: Tensor | None, site: int) -> Dropout | None:
    """The call's dropout from what `arguments` made of it."""
    return None if rng is None else Dropout(p, rng, site)


def site(kind: str, layer: int) -> int:
    """The site number of an op at a layer or label step: (8 * layer + kind) * 256, so that groups can be added."""
    return (KINDS_A_LAYER * layer + KINDS.index(kind)) * GROUPS


def threshold(p: float) -> int:
    """The smallest word that is kept."""
    return min(round(p * 2**32), 2**32 - 1)


_LOW = 0xFFFFFFFF


def philox(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: Tensor, k1: Tensor) -> Tensor:
    """Philox-4x32-10 (Salmon et al., SC 2011) on int64 tensors that hold 32-bit words; returns (..., 4)."""
    return torch.stack(_words(c0, c1, c2, c3, k0, k1), -1) & _LOW


def _words(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: Tensor, k1: Tensor) -> tuple[Tensor, ...]:
    """The four output words, their high halves not cleared. Six passes a round: both products are one."""
    c0, c1, c2, c3 = torch.broadcast_tensors(c0, c1, c2, c3)
    even, odd = torch.stack([c0, c2]), torch.stack([c3, c1])
    rounds = torch.arange(10, device=even.device)
    keys = torch.stack([k1 + rounds * 0xBB67AE85, k0 + rounds * 0x9E3779B9])
    # The signed product wraps to the bits of the unsigned one; what a sign fills in is cleared with the high half.
    second = torch.arange(2, device=even.device).view(-1, *[1] * c0.dim())
    factors = 0xD2511F53 - second * (0xD2511F53 - 0xCD9E8D57)
    c0, c2 = even
    for key in keys.unbind(1):
        product = even * factors
        mixed_2, mixed_0 = (product >> 32).bitwise_xor_(odd).bitwise_xor_(key.view_as(second))
        torch.bitwise_and(mixed_0, _LOW, out=c0)
        torch.bitwise_and(mixed_2, _LOW, out=c2)
        odd = product
    c3, c1 = odd
    return c0, c1, c2, c3


class Block(NamedTuple):
    """Elements of like calls: packed rows (R,), or 0..R-1 by their number, and columns; sites as calls x groups."""

    rows: Tensor | int
    columns: int
    sites: range
    groups: int = 1

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Calls, groups, rows, words of four columns."""
        rows = self.rows if isinstance(self.rows, int) else self.rows.numel()
        return len(self.sites), self.groups, rows, (self.columns + 3) // 4

    def counters(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Column >> 2, row and site of every four columns, flat."""
        shape = self.shape
        sites = torch.arange(self.sites.start, self.sites.stop, self.sites.step, device=device)[:, None]
        if self.groups > 1:
            sites = sites + torch.arange(self.groups, device=device)
        rows = torch.arange(shape[2], device=device) if isinstance(self.rows, int) else self.rows
        found = torch.arange(shape[3], device=device), rows[:, None], sites[:, :, None, None]
        return tuple(t.expand(shape).reshape(-1) for t in found)


def keep(dropout: Dropout, rows: Tensor, columns: int, group: int = 0) -> Tensor:
    """bool (R, columns): which elements of the given packed rows survive."""
    site = dropout.site + group
    return keep_blocks(dropout, [Block(rows, columns, range(site, site + 1))], rows.device)[0][0, 0]


def keep_blocks(dropout: Dropout, blocks: Sequence[Block], device: torch.device) -> list[Tensor]:
    """bool (calls, groups, R, columns) of many blocks at once: a ragged call costs one pass over Philox."""
    seed, step = dropout.rng.to(device)
    c0, c1, c2 = (torch.cat(parts) for parts in zip(*(block.counters(device) for block in blocks)))
    words = _words(c0, c1, c2, step & _LOW, seed & _LOW, (seed >> 32) & _LOW)
    kept = torch.stack([(word & _LOW) >= threshold(dropout.p) for word in words], -1)
    parts = kept.split([math.prod(block.shape) for block in blocks])
    return [part.view(*block.shape[:3], 4 * block.shape[3])[..., : block.columns] for part, block in zip(parts, blocks)]


_AHEAD = WeakTensorKeyDictionary()


def draw_ahead(dropout: Dropout, blocks: Sequence[Block], device: torch.device) -> None:
    """Draws blocks of several calls in one pass; `drawn` then finds them for as long as the stream's tensor lives."""
    held = _AHEAD.setdefault(dropout.rng, {})
    for block, kept in zip(blocks, keep_blocks(dropout, blocks, device)):
        for site, call in zip(block.sites, kept):
            held.setdefault((site, block.shape[1:], block.columns), []).append(call)


def drawn(dropout: Dropout, blocks: Sequence[Block], device: torch.device) -> list[Tensor]:
    """bool (groups, R, columns) of each block of one call: what was drawn ahead, once, else `keep_blocks`."""
    held = _AHEAD.get(dropout.rng, {})
    keys = [(block.sites.start, block.shape[1:], block.columns) for block in blocks]
    if any(len(held.get(key, ())) < count for key, count in Counter(keys).items()):
        return [kept for (kept,) in keep_blocks(dropout, blocks, device)]
    return [held[key].pop(0) for key in keys]


def apply(values: Tensor, dropout: Dropout | None) -> Tensor:
    """`values` (R, columns) with dropped elements 0 and kept ones scaled; no dropout gives `values`."""
    if dropout is None or dropout.p == 0.0:
        return values
    block = Block(*values.shape, range(dropout.site, dropout.site + 1))
    return scaled(values, drawn(dropout, [block], values.device)[0][0], dropout.p)


def scaled(values: Tensor, kept: Tensor, p: float) -> Tensor:
    """`values` where kept, divided by 1 - p, and 0 elsewhere."""
    if saves_launches(values.device):
        return Dropped.apply(values, kept, p)
    return torch.where(kept, values / (1.0 - p), 0.0)
