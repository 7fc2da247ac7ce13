"""`make gpu-versions`: the kernels compiled by other tritons than the installed one.

    python -m bench.gpu.versions [VERSION ...] [--sweep main|every]     every published minor from LOWEST on

A version that is not the installed one is fetched by pip, alone, into build/triton-<version> and put before it; none is
needed at run time. What a sweep found is kept in build/versions and holds while the sources it was made from do. Says
what does not compile; the exit status is then 1. Budgets are held to PINNED only (`bench.gpu.report`).
"""

from __future__ import annotations

import argparse
import fcntl
import gc
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

LOWEST, PINNED = "3.5.1", "3.7.1"  # what torch 2.9 and 2.13 bring
ARCHITECTURES = ("sm80", "sm90")
ROOT = Path(__file__).resolve().parents[2]
FETCHED = ROOT / "build"
FOUND = FETCHED / "versions"
SOURCES = (
    "kernels/**/*.py",
    "hhmpn_fast/ops/*.py",
    *(f"bench/gpu/{n}.py" for n in ("launches", "compile", "versions")),
)
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries=0", "--timeout=20")


DIM = 256  # the models' width; 64 takes the compilers as long
SWEEPS = ("main", "every")  # forms; in every dtype, for every architecture


class Unfetched(Exception):
    """Pip did not get what was asked for; says why."""


def pip(*arguments: str) -> str:
    """What pip prints."""
    done = subprocess.run([*PIP, *arguments], capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise Unfetched(f"pip {' '.join(arguments[:2])} triton: {said[-1] if said else f'status {done.returncode}'}")
    return done.stdout


def minors(versions: Iterable[str]) -> list[str]:
    """The last patch of every minor from LOWEST on, oldest first; releases only."""
    numbers = [tuple(map(int, v.split("."))) for v in versions if re.fullmatch(r"\d+\.\d+\.\d+", v)]
    last: dict[tuple[int, ...], tuple[int, ...]] = {}
    for number in sorted(numbers):
        last[number[:2]] = number
    lowest = tuple(map(int, LOWEST.split(".")))
    return [".".join(map(str, n)) for n in sorted(last.values()) if n >= lowest]


def published() -> list[str]:
    """The minors that pip finds."""
    said = re.search(r"Available versions: (.*)", pip("index", "versions", "triton"))
    return minors(said[1].split(", ")) if said else []


def path_of(version: str) -> list[str]:
    """The folders to put before the installed packages: none for the installed version; fetched where need be."""
    if metadata.version("triton") == version:
        return []
    folder = FETCHED / f"triton-{version}"
    folder.parent.mkdir(exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two processes one fetches
        if not (folder / "triton").is_dir():
            half = folder.with_name(f"{folder.name}.half")
            shutil.rmtree(half, ignore_errors=True)
            pip("install", "-q", "--no-deps", "--target", str(half), f"triton=={version}")
            half.rename(folder)
    return [str(folder)]


def digest() -> str:
    """20 hex digits over the sources that decide what is compiled, and this Python's version."""
    found = hashlib.sha256(sys.version.encode())
    for file in sorted(f for pattern in SOURCES for f in ROOT.glob(pattern)):
        found.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:20]


def compile_here(sweep: str) -> dict[str, object]:
    """Compiles a sweep with the triton of this process: its version, how many forms, a sentence a form that fails."""
    import triton

    from bench.gpu.compile import build
    from bench.gpu.launches import KINDS, recorded

    count, failed = 0, []
    for architecture in ARCHITECTURES:
        for dtype in KINDS:
            for (kernel, form), launch in recorded(dtype, DIM, architecture).items():
                if form and sweep == "main":
                    continue
                count += 1
                try:
                    build(launch, architecture)
                except Exception as error:  # whatever a compiler raises
                    said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                    failed.append(f"{architecture} {kernel} {dtype} {form or 'main form'}: {said}")
    return {"triton": triton.__version__, "compiled": count, "failed": failed}


def check(version: str, name: str) -> dict[str, object]:
    """What `compile_here` finds under a version, in a process of its own; from build/versions where it holds."""
    kept = FOUND / f"{version}-{name}-{digest()}.json"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        for older in FOUND.glob(f"{version}-{name}-*.json"):
            older.unlink(missing_ok=True)
        path = os.pathsep.join([*path_of(version), str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": path}
        command = [sys.executable, "-W", "ignore", "-m", "bench.gpu.versions", "--here", "--sweep", name]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"triton {version} does not start: {done.stderr[-2000:]}")
        half = kept.with_suffix(f".{os.getpid()}")
        half.write_text(done.stdout.splitlines()[-1] + "\n")
        half.rename(kept)
    found = json.loads(kept.read_text())
    if found["triton"] != version:
        raise RuntimeError(f"asked for triton {version}, and {found['triton']} was imported")
    return found


def main(given: Sequence[str] | None = None) -> int:
    """A line a version; 1 where something does not compile, 2 where a version cannot be fetched."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", metavar="VERSION", help="such as 3.6.0")
    parser.add_argument("--sweep", choices=SWEEPS, default="every", help="the main forms only, or every launched one")
    parser.add_argument("--here", action="store_true", help="the triton of this process only, as JSON")
    chosen = parser.parse_args(given)
    if chosen.here:
        gc.disable()  # half of the time goes into Python objects made from syntax trees
        print(json.dumps(compile_here(chosen.sweep)))
        return 0
    status = 0
    try:
        for version in chosen.versions or published():
            found = check(version, chosen.sweep)
            print(f"triton {version}: {found['compiled']} forms, {len(found['failed'])} fail to compile")
            print(*found["failed"], sep="\n", end="\n" if found["failed"] else "", flush=True)
            status = max(status, int(bool(found["failed"])))
    except Unfetched as error:
        print(f"gpu-versions: {error}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    raise SystemExit(main())
