"""Counter-based dropout: the same mask on every backend, whatever its tiling.

An element at (row, column) of a site is kept iff its Philox-4x32-10 word is at least `round(p * 2**32)`:

    key = (seed low 32 bits, seed high 32 bits)    counter = (column >> 2, row, site, step)    word = output[column & 3]

Attention weights: row = packed query row, column = the key's index in its segment, site = the call's site + its group.
Update output: row = packed row, column = feature. Kept values are scaled by 1 / (1 - p).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

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


def _mul(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    # The signed product wraps to the bits of the unsigned one; the mask clears what the shift's sign filled in.
    product = a * b
    return (product >> 32).bitwise_and_(0xFFFFFFFF), product.bitwise_and_(0xFFFFFFFF)


def philox(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: Tensor, k1: Tensor) -> Tensor:
    """Philox-4x32-10 (Salmon et al., SC 2011) on int64 tensors that hold 32-bit words; returns (..., 4)."""
    for _ in range(10):
        high0, low0 = _mul(0xD2511F53, c0)
        high1, low1 = _mul(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1.bitwise_xor_(c1).bitwise_xor_(k0), low1, high0.bitwise_xor_(c3).bitwise_xor_(k1), low0
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return torch.stack([c0, c1, c2, c3], -1)


def keep(dropout: Dropout, rows: Tensor, columns: int, group: int = 0) -> Tensor:
    """bool (R, columns): which elements of the given packed rows survive."""
    return keep_blocks(dropout, [(rows, columns, group)])[0]


def keep_blocks(dropout: Dropout, blocks: Sequence[tuple[Tensor, int, int]]) -> list[Tensor]:
    """`keep` for many blocks of (rows, columns, group) at once: a ragged call costs one pass over Philox."""
    seed, step = dropout.rng.to(blocks[0][0].device)
    quads = [(columns + 3) // 4 for _, columns, _ in blocks]
    sizes = [rows.numel() * n for (rows, _, _), n in zip(blocks, quads)]
    c0 = torch.cat([torch.arange(n, device=seed.device).repeat(rows.numel()) for (rows, _, _), n in zip(blocks, quads)])
    c1 = torch.cat([rows.repeat_interleave(n) for (rows, _, _), n in zip(blocks, quads)])
    groups = torch.tensor([group for _, _, group in blocks], device=seed.device)
    c2 = dropout.site + groups.repeat_interleave(torch.tensor(sizes, device=seed.device))
    words = philox(c0, c1, c2, (step & 0xFFFFFFFF).expand_as(c0), seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    kept = (words >= threshold(dropout.p)).split(sizes)
    return [k.reshape(rows.numel(), 4 * n)[:, :columns] for k, n, (rows, columns, _) in zip(kept, quads, blocks)]


def apply(values: Tensor, dropout: Dropout | None, rows: Tensor | None = None, group: int = 0) -> Tensor:
    """`values` (R, columns) with dropped elements 0 and kept ones scaled; no dropout gives `values`."""
    if dropout is None or dropout.p == 0.0:
        return values
    if rows is None:
        rows = torch.arange(values.shape[0], device=values.device)
    return scaled(values, keep(dropout, rows, values.shape[1], group), dropout.p)


def scaled(values: Tensor, kept: Tensor, p: float) -> Tensor:
    """`values` where kept, divided by 1 - p, and 0 elsewhere."""
    return torch.where(kept, values / (1.0 - p), 0.0)
