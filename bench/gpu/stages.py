"""What `make gpu` runs: stages of parts, a command each, and what is read out of a part's output.

    gpu-build      what is missing of the extensions, for the GPUs of this machine
    gpu-test       the tests marked `gpu`, eight at a time
    gpu-sanitize   compute-sanitizer's memcheck and racecheck over every op of triton and cuda, at small shapes
    gpu-bench      the times (`bench.gpu.measure`)
    gpu-tune       candidates of the launch table, a kernel at a time (`bench.gpu.tune`)

`bench.gpu.drive` runs them. `gpu` is all but the last.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

SANITIZER = "compute-sanitizer"
TOOLS = {"memcheck": ("--report-api-errors", "no"), "racecheck": ()}  # PyTorch asks drivers for what they lack
BACKENDS = ("triton", "cuda")
PLACES = ("/usr/local/cuda",)  # where toolkits are, beside PATH and CUDA_HOME
WORKERS = 8
# memcheck sees every allocation's own bounds only where PyTorch keeps none back.
SANITIZED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


@dataclass(frozen=True)
class Outcome:
    """What a part's output says: whether it is good, beside its exit status; a few words; the figures."""

    good: bool
    note: str
    figures: dict[str, object]


@dataclass(frozen=True)
class Part:
    """One command of a stage.

    missing: why it cannot run here, or None.  read: its output to an `Outcome`.  shown: lines of it printed at last.
    """

    name: str
    command: tuple[str, ...]
    read: Callable[[str], Outcome]
    missing: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    shown: int = 0


@dataclass(frozen=True)
class Stage:
    """Parts one after another, or all at once where `together`."""

    name: str
    parts: tuple[Part, ...]
    together: bool = False


def last_line(output: str) -> Outcome:
    """The last line says it."""
    lines = [line for line in output.splitlines() if line.strip()]
    return Outcome(True, lines[-1][:110] if lines else "no output", {})


def counts_of(report: Path) -> Callable[[str], Outcome]:
    """Reads pytest's XML: counts, a file's own, and the names of what failed."""

    def read(output: str) -> Outcome:
        if not report.is_file():
            return Outcome(False, last_line(output).note, {})
        files: dict[str, dict[str, int]] = {}
        failed, kinds = [], {"failure": "failed", "error": "failed", "skipped": "skipped"}
        for case in ElementTree.parse(report).iter("testcase"):
            kind = next((kinds[child.tag] for child in case if child.tag in kinds), "passed")
            counts = files.setdefault(case.get("classname", ""), {"passed": 0, "failed": 0, "skipped": 0})
            counts[kind] += 1
            if kind == "failed":
                failed.append(f"{case.get('classname')}::{case.get('name')}")
        total = {kind: sum(counts[kind] for counts in files.values()) for kind in ("passed", "failed", "skipped")}
        note = ", ".join(f"{count} {kind}" for kind, count in total.items())
        good = total["passed"] > 0 and not total["failed"]
        return Outcome(good, note, {**total, "files": files, "failures": failed})

    return read


def sanitized(output: str) -> Outcome:
    """Reads compute-sanitizer's summary; without one nothing was shown."""
    found = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", output)
    refused = re.search(r"Device not supported|failed to initialize.*", output, re.IGNORECASE)
    if refused or not found:
        return Outcome(False, f"the tool did not run: {refused[0] if refused else 'no summary'}", {})
    count = re.match(r"(\d+) (?:error|hazard)", found[-1])
    return Outcome(bool(count) and count[1] == "0", found[-1], {"found": int(count[1]) if count else None})


def find(tool: str) -> str | None:
    """A CUDA tool's path: on PATH, in CUDA_HOME/bin, in /usr/local/cuda/bin."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), *PLACES]
    places = [shutil.which(tool), *(f"{home}/bin/{tool}" for home in homes if home)]
    return next((p for p in places if p and Path(p).is_file()), None)


def checked(python: str, tool: str | None, name: str, backend: str) -> Part:
    """A backend's ops at small shapes under one of compute-sanitizer's tools."""
    options = ("--tool", name, *TOOLS[name], "--error-exitcode", "9", "--target-processes", "application-only")
    return Part(
        f"{name}, {backend}",
        (tool or SANITIZER, *options, python, "-m", "bench.gpu.small", "--backend", backend),
        sanitized,
        missing=None if tool else f"no {SANITIZER} on PATH, in CUDA_HOME/bin or in /usr/local/cuda/bin",
        environment=tuple(SANITIZED.items()),
    )


def stages(python: str, scratch: Path, seconds: float, out: Path) -> dict[str, Stage]:
    """Every stage by name. scratch: a folder for what nobody keeps. out: where results go."""
    report, tool = scratch / "tests.xml", find(SANITIZER)
    pytest = (python, "-m", "pytest", "tests", "-m", "gpu", "-n", str(WORKERS), "--dist", "worksteal")
    pytest += ("--tb=short", "-p", "no:cacheprovider", f"--junitxml={report}")
    tune = (python, "-m", "bench.gpu.tune", "--seconds", f"{max(seconds - 40, 10):.0f}", "--out", str(out))
    every = (
        Stage("gpu-build", (Part("build", (python, "-m", "bench.gpu.build"), last_line),)),
        Stage("gpu-test", (Part("tests", pytest, counts_of(report)),)),
        Stage("gpu-sanitize", tuple(checked(python, tool, t, b) for t in TOOLS for b in BACKENDS), together=True),
        Stage("gpu-bench", (Part("measure", (python, "-m", "bench.gpu.measure"), last_line, shown=40),)),
        Stage("gpu-tune", (Part("tune", tune, last_line, shown=20),)),
    )
    return {stage.name: stage for stage in every}
