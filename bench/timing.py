"""Interleaved timing: the contestants take turns in one process, so that a machine's moods hit all alike."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Times:
    """Seconds of every round of one contestant."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle round."""
        return statistics.median(self.seconds)

    @property
    def mad(self) -> float:
        """Median absolute deviation from the median."""
        return statistics.median(abs(s - self.median) for s in self.seconds)


def interleave(
    runs: Mapping[str, Callable[[], object]], *, rounds: int, least: int = 3, budget: float = 10.0, warmup: int = 1
) -> dict[str, Times]:
    """Times every run once a round.

    A run that has used `budget` seconds and at least `least` rounds leaves the ring; the others go on to `rounds`.
    The order turns by one a round, so that nobody always follows the same neighbour.
    """
    for run in runs.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds):
        ring = [n for n, s in seconds.items() if len(s) < least or sum(s) < budget]
        if not ring:
            break
        at = index % len(ring)
        for name in ring[at:] + ring[:at]:
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: Times(tuple(s)) for name, s in seconds.items()}


class Elsewhere:
    """How many cores other processes kept busy while a block ran; nan where the system does not say."""

    cores: float = float("nan")


def _busy() -> float:
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _, _, irq, softirq = (int(w) for w in file.readline().split()[1:8])
    except (OSError, ValueError):
        return float("nan")
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


@contextmanager
def watch() -> Iterator[Elsewhere]:
    """Measures the block's `Elsewhere`: a timing taken beside other work is worth nothing, and should say so."""
    found = Elsewhere()
    wall, busy, own = time.perf_counter(), _busy(), time.process_time()
    yield found
    wall = time.perf_counter() - wall
    found.cores = max(0.0, (_busy() - busy - (time.process_time() - own)) / wall)
