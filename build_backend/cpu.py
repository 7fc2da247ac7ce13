"""Builds hhmpn_fast._C: the host files of csrc/cpu against the installed torch, the unit files once an instruction set.

HHMPN_CPU_UNITS   auto (the default), all, or names: portable avx2 avx512 avx512_bf16
auto              in an editable install what this machine can run, portable and its best; else all
HHMPN_SANITIZE    address, undefined: a build for tests/cpu/sanitize.py

Objects stay in build/cpu, sanitized ones in build/cpu_sanitized, whoever asked for the build, and are made again only
where a source, a header or a flag changed.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc" / "cpu"
HOST_FLAGS = "-O2 -std=c++20 -fPIC -fopenmp -fvisibility=hidden -Wall -Wno-sign-compare -Wno-unknown-pragmas"
UNIT_FLAGS = (
    "-O3 -std=c++17 -fPIC -fno-math-errno -fno-trapping-math -fno-strict-aliasing -fvisibility=hidden "
    "-Wall -Wno-stringop-overflow -Wno-maybe-uninitialized"
)
ISA_FLAGS = {
    "portable": "",
    "avx2": "-march=x86-64-v3",
    "avx512": "-march=x86-64-v4 -mprefer-vector-width=512",
    "avx512_bf16": "-march=x86-64-v4 -mprefer-vector-width=512 -mavx512bf16",
}
# What a processor must have for a unit, as /proc/cpuinfo spells it.
ISA_NEEDS = {
    "avx2": ("avx2", "fma"),
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"),
    "avx512_bf16": ("avx512_bf16",),
}
SECONDS = {"host": 100, "portable": 30, "avx2": 35, "avx512": 45, "avx512_bf16": 20}  # of one core, measured


def isas(editable: bool) -> list[str]:
    """The instruction sets to build units for."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ["portable"]
    wanted = os.environ.get("HHMPN_CPU_UNITS", "auto").split()
    if wanted == ["all"] or (wanted == ["auto"] and not editable):
        return list(ISA_FLAGS)
    if wanted == ["auto"]:
        return ["portable", *_best()]
    unknown = [name for name in wanted if name not in ISA_FLAGS]
    if unknown or "portable" not in wanted or ("avx512_bf16" in wanted and "avx512" not in wanted):
        raise SystemExit(
            f"HHMPN_CPU_UNITS is '{' '.join(wanted)}'; expected auto, all, or portable and any of "
            f"{', '.join(ISA_FLAGS)}, avx512_bf16 only with avx512."
        )
    return wanted


def _best() -> list[str]:
    """This machine's own units beside portable; all where it does not say what it has."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = set(next(line for line in file if line.startswith("flags")).split())
    except (OSError, StopIteration):
        return [name for name in ISA_FLAGS if name != "portable"]
    has = [name for name, needs in ISA_NEEDS.items() if flags.issuperset(needs)]
    if "avx512" in has and "avx2" in has:
        return [name for name in has if name != "avx2"]
    return ["avx2"] if "avx2" in has else []


def lack() -> tuple[str, str] | None:
    """What keeps the extension from being built and what to do about it, or None."""
    try:
        import torch.utils.cpp_extension  # noqa: F401
    except ImportError:
        return "no torch in this environment", "install torch and reinstall"
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        return "no C++ compiler (c++) on PATH", "install g++ and reinstall"
    return None


def build(target: Path, editable: bool) -> list[str]:
    """Compiles what changed and links `target`; returns the instruction sets it holds."""
    sanitized = "_sanitized" if os.environ.get("HHMPN_SANITIZE") else ""
    folder, held = ROOT / "build" / f"cpu{sanitized}", isas(editable)
    folder.mkdir(parents=True, exist_ok=True)
    objects = _write_ninja(folder, held)
    ninja = [_find_ninja(), "-C", str(folder)]
    jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
    plan = subprocess.run([*ninja, "-n"], check=True, capture_output=True, text=True).stdout
    waiting = [name for name in objects if f"{name}\n" in plan]
    cores = int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))
    seconds = sum(SECONDS[kind] / count for kind, count in (_share(name, objects) for name in waiting)) / cores
    about = f"about {max(round(seconds, -1), 10):.0f} s on {cores} cores" if waiting else "nothing changed"
    print(
        f"hhmpn_fast: CPU kernels for {' '.join(held)}: {len(waiting)} of {len(objects)} objects, {about}.", flush=True
    )
    subprocess.run([*ninja, *jobs], check=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "_C.so", target)
    return held


def _share(name: str, objects: list[str]) -> tuple[str, int]:
    """What an object is of, and how many there are of it."""
    kind = name.split("/")[0]
    return kind, sum(o.startswith(f"{kind}/") for o in objects)


def _write_ninja(folder: Path, held: list[str]) -> list[str]:
    from torch.utils.cpp_extension import include_paths, library_paths

    sanitize = os.environ.get("HHMPN_SANITIZE", "")
    # -O1 compiles in a third of the time; the other flag keeps fused multiply-adds, which the error bounds count on.
    extra = f"-fsanitize={sanitize} -fno-omit-frame-pointer -g1 -O1 -fexpensive-optimizations" if sanitize else ""
    define = " ".join(f"-DHHMPN_UNIT_{isa.upper()}" for isa in held)
    include = " ".join(f"-isystem {shlex.quote(p)}" for p in [*include_paths(), sysconfig.get_paths()["include"]])
    library = " ".join(f"-L{shlex.quote(p)} -Wl,-rpath,{shlex.quote(p)}" for p in library_paths())
    lines = [
        f"cxx = {os.environ.get('CXX', 'c++')}",
        "rule compile",
        "  command = $cxx -MMD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule prefix",
        "  command = $cxx -MMD -MF $out.d $flags -x c++-header -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        "  command = $cxx -shared -fopenmp $in -o $out $flags -ltorch -ltorch_cpu -lc10",
    ]
    objects = []

    def add(source: Path, kind: str, flags: str, needs: str = "") -> None:
        inside = source.relative_to(SOURCES)
        stem = "_".join(inside.parts).removesuffix(".cpp")
        objects.append(f"{kind}/{stem}.o")
        lines.extend([f"build {objects[-1]}: compile {source}{needs}", f"  flags = {flags} -I{SOURCES} {extra}"])

    # The longest first, so that none is left alone at the end.
    for isa in sorted(held, key=lambda name: -SECONDS[name]):
        for source in sorted(SOURCES.rglob("*unit.cpp"), key=lambda p: -p.stat().st_size):
            add(source, isa, f"-DHHMPN_ISA={isa} {UNIT_FLAGS} {ISA_FLAGS[isa]}")
    # The compiler finds the compiled header beside a copy of it; other compilers than g++ may read the copy itself.
    host = f"{HOST_FLAGS} {define} {include}"
    prefix, held_prefix = SOURCES / "host" / "prefix.h", folder / "prefix" / "prefix.h"
    held_prefix.parent.mkdir(exist_ok=True)
    if not held_prefix.exists() or held_prefix.read_bytes() != prefix.read_bytes():
        shutil.copyfile(prefix, held_prefix)
    lines += ["build prefix/prefix.h.gch: prefix prefix/prefix.h", f"  flags = {host} -I{SOURCES} {extra}"]
    for source in sorted(SOURCES.rglob("*.cpp")):
        if not source.name.endswith("unit.cpp"):
            add(source, "host", f"-include prefix/prefix.h {host}", " | prefix/prefix.h.gch")
    lines += [f"build _C.so: link {' '.join(objects)}", f"  flags = {library} {extra}", "default _C.so"]
    (folder / "build.ninja").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return objects


def _find_ninja() -> str:
    """The ninja of the build environment."""
    beside = Path(sys.executable).with_name("ninja")
    try:
        from ninja import BIN_DIR

        return str(Path(BIN_DIR) / "ninja")
    except ImportError:
        return str(beside) if beside.exists() else "ninja"
