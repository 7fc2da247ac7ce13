"""Dropout masks by their definition, an element at a time: what the reference draws, independent of every backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hhmpn_fast.reference import Keep

KINDS = (
    "f2f_attention",
    "f2f_update",
    "f2l_attention",
    "f2l_update",
    "l2l_attention",
    "l2l_update",
    "message",
)


def philox_word(counter: tuple[int, int, int, int], seed: int, output: int) -> int:
    """One output word of Philox-4x32-10, in plain integers."""
    a, b, c, d = counter
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = q >> 32 ^ b ^ k0, q & 0xFFFFFFFF, p >> 32 ^ d ^ k1, p & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return (a, b, c, d)[output]


def philox_keep(rate: float, seed: int, step: int) -> Keep:
    """Dropout masks by the definition in `hhmpn_fast.ops.dropout`, an element at a time."""
    smallest = min(round(rate * 2**32), 2**32 - 1)

    def keep(kind: str, layer: int, rows: Sequence[int], columns: int, group: int) -> Tensor:
        site = (8 * layer + KINDS.index(kind)) * 256 + group
        out = torch.zeros(len(rows), columns, dtype=torch.bool)
        for i, row in enumerate(rows):
            for column in range(columns):
                out[i, column] = philox_word((column >> 2, row, site, step), seed, column & 3) >= smallest
        return out

    return keep
