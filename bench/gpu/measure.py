"""`make bench-gpu`: on a GPU, times the workloads on the triton and torch backends; elsewhere says so, exits with 2.

    python -m bench.gpu.measure [--rounds 20] [--workloads NAME ...]

Each backend's forward pass and training step, interleaved, by CUDA events around whole calls, the cache flushed before
each; medians in milliseconds. Writes docs/gpu/measured.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.core.workloads import BATCH, NAMES, WORKLOADS
from hhmpn_fast.backends import use_backend

BACKENDS = ("triton", "torch")
MODES = ("infer", "train")
DTYPES = (torch.bfloat16, torch.float32)
FLUSH = 256 * 2**20  # bytes, more than any part's cache
OUT = Path(__file__).resolve().parents[2] / "docs" / "gpu" / "measured.md"


@dataclass(frozen=True)
class Record:
    """What one call took: milliseconds, a value a round."""

    workload: str
    dtype: str
    mode: str
    backend: str
    times: tuple[float, ...]


def timed(run: Callable[[], object], flush: torch.Tensor) -> float:
    """Milliseconds of one call on the device."""
    flush.zero_()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def calls(
    name: str, dtype: torch.dtype, device: str = "cuda", size: int = BATCH
) -> dict[tuple[str, str], Callable[[], object]]:
    """(mode, backend) -> one call."""
    workload = WORKLOADS[name]
    model = workload.model(dropout=0.2).to(device, dtype)
    batch, targets = workload.batch(size, dtype=dtype).to(device), workload.targets(size).to(device, dtype)

    def infer(backend: str) -> object:
        model.eval()
        with use_backend(backend), torch.no_grad():
            return model(batch)

    def train(backend: str) -> object:
        model.train()
        model.zero_grad(set_to_none=True)
        with use_backend(backend):
            loss = model.loss(model(batch), targets)
        loss.backward()
        return loss

    return {(m, b): (lambda b=b, f=f: f(b)) for m, f in zip(MODES, (infer, train)) for b in BACKENDS}


def measure(names: Sequence[str], rounds: int) -> Iterator[Record]:
    """Times every call of every workload, one round after another."""
    flush = torch.empty(FLUSH, dtype=torch.int8, device="cuda")
    for name in names:
        for dtype in DTYPES:
            runs = calls(name, dtype)
            for run in runs.values():  # compiles, and warms up
                run()
            times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
            for _ in range(rounds):
                for key, run in runs.items():
                    times[key].append(timed(run, flush))
            for (mode, backend), found in times.items():
                yield Record(name, str(dtype).removeprefix("torch."), mode, backend, tuple(found))


def report(machine: str, records: Sequence[Record]) -> str:
    """Medians and quartiles of every call, and the torch backend's median over triton's."""
    medians = {(r.workload, r.dtype, r.mode, r.backend): statistics.median(r.times) for r in records}
    lines = [
        "# GPU kernels: measured",
        "",
        f"{machine}. CUDA events around whole calls, backends interleaved, cache flushed before each; milliseconds.",
        "",
        "| workload | dtype | mode | backend | rounds | median | quartiles | torch / triton |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in records:
        key = (r.workload, r.dtype, r.mode)
        low, _, high = statistics.quantiles(r.times, n=4) if len(r.times) > 1 else r.times * 3
        both = [medians.get((*key, backend)) for backend in ("torch", "triton")]
        ratio = f"{both[0] / both[1]:.2f}" if all(both) and r.backend == "triton" else ""
        cells = [*key, r.backend, len(r.times), f"{medians[(*key, r.backend)]:.3f}", f"{low:.3f} to {high:.3f}", ratio]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; a wrong one ends the program with a sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--workloads", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME")
    chosen = parser.parse_args(given)
    if chosen.rounds < 1:
        parser.error(f"--rounds: found {chosen.rounds}; expected at least 1.")
    return chosen


def main() -> int:
    """Measures and writes the report; 2 where there is no GPU."""
    chosen = arguments()
    if not torch.cuda.is_available():
        print(
            "bench-gpu: torch finds no GPU here, so there is nothing to measure; see `make gpu-report`.",
            file=sys.stderr,
        )
        return 2
    records = []
    for record in measure(chosen.workloads, chosen.rounds):
        records.append(record)
        print(record.workload, record.dtype, record.mode, record.backend, f"{statistics.median(record.times):.3f} ms")
    OUT.write_text(report(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", records))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
