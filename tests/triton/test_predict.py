"""The predictions' counts, by hand, and the traffic the kernels are to save."""

from __future__ import annotations

import pytest
import torch

from bench.core.workloads import NAMES, WORKLOADS
from bench.gpu.predict import LIMIT, PARTS, f2f_megabytes, forward, seconds


def test_f2f_by_hand() -> None:
    lengths, d = torch.tensor([[2, 0], [1, 3]]), 8
    projection, attention, update = forward(lengths, d, 5, 0, "ours")
    assert (projection.elements, projection.flop) == (2 * 6 * 8 + 64, 2 * 6 * 64)
    assert (attention.elements, attention.flop) == (4 * 6 * 8, 4 * 8 * (9 + 9))
    assert (update.elements, update.flop) == (4 * 6 * 8 + 4 * 64, 2 * 6 * 64 * 4)
    padded = forward(lengths, d, 5, 0, "padded")
    assert padded[1].elements == 5 * (2 * 2 + 2 * 3) * 8
    separate = forward(lengths, d, 5, 0, "separate")
    assert separate[0].elements == 4 * 6 * 8 + 3 * 64


def test_a_launch_takes_the_longer_of_bytes_and_flop() -> None:
    steps = forward(torch.full((2, 4), 50), 64, 3, 1, "ours")
    part = PARTS[0]
    expected = sum(max(s.elements * 2 / part.bytes, s.flop / part.bf16) for s in steps)
    assert seconds(steps, part, "bf16") == pytest.approx(expected)
    assert seconds(steps, part, "tf32") > expected


@pytest.mark.parametrize("name", NAMES)
def test_f2f_moves_at_most_three_quarters(name: str) -> None:
    lengths = WORKLOADS[name].lengths(64)
    ours, separate, often = (f2f_megabytes(lengths, 256, way) for way in ("ours", "separate", "launch a group"))
    assert sum(ours[:2]) <= LIMIT * sum(separate[:2])
    assert sum(ours) <= LIMIT * sum(often)
    assert ours == tuple(s.elements * 2e-6 for s in forward(lengths, 256, 6, 0, "ours"))
    assert often[1] - separate[1] == pytest.approx(float(lengths.sum()) * 256 * 2e-6 * (lengths.shape[0] - 1))
