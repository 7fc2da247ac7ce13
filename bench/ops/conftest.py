"""Puts the repository on the path and measures the matrix rate once a session."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2]))


@pytest.fixture(scope="session", autouse=True)
def threads() -> None:
    """Two threads, as everywhere in the benchmarks; nothing is timed on an extension of other sources."""
    from hhmpn_fast.source_digest import stale

    if reason := stale():
        pytest.exit(f"bench: {reason}", 2)
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def rate(threads: None) -> float:
    """FLOP/s of the fastest fp32 matrix product."""
    from bench.core.rate import matrix_rate

    return matrix_rate(torch.float32)
