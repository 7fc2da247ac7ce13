"""`make gpu-tune`: neighbours of the launch table's entries, a kernel at a time, timed on this GPU.

    python -m bench.gpu.tune [--kernels NAME ...] [--dtype bf16|fp16|tf32|ieee] [--workload NAME] [--batch 64]
                             [--dim 256] [--seconds 190] [--out FOLDER] [--device cuda]

A training step and an inference call of the workload are run with a candidate in the table's place; the candidate's
results must agree with the table's, then its first launch is timed (`triton.testing.do_bench`, median). Writes the
winners, gpu-tune-table.json, and gpu-tune.diff for kernels/launch_table.py into FOLDER. Kernels that the time did not
suffice for are named. --device cpu, under TRITON_INTERPRET=1, is for tests: one run by the clock, which says nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bench.core.workloads import named
from bench.gpu.launches import KINDS, precision
from hhmpn_fast.backends import use_backend
from hhmpn_fast.kernels import launch_table
from hhmpn_fast.kernels.launch import Launch, using
from hhmpn_fast.kernels.launch_table import TABLE, WIDTHS, Entry
from hhmpn_fast.kernels.runtime import architecture

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "ieee": torch.float32}
ROOT = Path(__file__).resolve().parents[2]
WARPS, STAGES = (2, 4, 8), (1, 2, 3, 4)
GAIN = 0.97  # of the table's time: less is noise
BOUNDS = {"bf16": 5e-2, "fp16": 1e-2, "tf32": 5e-3, "ieee": 1e-4}  # of the norm; another order of sums differs by less


class Key(NamedTuple):
    """A key of the launch table."""

    kernel: str
    kind: str
    width: int
    architecture: str


@dataclass(frozen=True)
class Try:
    """A candidate: microseconds, or why there are none."""

    entry: Entry
    us: float | None
    refused: str = ""


def candidates(entry: Entry) -> list[Entry]:
    """Entries that differ from one in a single field."""
    tiles = [replace(entry, **{name: size}) for name in ("m", "n", "k") for size in _around(getattr(entry, name))]
    warps = [replace(entry, warps=n) for n in WARPS if n != entry.warps]
    stages = [replace(entry, stages=n) for n in STAGES if abs(n - entry.stages) == 1]
    free = [replace(entry, registers=0)] if entry.registers else []
    return [*warps, *stages, *tiles, *free]


def _around(size: int) -> list[int]:
    return [n for n in (size // 2, size * 2) if n >= 16] if size else []


@contextlib.contextmanager
def in_table(key: Key, entry: Entry) -> Iterator[None]:
    """An entry in the table's place."""
    before = TABLE[key]
    TABLE[key] = entry
    try:
        yield
    finally:
        TABLE[key] = before


class Step:
    """A training step and an inference call on the triton backend, and the launches they make."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        workload, self.dtype = named(chosen.workload), chosen.dtype
        kind = DTYPES[chosen.dtype]
        self.model = workload.model(dim=chosen.dim, dropout=0.1).to(chosen.device, kind)
        self.batch = workload.batch(chosen.batch, dtype=kind).to(chosen.device)
        self.targets = workload.targets(chosen.batch).to(chosen.device, kind)
        self.architecture = architecture(self.targets)

    def run(self) -> tuple[dict[str, Launch], list[Tensor]]:
        """The first launch of every kernel, and what the step gives."""
        first: dict[str, Launch] = {}

        def start(launch: Launch) -> None:
            first.setdefault(launch.entry.kernel, launch)
            again(launch)

        self.model.seed_dropout(5)
        with precision(self.dtype), using(start, self.architecture), use_backend("triton"):
            loss = self.model.train().loss(self.model(self.batch), self.targets)
            grads = torch.autograd.grad(loss, list(self.model.parameters()), allow_unused=True)
            with torch.no_grad():
                logits = self.model.eval()(self.batch)
        return first, [logits, loss.detach(), *(g for g in grads if g is not None)]


def again(launch: Launch) -> None:
    """Launches it."""
    launch.function[launch.grid](**launch.arguments, form=launch.form, **launch.entry.options)


def timed(launch: Launch, device: str) -> float:
    """Microseconds, the median; on a CPU those of one run."""
    if device == "cpu":
        begin = time.perf_counter()
        again(launch)
        return (time.perf_counter() - begin) * 1e6
    from triton.testing import do_bench

    return do_bench(lambda: again(launch), warmup=5, rep=30, return_mode="median") * 1e3


def far(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest distance of the norm of a result; infinite where one is not finite."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        distance = float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))
        worst = max(worst, distance if distance == distance else float("inf"))
    return worst


def attempt(key: Key, entry: Entry, step: Step, expected: Sequence[Tensor], bench: Callable[[Launch], float]) -> Try:
    """Runs and times a candidate; a compiler or a GPU that refuses it is an answer."""
    try:
        with in_table(key, entry):
            first, found = step.run()
        launch = first[key.kernel]
        if launch.entry != entry:
            return Try(entry, None, "the launch did not take it")
        if (distance := far(found, expected)) > BOUNDS[step.dtype]:
            return Try(entry, None, f"results differ by {distance:.1e} of their norm")
        return Try(entry, bench(launch))
    except Exception as error:  # whatever a compiler or a driver raises
        said = str(error).strip().splitlines() or [""]
        return Try(entry, None, f"{type(error).__name__}: {said[0]}")


def best(tries: Sequence[Try]) -> Try:
    """The fastest, where it is faster than the first, the table's, by more than noise."""
    table, *others = tries
    fastest = min((t for t in others if t.us is not None), key=lambda t: t.us, default=table)
    return fastest if fastest.us is not None and fastest.us < GAIN * table.us else table


def line(key: Key, found: Entry, why: str) -> str:
    """A winner as launch_table.py spells it."""
    numbers = f"{found.m}, {found.n}, {found.k}, {found.warps}, {found.stages}"
    extra = "" if found.fused else ", fused=False"
    extra += f", registers={found.registers}" if found.registers else ""
    where = f'("{key.architecture}",)'
    return f'_line("{key.kernel}", "{key.kind}", ({key.width},), Entry({numbers}, "{why}"{extra}), {where})\n'


def diff(lines: Sequence[str]) -> str:
    """A unified diff that adds lines behind the table's: a later one replaces an earlier one."""
    text = Path(launch_table.__file__).read_text()
    place = text.index("\nTABLE: ")
    both = text.splitlines(True), (text[:place] + "".join(lines) + text[place:]).splitlines(True)
    return (
        "".join(difflib.unified_diff(*both, "a/kernels/launch_table.py", "b/kernels/launch_table.py")) if lines else ""
    )


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted({kernel for kernel, *_ in TABLE})
    parser.add_argument("--kernels", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--workload", default="mosei-unaligned")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dim", type=int, choices=WIDTHS, default=256)
    parser.add_argument("--seconds", type=float, default=190.0)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    return parser.parse_args(given)


@dataclass(frozen=True)
class Swept:
    """A kernel's tries, the table's entry first; finished: whether the time sufficed for all."""

    key: Key
    tries: tuple[Try, ...]
    finished: bool

    @property
    def winner(self) -> Try:
        """The fastest, or the table's."""
        return best(self.tries)

    def line(self) -> str:
        """For launch_table.py; empty where the table's entry stays."""
        if self.winner is self.tries[0]:
            return ""
        return line(
            self.key, self.winner.entry, f"measured: {self.winner.us / self.tries[0].us:.2f} of the time before"
        )

    def told(self) -> dict[str, object]:
        """As JSON keeps it."""
        tries = [asdict(t) for t in self.tries]
        return {"key": self.key._asdict(), "winner": asdict(self.winner), "finished": self.finished, "tries": tries}


def sweep(chosen: argparse.Namespace, step: Step) -> Iterator[Swept]:
    """Every chosen kernel that the step launches, while the time lasts."""
    end = time.monotonic() + chosen.seconds
    launches, expected = step.run()
    for kernel, launch in launches.items():
        if chosen.kernels and kernel not in chosen.kernels:
            continue
        key = Key(kernel, KINDS[chosen.dtype], chosen.dim, step.architecture)
        every, tries = [launch.entry, *candidates(launch.entry)], []
        for entry in every:
            if not tries or time.monotonic() < end:
                tries.append(attempt(key, entry, step, expected, lambda found: timed(found, chosen.device)))
        if tries[0].us is None:
            raise RuntimeError(f"{kernel}: the table's own entry does not run: {tries[0].refused}")
        yield Swept(key, tuple(tries), len(tries) == len(every))
        if time.monotonic() >= end:
            return


def main(given: Sequence[str] | None = None) -> int:
    """Sweeps, prints a line a kernel and writes both files; 2 where the device is not there."""
    chosen = arguments(given)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("gpu-tune: torch finds no GPU here, so there is nothing to time.", file=sys.stderr)
        return 2
    step, swept = Step(chosen), []
    for one in sweep(chosen, step):
        swept.append(one)
        tried = f"{len(one.tries)} tried{'' if one.finished else ', more left'}"
        print(f"{one.key.kernel:28} {one.tries[0].us:9.1f} us {one.winner.us:9.1f} us  {tried}", flush=True)
    chosen.out.mkdir(parents=True, exist_ok=True)
    about = {"device": chosen.device, "workload": chosen.workload, "batch": chosen.batch, "dtype": chosen.dtype}
    result = {**about, "kernels": [one.told() for one in swept]}
    (chosen.out / "gpu-tune-table.json").write_text(json.dumps(result, indent=2) + "\n")
    lines = [one.line() for one in swept if one.line()]
    (chosen.out / "gpu-tune.diff").write_text(diff(lines))
    print(f"{len(lines)} of {len(swept)} kernels have a faster entry")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
