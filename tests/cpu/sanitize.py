"""Builds the extension with AddressSanitizer and UBSan into a folder and runs every op and the sweeps on it.

    python tests/cpu/sanitize.py FOLDER [pytest arguments]

HHMPN_CPU_UNITS picks the units; the default builds all. The pool is off, so that every tensor has its own red zones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SWEEPS = [
    f"tests/cpu/test_{name}.py"
    for name in ("embed", "absorb", "attention", "update", "f2f", "tower", "readout", "joint_loss")
]


def main(folder: Path, extra: list[str]) -> int:
    """Returns the exit status of the first part that fails."""
    lib = folder / "lib"
    env = {**os.environ, "HHMPN_SANITIZE": "address,undefined", "HHMPN_CUDA": "0"}
    build = [sys.executable, "setup.py", "-q", "build", f"--build-temp={folder / 'temp'}", f"--build-lib={lib}"]
    if (status := subprocess.run(build, cwd=ROOT, env=env).returncode) != 0:
        return status
    compiler = os.environ.get("CXX", "c++")
    find = [compiler, "-print-file-name=libasan.so"], [compiler, "-print-file-name=libubsan.so"]
    preload = [subprocess.run(f, capture_output=True, text=True, check=True).stdout.strip() for f in find]
    env = {
        **os.environ,
        "LD_PRELOAD": ":".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "HHMPN_CPU_POOL_MB": "0",
        "PYTHONPATH": f"{lib}{os.pathsep}{ROOT}",  # the package of the build, the tests of the tree
    }
    script = str(Path(__file__).with_name("cases.py"))
    cases = subprocess.run([sys.executable, "-P", script], cwd=folder, env=env).returncode
    sweeps = [str(ROOT / s) for s in SWEEPS]
    return (
        cases
        or subprocess.run(
            [
                sys.executable,
                "-P",
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "-k",
                "not opcheck and not memory",  # which would measure the red zones
                *sweeps,
                *extra,
            ],
            cwd=folder,
            env=env,
        ).returncode
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
