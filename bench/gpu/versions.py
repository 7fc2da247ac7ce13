"""`make gpu-versions`: every launched form compiled by other tritons than the installed one.

    python -m bench.gpu.versions [VERSION ...]     the lowest that pyproject.toml allows, and torch 2.13's

A version is installed by pip, alone, into build/triton-<version> and put before the installed one. Says what does not
compile; the exit status is then 1. Budgets are held to the installed triton only (`bench.gpu.report`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

VERSIONS = ("3.5.1", "3.7.1")
ARCHITECTURES = ("sm80", "sm90")
ROOT = Path(__file__).resolve().parents[2]


def installed(version: str) -> Path:
    """The folder that holds a version; fetched where it is not there."""
    folder = ROOT / "build" / f"triton-{version}"
    if not (folder / "triton").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
        subprocess.run([*pip, f"triton=={version}"], check=True)
    return folder


def compile_here(architectures: Sequence[str] = ARCHITECTURES) -> int:
    """Compiles every form, bf16 at d = 256, with the triton of this process; the number that fail."""
    import triton

    from bench.gpu.compile import compiled
    from bench.gpu.launches import forms

    failed = 0
    for architecture in architectures:
        for kernel, others in forms().items():
            for form in ("", *others):
                try:
                    compiled(kernel, "bf16", 256, architecture, form)
                except Exception as error:  # whatever a compiler raises
                    failed += 1
                    print(f"triton {triton.__version__}: {architecture} {kernel} {form or 'main form'}: {error}")
    print(f"triton {triton.__version__}: {failed or 'none'} of the forms fail to compile")
    return failed


def main() -> int:
    """Every version in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=VERSIONS, metavar="VERSION")
    code, failed = "import sys; from bench.gpu.versions import compile_here; sys.exit(compile_here() > 0)", 0
    for version in parser.parse_args().versions:
        path = os.pathsep.join([str(installed(version)), str(ROOT), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env={**os.environ, "PYTHONPATH": path})
        failed += done.returncode != 0
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
