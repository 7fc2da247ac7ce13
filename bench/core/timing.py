"""Interleaved timing: the contestants take turns in one process, so that a machine's moods hit all alike.

Timing happens in sections of a `Session`, which sees other processes' load in each. The matrix rate is measured between
the contestants too: what a shared machine gives may change by a half within seconds. There a session can also hold it
quiet: its command runs a process of ours that lasts as long as the section.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from bench.core.rate import Product, fastest

PROBE_EVERY = 0.05
WAIT = "import sys; print('held', flush=True); sys.stdin.read()"


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


class Session:
    """Timed sections of one comparison.

    rate: median FLOP/s of the fastest dense product, measured between the runs.  busy: cores that other processes kept
    busy in each; a timing beside other work is worth nothing, and should say so.  cut_short: sections whose hold ended
    before they did.
    """

    def __init__(self, dtype: torch.dtype, hold: str = "") -> None:
        self.dtype, self.hold = dtype, shlex.split(hold)
        self.product: Product | None = None
        self.rates: list[float] = []
        self._probed = 0.0
        self.busy: list[float] = []
        self.cut_short = 0

    @property
    def rate(self) -> tuple[float, str]:
        """The median matrix rate, and of which product."""
        return statistics.median(self.rates), self.product.name

    def probe(self) -> None:
        """Measures the matrix rate again, unless it was a moment ago."""
        if time.perf_counter() - self._probed > PROBE_EVERY:
            self.rates.append(self.product.rate())
            self._probed = time.perf_counter()

    @contextmanager
    def section(self) -> Iterator[None]:
        """A timed section: held if there is a command to hold with, and then at normal priority."""
        with self._held():
            wall, busy, own = time.perf_counter(), _busy(), time.process_time()
            if self.product is None:
                self.product, first = fastest(self.dtype)
                self.rates.append(first)
            yield
            wall = time.perf_counter() - wall
            self.busy.append(max(0.0, (_busy() - busy - (time.process_time() - own)) / wall))

    @contextmanager
    def _held(self) -> Iterator[None]:
        if not self.hold:
            yield
            return
        before = os.nice(0)
        _renice(0)
        holder = subprocess.Popen(
            [*self.hold, sys.executable, "-SEc", WAIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        holder.stdout.readline()
        try:
            yield
        finally:
            self.cut_short += holder.poll() is not None
            holder.communicate()
            _renice(before)


def _renice(level: int) -> None:
    """Every thread of this process; what the system refuses stays as it is."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, int(thread), level)


def _busy() -> float:
    """Seconds all cores were busy since boot; nan where the system does not say."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _, _, irq, softirq = (int(w) for w in file.readline().split()[1:8])
    except (OSError, ValueError):
        return float("nan")
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def interleave(
    runs: Mapping[str, Callable[[], object]],
    session: Session,
    *,
    budget: float,
    least: int = 3,
    warmup: int = 1,
    section: float = 12.0,
) -> dict[str, Times]:
    """Times every run once a round; warm-up is outside the session.

    A run that has used `budget` seconds and at least `least` rounds leaves the ring, at the latest after 1000. The
    order turns by one a round, so that nobody always follows the same neighbour. A section ends with the round in which
    it got older than `section` seconds.
    """
    for run in runs.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}

    def ring() -> list[str]:
        return [n for n, s in seconds.items() if len(s) < least or (sum(s) < budget and len(s) < 1000)]

    turn = 0
    while ring():
        with session.section():
            begin = time.perf_counter()
            while (names := ring()) and time.perf_counter() - begin < section:
                at = turn % len(names)
                for name in names[at:] + names[:at]:
                    start = time.perf_counter()
                    runs[name]()
                    seconds[name].append(time.perf_counter() - start)
                    session.probe()
                turn += 1
    return {name: Times(tuple(s)) for name, s in seconds.items()}
