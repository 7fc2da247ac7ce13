"""The Philox masks: known answers, the reference's own implementation, and the rate."""

from __future__ import annotations

import pytest
import torch

from hhmpn_fast.masks import philox_keep, philox_word
from hhmpn_fast.ops.dropout import Dropout, apply, keep, philox, site

# Known answers of Philox-4x32-10: counter, key, output words.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter: tuple, key: tuple, words: tuple) -> None:
    found = philox(*(torch.tensor(c) for c in (*counter, *key)))
    assert tuple(found.tolist()) == words
    assert tuple(philox_word(counter, key[0] | key[1] << 32, i) for i in range(4)) == words


@pytest.mark.parametrize("columns", [1, 3, 4, 5, 17])
def test_mask_equals_the_reference(columns: int) -> None:
    seed, step, p = 2**35 + 11, 7, 0.3
    rows = torch.tensor([0, 5, 70000])
    dropout = Dropout(p, torch.tensor([seed, step]), site("f2l_attention", 2))
    expected = philox_keep(p, seed, step)("f2l_attention", 2, rows.tolist(), columns, 1)
    assert torch.equal(keep(dropout, rows, columns, 1), expected)


def test_rate_and_scale() -> None:
    dropout = Dropout(0.2, torch.tensor([1, 1]), 0)
    out = apply(torch.ones(1000, 100, dtype=torch.float64), dropout)
    assert abs(float((out == 0).double().mean()) - 0.2) < 0.005
    assert set(out.unique().tolist()) == {0.0, 1.25}
    assert apply(out, None) is out


def test_sites_never_meet() -> None:
    kinds = ("f2f_attention", "f2f_update", "f2l_attention", "f2l_update", "l2l_attention", "l2l_update", "message")
    sites = [site(k, layer) + g for k in kinds for layer in range(12) for g in (0, 255)]
    assert len(set(sites)) == len(sites)
