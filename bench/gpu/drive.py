"""`make gpu` and its stages: runs them, each within its time, and says in one table what came of each.

    python -m bench.gpu.drive [gpu | gpu-build | gpu-test | gpu-sanitize | gpu-bench | gpu-tune ...]
                              [--out FOLDER] [--seconds 230] [--dry-run]

For a machine with a GPU, its own torch, triton and nvcc, and no network; nothing is installed. Each stage writes
<stage>.log and <stage>.json into FOLDER. A stage that fails or does not end does not stop the next; a part whose tool
is not there is told as missing. The exit status is 0, 1 where a stage failed, 2 where there is no GPU. --dry-run prints
the commands.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.gpu.stages import Outcome, Part, Stage, stages

ROOT = Path(__file__).resolve().parents[2]
ALL = ("gpu-build", "gpu-test", "gpu-sanitize", "gpu-bench")
SECONDS = 230.0  # of a stage: within 4 minutes with the start of this program
BAD = ("failed", "timed out")
GRACE = 10.0  # between the interrupt, after which pytest still writes what it has, and the kill

_live: set[subprocess.Popen] = set()


@dataclass(frozen=True)
class Result:
    """What came of a part: "ok", "failed", "timed out" or "missing"."""

    part: Part
    status: str
    code: int | None
    seconds: float
    outcome: Outcome
    log: str


def no_gpu() -> str | None:
    """Why there is nothing to do here, or None."""
    try:
        import torch
    except ImportError:
        return f"gpu: {sys.executable} has no torch; PYTHON= chooses another interpreter."
    return None if torch.cuda.is_available() else "gpu: torch finds no GPU here, so nothing can be run or measured."


def machine() -> dict[str, object]:
    """The machine in words."""
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"gpu": name, "torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count()}


def run(part: Part, seconds: float) -> Result:
    """Runs a part in a process group of its own, of which nothing is left after `seconds`."""
    if part.missing:
        return Result(part, "missing", None, 0.0, Outcome(False, part.missing, {}), "")
    begin = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **dict(part.environment)}
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        child = subprocess.Popen(
            part.command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        ended = False
        _live.add(child)
        try:
            ended = _wait(child, seconds - GRACE)
            if not ended:
                _signal(child, signal.SIGINT)
                _wait(child, GRACE)
        finally:
            _signal(child, signal.SIGKILL)
            child.wait()
            _live.discard(child)
        log.seek(0)
        text = log.read()
    outcome = part.read(text)
    good = child.returncode == 0 and outcome.good
    status = ("ok" if good else "failed") if ended else "timed out"
    return Result(part, status, child.returncode, time.monotonic() - begin, outcome, text)


def _wait(child: subprocess.Popen, seconds: float) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(max(seconds, 0))
        return True
    return False


def _signal(child: subprocess.Popen, which: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, which)


def leave(number: int, frame: object) -> None:
    """What a signal to this program does: nothing is left running."""
    for child in list(_live):
        _signal(child, signal.SIGKILL)
    sys.exit(128 + number)


def perform(stage: Stage, seconds: float) -> list[Result]:
    """All parts of a stage within `seconds`."""
    end = time.monotonic() + seconds
    if stage.together:
        with ThreadPoolExecutor(len(stage.parts)) as pool:
            return list(pool.map(lambda part: run(part, seconds), stage.parts))
    return [run(part, end - time.monotonic()) for part in stage.parts]


def record(stage: Stage, results: Sequence[Result]) -> dict[str, object]:
    """A stage as JSON keeps it."""
    parts = [
        {
            "name": r.part.name,
            "command": shlex.join(r.part.command),
            "status": r.status,
            "code": r.code,
            "seconds": round(r.seconds, 1),
            "note": r.outcome.note,
            **r.outcome.figures,
        }
        for r in results
    ]
    return {"stage": stage.name, "ok": not any(r.status in BAD for r in results), "machine": machine(), "parts": parts}


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns lined up."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows)


def lines_of(name: str, results: Sequence[Result]) -> list[list[str]]:
    """A stage's rows of the table."""
    return [[name, r.part.name, r.status, f"{r.seconds:.0f} s", r.outcome.note] for r in results]


def one(stage: Stage, out: Path, seconds: float) -> list[list[str]]:
    """Runs a stage, writes its log and JSON, prints its table; returns the rows."""
    print(f"{stage.name}: at most {seconds:.0f} s", flush=True)
    results = perform(stage, seconds)
    said = [f"$ {shlex.join(r.part.command)}\n{r.log}" for r in results]
    (out / f"{stage.name}.log").write_text("\n".join(said))
    (out / f"{stage.name}.json").write_text(json.dumps(record(stage, results), indent=2) + "\n")
    for r in results:
        shown = max(r.part.shown, 15) if r.status in BAD else r.part.shown
        if shown and r.log:
            print("\n".join(r.log.splitlines()[-shown:]))
    rows = lines_of(stage.name, results)
    print(table(rows), flush=True)
    return rows


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", default=["gpu"], metavar="STAGE")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a stage, at most")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    chosen = parser.parse_args(given)
    known = ("gpu", *ALL, "gpu-tune")
    for name in chosen.stages:
        if name not in known:
            parser.error(f"stage: found '{name}'; expected one of {', '.join(known)}.")
    if chosen.seconds <= GRACE:
        parser.error(f"--seconds: found {chosen.seconds:g}; expected more than {GRACE:g}.")
    chosen.stages = [stage for name in chosen.stages for stage in (ALL if name == "gpu" else (name,))]
    return chosen


def main(given: Sequence[str] | None = None) -> int:
    """Runs the stages; the exit status says what came of them."""
    chosen = arguments(given)
    reason = None if chosen.dry_run else no_gpu()
    if reason:
        print(reason, file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    out = chosen.out.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        every = stages(sys.executable, Path(scratch), chosen.seconds, out)
        if chosen.dry_run:
            for stage in (every[name] for name in chosen.stages):
                for part in stage.parts:
                    print(f"{stage.name}: {part.missing or shlex.join(part.command)}")
            return 0
        out.mkdir(parents=True, exist_ok=True)
        rows = [row for name in chosen.stages for row in one(every[name], out, chosen.seconds)]
    if len(chosen.stages) > 1:
        print(f"\nmake gpu, logs and JSON in {out}")
        print(table(rows))
    return int(any(status in BAD for _, _, status, _, _ in rows))


if __name__ == "__main__":
    raise SystemExit(main())
