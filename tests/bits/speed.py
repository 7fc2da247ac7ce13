"""An old and a new build, interleaved: python tests/bits/speed.py OLD NEW [--quick].

OLD and NEW are roots of two trees, each with its built extension. Two processes, one a tree, build the same models and
batches and run a few steps in turn, so that whatever the machine does meets both. Tasks: a training step (`joint_loss`
and its backward pass) and inference of the three workloads of the benchmark, and what a call costs at B = 1.

    old, new   medians of all steps, in ms
    ratio      median over the rounds of new / old, and the middle half of the rounds
    result     whether loss or logits of the two agree bit for bit
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

# name, feature size, mean length, sigma of its logarithm, longest: the data sets' shapes, as bench/ has them.
TEXT, VISION, AUDIO = ("text", 300, 19.1, 0.7, 128), ("vision", 35, 19.1, 0.7, 128), ("audio", 74, 19.1, 0.7, 128)
WORKLOADS: dict[str, tuple[int, tuple[tuple[str, int, float, float, int], ...]]] = {
    "mosei-aligned": (6, (TEXT, VISION, AUDIO)),
    "mosei-unaligned": (6, (TEXT, ("vision", 35, 109.0, 0.7, 500), ("audio", 74, 182.0, 0.7, 500))),
    "nemu": (
        12,
        (
            ("lyrics", 300, 32.0, 0.6, 128),
            ("comments", 300, 14.0, 0.8, 64),
            ("audio", 74, 115.0, 0.35, 320),
            ("vision", 2048, 3.0, 0.6, 12),
        ),
    ),
}
DIM, STEPS, BATCH = 256, 3, 64
TASKS = (
    *((mode, name, BATCH) for name in WORKLOADS for mode in ("train", "infer")),
    *((mode, "mosei-aligned", 1) for mode in ("train", "infer", "frozen")),
)


def task(mode: str, workload: str, batch: int) -> Callable[[], Any]:
    """One step of the package on this process's path; the value is the loss or the logits."""
    import torch

    from hhmpn_fast import HHMPN, HHMPNConfig, Ragged

    labels, modalities = WORKLOADS[workload]
    torch.manual_seed(0)
    rows = [
        torch.exp(math.log(mean) - sigma**2 / 2 + sigma * torch.randn(batch)).round().long().clamp(1, longest)
        for _, _, mean, sigma, longest in modalities
    ]
    if workload == "mosei-aligned":
        rows = rows[:1] * len(rows)
    values = tuple(torch.randn(int(row.sum()), m[1]) for row, m in zip(rows, modalities))
    features = Ragged(tuple(m[0] for m in modalities), values, torch.stack(rows))
    targets = (torch.rand(batch, labels) < 0.3).float()
    sizes, names = {m[0]: m[1] for m in modalities}, tuple(f"label{i}" for i in range(labels))
    model = HHMPN(HHMPNConfig(sizes, names, dim=DIM, steps=STEPS, dropout=0.0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # by name, so that the two trees may differ in their order
            drawn = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            parameter.copy_(torch.randn(parameter.shape, generator=drawn) * 0.5 * DIM**-0.5)

    def train() -> Any:
        model.zero_grad(set_to_none=True)
        loss, _ = model.joint_loss(features, targets)
        loss.backward()
        return loss.detach()

    if mode == "train":
        return train
    called = model.eval().freeze() if mode == "frozen" else model.eval()

    def infer() -> Any:
        with torch.no_grad():
            return called(features)

    return infer


def serve() -> None:
    """Answers lines {"task": [...], "steps": k} with the seconds of every step, until the input ends."""
    import torch

    import hhmpn_fast

    torch.set_num_threads(int(os.environ["SPEED_THREADS"]))
    print(json.dumps({"package": str(Path(hhmpn_fast.__file__).parent)}), flush=True)
    held: tuple[list, Callable[[], Any]] | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        if held is None or held[0] != asked["task"]:
            held = (asked["task"], task(*asked["task"]))
        seconds, value = [], None
        for _ in range(asked["steps"]):
            start = time.perf_counter()
            value = held[1]()
            seconds.append(time.perf_counter() - start)
        digest = hashlib.sha256(value.float().numpy().tobytes()).hexdigest()[:12]
        print(json.dumps({"seconds": seconds, "digest": digest}), flush=True)


class Worker:
    """A tree's process."""

    def __init__(self, root: Path, threads: int, backend: str) -> None:
        env = {**os.environ, "PYTHONPATH": str(root), "SPEED_THREADS": str(threads), "HHMPN_FAST_BACKEND": backend}
        command = [sys.executable, str(Path(__file__).resolve()), "--serve"]
        self.process = subprocess.Popen(
            command, cwd=root, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        found = Path(self._answer()["package"])
        if found.resolve() != (root / "hhmpn_fast").resolve():
            raise SystemExit(f"speed: {root} gave the package at {found}; expected its own.")

    def ask(self, which: tuple[str, str, int], steps: int) -> dict[str, Any]:
        """Runs some steps of a task."""
        self.process.stdin.write(json.dumps({"task": which, "steps": steps}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"speed: a worker ended with status {self.process.wait()}; see its message above.")
        return json.loads(line)


def measure(workers: tuple[Worker, Worker], which: tuple[str, str, int], budget: float) -> str:
    """One line of the table."""
    first = [w.ask(which, 3) for w in workers]
    fastest = min(min(answer["seconds"]) for answer in first)
    steps = max(1, min(500, round(0.1 / fastest)))  # a turn of about a tenth of a second
    seconds: tuple[list[float], list[float]] = ([], [])
    ratios, stop, turn = [], time.perf_counter() + budget, 0
    while time.perf_counter() < stop or turn < 3:
        medians = [0.0, 0.0]
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            found = workers[side].ask(which, steps)["seconds"]
            seconds[side].extend(found)
            medians[side] = statistics.median(found)
        ratios.append(medians[1] / medians[0])
        turn += 1
    old, new = (statistics.median(s) * 1e3 for s in seconds)
    low, middle, high = statistics.quantiles(ratios, n=4)
    same = "same bits" if first[0]["digest"] == first[1]["digest"] else "OTHER BITS"
    mode, workload, batch = which
    return (
        f"{mode:7} {workload:16} {batch:3}  {old:10.3f} {new:10.3f}   {middle:6.3f}  {low:6.3f}..{high:.3f}"
        f"  {len(ratios):4}   {same}"
    )


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument(
        "--quick", action="store_true", help="three rounds a task with at most two samples, to see that it runs"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each of the tasks")
    parser.add_argument("--backend", default="cpu")
    options = parser.parse_args()
    workers = tuple(Worker(r.resolve(), options.threads, options.backend) for r in (options.old, options.new))
    print(f"{options.backend}, {options.threads} threads, float32, d = {DIM}, T = {STEPS}, no dropout; times in ms")
    print("mode    workload           B         old        new    ratio   middle half  rounds  result")
    for mode, workload, batch in TASKS:
        which = (mode, workload, min(batch, 2) if options.quick else batch)
        print(measure(workers, which, 0.0 if options.quick else options.seconds), flush=True)
    for worker in workers:
        worker.close()
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        sys.exit(main())
