"""Builds the CUDA library beside the package, or says why not; the decision is printed and kept in a manifest.

HHMPN_CUDA   0 never, 1 or fail, auto (the default) if nvcc is found
nvcc         CUDA_HOME/bin, then PATH, then /usr/local/cuda/bin
result       libhhmpn_cuda.so (kernels, sm_80 and sm_90 and PTX), _cuda.so (binding), cuda_manifest.json
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc" / "cuda"
ARCHITECTURES = ("sm_80", "sm_90", "compute_90")
GENCODE = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=[sm_90,compute_90]",
]
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


def decide() -> tuple[bool, str]:
    """Whether to build, and why; raises SystemExit where HHMPN_CUDA=1 cannot be met."""
    wanted = os.environ.get("HHMPN_CUDA", "auto")
    if wanted not in ("0", "1", "auto"):
        raise SystemExit(f"HHMPN_CUDA is '{wanted}'; expected 0, 1 or auto.")
    if wanted == "0":
        return False, "HHMPN_CUDA=0"
    nvcc = find_nvcc()
    if nvcc is None:
        if wanted == "1":
            raise SystemExit("HHMPN_CUDA=1, but no nvcc is found in CUDA_HOME, on PATH or in /usr/local/cuda.")
        return False, "no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda"
    return True, f"HHMPN_CUDA={wanted}, nvcc at {nvcc}"


def build(package: Path, temp: Path) -> None:
    """Puts library, binding and manifest into `package`; objects of unchanged sources are kept in `temp`."""
    wanted, reason = decide()
    manifest: dict[str, object] = {"cuda": wanted, "reason": reason}
    if wanted:
        try:
            manifest["nvcc"] = _compile(package, temp, str(find_nvcc()))
            manifest["architectures"] = list(ARCHITECTURES)
        except subprocess.CalledProcessError as error:
            if os.environ.get("HHMPN_CUDA") == "1":
                raise
            manifest.update(
                cuda=False,
                reason=f"nvcc is there, but the build failed: {' '.join(error.cmd[:1])} returned {error.returncode}",
            )
    if not manifest["cuda"]:
        for name in ("libhhmpn_cuda.so", "_cuda.so"):
            (package / name).unlink(missing_ok=True)
    (package / "cuda_manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    said = "built" if manifest["cuda"] else "not built"
    print(f"hhmpn_fast: the cuda backend is {said} ({manifest['reason']}).", flush=True)


def after(command: object) -> None:
    """Setuptools' hook: builds where `build_ext` has put, or would put, the package's other libraries."""
    package = ROOT / "hhmpn_fast" if command.inplace else Path(command.build_lib) / "hhmpn_fast"
    package.mkdir(parents=True, exist_ok=True)
    build(package, ROOT / "build" / "cuda")


def _compile(package: Path, temp: Path, nvcc: str) -> str:
    temp.mkdir(parents=True, exist_ok=True)
    said = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    version = (re.search(r"release ([\d.]+)", said) or ["", "unknown"])[1]
    headers = b"".join(p.read_bytes() for p in sorted([*SOURCES.glob("*.cuh"), *SOURCES.glob("*.h")]))

    def one(source: Path) -> str:
        command = [nvcc, *NVCC_FLAGS, *GENCODE, "-c", str(source)]
        digest = hashlib.sha256(headers + source.read_bytes() + (version + " ".join(command)).encode()).hexdigest()[:20]
        target = temp / f"{source.stem}_{digest}.o"
        if not target.exists():
            half = target.with_suffix(".tmp.o")
            subprocess.run([*command, "-o", str(half)], check=True)
            half.rename(target)
        return str(target)

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", min(os.cpu_count() or 1, 8)))) as pool:
        objects = list(pool.map(one, sorted(SOURCES.glob("*.cu"))))
    library = package / "libhhmpn_cuda.so"
    subprocess.run([nvcc, "-shared", "-cudart", "static", *GENCODE, "-o", str(library), *objects], check=True)

    build_binding(package / "_cuda.so")
    return version


def build_binding(target: Path) -> None:
    """Compiles csrc/cuda/binding.cpp against the installed torch."""
    from torch.utils.cpp_extension import include_paths, library_paths

    flags = [*(f"-I{path}" for path in include_paths()), *(f"-L{path}" for path in library_paths())]
    flags += ["-std=c++20", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wl,--no-as-needed"]
    # libtorch brings libtorch_cuda along where there is one: the stream's function is looked up there.
    libraries = ["-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    command = [os.environ.get("CXX", "c++"), str(SOURCES / "binding.cpp"), *flags, "-o", str(target), *libraries]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    build(ROOT / "hhmpn_fast", ROOT / "build" / "cuda")
