"""Builds the CUDA library beside the package, or says why not; the decision is printed and kept in a manifest.

HHMPN_CUDA   0 never, 1 or fail, auto (the default) if an nvcc of 12.0 or newer is found
nvcc         CUDA_HOME/bin, then PATH, then /usr/local/cuda/bin
for          sm_80, sm_90 and PTX for newer GPUs; an editable installation with auto: this machine's GPUs only, none:
             not built
result       libhhmpn_cuda.so (kernels), _cuda.so (binding), cuda_manifest.json
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc" / "cuda"
ARCHITECTURES = ("sm_80", "sm_90", "compute_90")
OLDEST_GPU = 80
QUERY = ("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
QUERY_SECONDS = 20  # a driver that wakes up takes a few
LIBRARY, BINDING, MANIFEST = "libhhmpn_cuda.so", "_cuda.so", "cuda_manifest.json"
OLDEST_NVCC = (12, 0)  # C++20 and sm_90
# A register that spills is an error: a budget kept by the build itself.
NVCC_FLAGS = [
    "-std=c++20",
    "-O3",
    "-Xcompiler=-fPIC,-fvisibility=default",
    "-Xptxas=-warn-spills,-Werror",
    "-diag-suppress=177",
]


def find_nvcc() -> str | None:
    """nvcc's path, or None."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [Path(home) / "bin" / "nvcc"] if home else []
    found = shutil.which("nvcc")
    places += [Path(p) for p in (found, "/usr/local/cuda/bin/nvcc") if p]
    return next((str(p) for p in places if p.is_file()), None)


def nvcc_version(nvcc: str) -> tuple[int, int]:
    """(major, minor) of what `nvcc --version` says; (0, 0) when it says none."""
    said = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def own_architectures() -> tuple[str, ...]:
    """("sm_90",) for the GPUs of this machine, in order, as nvidia-smi tells them; empty where it finds none."""
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=QUERY_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.findall(r"^\s*(\d+)\.(\d)\s*$", done.stdout, re.MULTILINE) if done.returncode == 0 else []
    return tuple(f"sm_{n}" for n in sorted({int(major + minor) for major, minor in found}))


def gencode(architectures: Sequence[str]) -> list[str]:
    """nvcc's options for "sm_80" (its code) and "compute_80" (PTX)."""
    return [f"-gencode=arch=compute_{a.split('_')[1]},code={a}" for a in architectures]


class Plan(NamedTuple):
    """What to build: with which nvcc (None: nothing), for which architectures, and why."""

    nvcc: str | None
    reason: str
    architectures: tuple[str, ...] = ()


def decide(editable: bool = False) -> Plan:
    """What to build here; raises SystemExit where HHMPN_CUDA=1 cannot be met."""
    wanted = os.environ.get("HHMPN_CUDA", "auto")
    if wanted not in ("0", "1", "auto"):
        raise SystemExit(f"HHMPN_CUDA is '{wanted}'; expected 0, 1 or auto.")
    if wanted == "0":
        return Plan(None, "HHMPN_CUDA=0")
    nvcc = find_nvcc()
    lack = None
    if nvcc is None:
        lack = "no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda"
    elif (version := nvcc_version(nvcc)) < OLDEST_NVCC:
        found, oldest = (f"{v[0]}.{v[1]}" for v in (version, OLDEST_NVCC))
        lack = f"{nvcc} is release {found}; the kernels need {oldest} or newer"
    if lack and wanted == "1":
        raise SystemExit(f"HHMPN_CUDA=1, but {lack}.")
    if lack:
        return Plan(None, lack)
    if wanted == "1" or not editable:
        return Plan(nvcc, f"HHMPN_CUDA={wanted}, nvcc at {nvcc}", ARCHITECTURES)
    return _for_this_machine(nvcc)


def _for_this_machine(nvcc: str) -> Plan:
    """An editable installation is for one machine: what its GPUs need, and nothing where there is none."""
    found = own_architectures()
    usable = tuple(a for a in found if int(a.split("_")[1]) >= OLDEST_GPU)
    if not usable:
        lack = f"its GPU is {found[0]}; the kernels need sm_80 or newer" if found else "nvidia-smi finds no GPU"
        return Plan(None, f"{lack}; HHMPN_CUDA=1 builds for {', '.join(ARCHITECTURES)}")
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    if not set(usable) <= set(known):  # a GPU newer than its toolkit compiles the PTX when it loads
        usable = ARCHITECTURES
    return Plan(nvcc, f"HHMPN_CUDA=auto, nvcc at {nvcc}, for {', '.join(usable)} of this machine", usable)


def build(package: Path, temp: Path, editable: bool = False) -> None:
    """Puts library, binding and manifest into `package`; objects of unchanged sources are kept in `temp`.

    Where nvcc is there and the build fails, the installation fails: none is left CPU-only without a word.
    """
    for name in (LIBRARY, BINDING, MANIFEST):
        (package / name).unlink(missing_ok=True)
    plan = decide(editable)
    manifest: dict[str, object] = {"cuda": plan.nvcc is not None, "reason": plan.reason}
    if plan.nvcc:
        try:
            compile_library(package / LIBRARY, temp, plan.nvcc, plan.architectures)
            build_binding(package / BINDING)
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                f"hhmpn_fast: the CUDA build failed ({error.cmd[0]} returned {error.returncode}, see above); "
                "HHMPN_CUDA=0 installs without the cuda backend."
            ) from error
        manifest["nvcc"] = ".".join(map(str, nvcc_version(plan.nvcc)))
        manifest["architectures"] = list(plan.architectures)
    (package / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(f"hhmpn_fast: the cuda backend is {'built' if plan.nvcc else 'not built'} ({plan.reason}).", flush=True)


def package_of(command: object) -> Path:
    """Where setuptools' `build_ext` has put, or would put, the package's libraries."""
    package = ROOT / "hhmpn_fast" if command.inplace else Path(command.build_lib) / "hhmpn_fast"
    package.mkdir(parents=True, exist_ok=True)
    return package


def compile_library(target: Path, temp: Path, nvcc: str, architectures: Sequence[str] = ARCHITECTURES) -> None:
    """Compiles and links csrc/cuda; objects of unchanged sources are kept in `temp`."""
    temp.mkdir(parents=True, exist_ok=True)
    headers = b"".join(p.read_bytes() for p in sorted([*SOURCES.rglob("*.cuh"), *SOURCES.rglob("*.h")]))
    toolkit, code = str(nvcc_version(nvcc)), gencode(architectures)

    def one(source: Path) -> str:
        command = [nvcc, *NVCC_FLAGS, *code, f"-I{SOURCES}", "-c", str(source)]
        digest = hashlib.sha256(headers + source.read_bytes() + (toolkit + " ".join(command)).encode()).hexdigest()[:20]
        target = temp / f"{'_'.join(source.relative_to(SOURCES).with_suffix('').parts)}_{digest}.o"
        if not target.exists():
            half = target.with_suffix(".tmp.o")
            subprocess.run([*command, "-o", str(half)], check=True)
            half.rename(target)
        return str(target)

    # The longest first, so that none is left alone at the end.
    sources = sorted(SOURCES.rglob("*.cu"), key=lambda p: -p.stat().st_size)
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", min(os.cpu_count() or 1, 8)))) as pool:
        objects = list(pool.map(one, sources))
    subprocess.run([nvcc, "-shared", "-cudart", "static", *code, "-o", str(target), *objects], check=True)


def build_binding(target: Path) -> None:
    """Compiles csrc/cuda/base/binding.cpp against the installed torch."""
    from torch.utils.cpp_extension import include_paths, library_paths

    flags = [*(f"-I{path}" for path in include_paths()), *(f"-L{path}" for path in library_paths())]
    flags += ["-std=c++20", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wl,--no-as-needed"]
    # libtorch brings libtorch_cuda along where there is one: the stream's function is looked up there.
    libraries = ["-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    command = [
        os.environ.get("CXX", "c++"),
        str(SOURCES / "base" / "binding.cpp"),
        *flags,
        "-o",
        str(target),
        *libraries,
    ]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    build(ROOT / "hhmpn_fast", ROOT / "build" / "cuda")
