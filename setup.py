"""Build: the packages' places, and the C++ and CUDA extensions when a torch to build against is there.

The per-ISA units of csrc/cpu carry their own flags, which torch's BuildExtension cannot give to single files: a small
ninja file builds them first and the extension links their objects.
"""

from __future__ import annotations

import json
import os
import platform
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_backend"))
import cuda_build  # noqa: E402

SOURCES = runpy.run_path(str(ROOT / "hhmpn_fast" / "source_digest.py"))  # importing the package would need torch
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


def isas() -> list[str]:
    """The instruction sets to build units for; HHMPN_CPU_UNITS="portable avx512" leaves the others out."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ["portable"]
    wanted = os.environ.get("HHMPN_CPU_UNITS", " ".join(ISA_FLAGS)).split()
    unknown = [name for name in wanted if name not in ISA_FLAGS]
    if unknown or "portable" not in wanted or ("avx512_bf16" in wanted and "avx512" not in wanted):
        raise SystemExit(
            f"HHMPN_CPU_UNITS is '{' '.join(wanted)}'; expected portable and any of {', '.join(ISA_FLAGS)}, "
            "avx512_bf16 only with avx512."
        )
    return wanted


def build_units(build: Path, extra: str) -> list[str]:
    """Compiles csrc/cpu/*.unit.cpp once an ISA; returns the objects."""
    build.mkdir(parents=True, exist_ok=True)
    compiler = os.environ.get("CXX", "c++")
    lines = [
        f"flags = {UNIT_FLAGS} {extra}",
        "rule unit",
        f"  command = {compiler} -MMD -MF $out.d $flags $isa -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]
    objects = []
    for source in sorted((ROOT / "csrc" / "cpu").glob("*.unit.cpp")):
        for isa in isas():
            objects.append(str(build / f"{source.name.split('.')[0]}_{isa}.o"))
            lines += [f"build {objects[-1]}: unit {source}", f"  isa = -DHHMPN_ISA={isa} {ISA_FLAGS[isa]}"]
    (build / "units.ninja").write_text("\n".join(lines) + "\n")
    jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
    subprocess.run([find_ninja(), "-f", str(build / "units.ninja"), *jobs], check=True, cwd=build)
    return objects


def find_ninja() -> str:
    """The ninja of the build environment."""
    beside = Path(sys.executable).with_name("ninja")
    try:
        from ninja import BIN_DIR

        return str(Path(BIN_DIR) / "ninja")
    except ImportError:
        return str(beside) if beside.exists() else "ninja"


def _without(lack: str, remedy: str) -> dict[str, object]:
    said = f"hhmpn_fast: {lack}, so the cpu and cuda backends are not built; {remedy}."
    if os.environ.get("HHMPN_CUDA") == "1":
        raise SystemExit(said)
    print(said)
    return {}


def extension() -> dict[str, object]:
    """The extensions' part of setup(), or nothing and one sentence that says why."""
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        return _without("no torch in this environment", "install torch and reinstall")
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        return _without("no C++ compiler (c++) on PATH", "install g++ and reinstall")
    sanitize = os.environ.get("HHMPN_SANITIZE", "")
    # -O1 compiles in a third of the time; the other flag keeps fused multiply-adds, which the error bounds count on.
    extra = f"-fsanitize={sanitize} -fno-omit-frame-pointer -g1 -O1 -fexpensive-optimizations" if sanitize else ""
    define = [f"-DHHMPN_UNIT_{isa.upper()}" for isa in isas()]

    class Build(BuildExtension):
        def build_extensions(self) -> None:
            for ext in self.extensions:
                ext.extra_objects = build_units(Path(self.build_temp).resolve() / "units", extra)
            super().build_extensions()

        def run(self) -> None:
            super().run()
            package = cuda_build.package_of(self)
            about = {"sources": SOURCES["digest"](ROOT / "csrc"), "units": isas()}
            (package / SOURCES["MANIFEST"]).write_text(json.dumps(about) + "\n", encoding="utf-8")
            cuda_build.build(package, ROOT / "build" / "cuda", editable=bool(self.inplace))

    sources = [ROOT / "csrc" / "ops.cpp", *(ROOT / "csrc" / "cpu").glob("*.cpp")]
    names = sorted(os.path.relpath(s, ROOT) for s in sources if not s.name.endswith(".unit.cpp"))
    headers = sorted(os.path.relpath(h, ROOT) for h in (ROOT / "csrc" / "cpu").glob("*.h"))
    return {
        "ext_modules": [
            CppExtension(
                "hhmpn_fast._C",
                names,
                depends=headers,
                include_dirs=[str(ROOT / "csrc")],
                extra_compile_args=["-O2", "-g0", "-fvisibility=hidden", "-fopenmp", *define, *extra.split()],
                extra_link_args=["-fopenmp", *extra.split()],
            )
        ],
        "cmdclass": {"build_ext": Build},
    }


setup(
    packages=[
        "hhmpn_fast",
        "hhmpn_fast.backends",
        "hhmpn_fast.backends.cuda",
        "hhmpn_fast.ops",
        "hhmpn_fast.data",
        "hhmpn_fast.kernels",
    ],
    package_dir={"hhmpn_fast": "hhmpn_fast", "hhmpn_fast.kernels": "kernels"},
    **extension(),
)
