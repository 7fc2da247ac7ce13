"""The CUDA sources built for the CPU (emulator/), loaded in the place of the real library (`launch.using`).

Every launch runs in checking mode: threads as fibers in a chosen order, shared memory poisoned, every access checked.
Reports are collected in `Harness.reports`; a test fails on any.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from hhmpn_fast.backends.cuda.fields import Wire

ROOT = Path(__file__).parent.parent.parent
SOURCES = ROOT / "csrc" / "cuda"
RUNTIME = Path(__file__).parent / "emulator"
COMMON = (
    "-std=c++20 -fPIC -g1 -Wall -Wno-unknown-pragmas -Wno-unused-function -fno-extern-tls-init -fno-strict-aliasing"
)
KERNEL = "-O1 -fsanitize=thread -fsanitize=bounds,alignment -fno-threadsafe-statics"


@functools.cache
def build_backend() -> ModuleType:
    """build_backend/cuda.py, which no package holds."""
    spec = importlib.util.spec_from_file_location("cuda_build", ROOT / "build_backend" / "cuda.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nvcc() -> str | None:
    """nvcc's path, or None."""
    return build_backend().find_nvcc()


def cuda_headers() -> Path | None:
    """The toolkit's headers, or None."""
    roots = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", "/usr/lib/cuda"]
    if nvcc():
        roots.append(str(Path(nvcc()).resolve().parent.parent))
    for root in roots:
        if root and (Path(root) / "include" / "cuda_bf16.h").exists():
            return Path(root) / "include"
    return None


def why_not() -> str | None:
    """Why the harness cannot be built here, or None."""
    if platform.machine() != "x86_64":
        return "the host harness switches fibers on x86-64 only"
    if shutil.which("g++") is None:
        return "no g++"
    return None if cuda_headers() else "no CUDA toolkit headers (cuda_bf16.h)"


@contextlib.contextmanager
def alone(what: str) -> Iterator[None]:
    """One process at a time: of several that ask for `what` at once, one builds and the others find it built."""
    with open(Path(tempfile.gettempdir()) / f"hhmpn_{what}_{os.getuid()}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go of when the file is closed
        yield


def sources() -> list[Path]:
    """Every .cu file."""
    return sorted(SOURCES.rglob("*.cu"))


def headers(folder: Path) -> bytes:
    """The text of every header below a folder, to hash."""
    return b"".join(p.read_bytes() for p in sorted(folder.rglob("*")) if p.suffix in (".h", ".hpp", ".cuh"))


def build(sources: Sequence[Path], include: Path = SOURCES, defines: str = "") -> Path:
    """A shared library of the harness and these .cu files; objects are kept by the hash of what they are made from."""
    cache = Path(tempfile.gettempdir()) / f"hhmpn_cuda_on_cpu_{os.getuid()}"
    cache.mkdir(exist_ok=True, parents=True)
    flags = f"{COMMON} -isystem {cuda_headers()} -I{RUNTIME} -I{include}"
    runtime, kernels = headers(RUNTIME), headers(include)
    jobs = [(f"g++ {flags} -O2", p) for p in sorted(RUNTIME.glob("*.cpp"))]
    jobs += [(f"g++ {flags} {defines} {KERNEL} -x c++", p) for p in sources]

    def one(job: tuple[str, Path]) -> Path:
        command, source = job
        made_from = runtime if source.parent == RUNTIME else runtime + kernels
        made_from += command.replace(str(include), "").replace(str(RUNTIME), "").encode() + source.read_bytes()
        digest = hashlib.sha256(made_from).hexdigest()[:24]
        target = cache / f"{source.parent.name}_{source.stem}_{digest}.o"
        if not target.exists():
            half = target.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
            subprocess.run([*command.split(), "-c", str(source), "-o", str(half)], check=True)
            half.rename(target)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(one, jobs))
    name = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:24]
    library = cache / f"harness_{name}.so"
    if not library.exists():
        half = library.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
        subprocess.run(["g++", "-shared", "-o", str(half), *map(str, objects)], check=True)
        half.rename(library)
    return library


class Harness:
    """A library for `launch.using`: runs the kernels on the CPU and collects what the checks report."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.cuemu_buffer.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_int]
        self.library.cuemu_seed.argtypes = [ctypes.c_uint64, ctypes.c_int]
        self.library.cuemu_errors.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
        self.library.cuemu_errors.restype = ctypes.c_long
        self.reports: list[str] = []
        self.calls: list[str] = []
        self.order, self.seed = 0, 0

    def fields(self, kernel: str) -> str:
        tell = getattr(self.library, f"hh_{kernel}_fields")
        tell.restype = ctypes.c_char_p
        return tell().decode()

    def call(self, kernel: str, wire: Wire) -> int:
        """The library's launcher, with tensors' host addresses."""
        addresses = [t.data_ptr() if t is not None and t.numel() else None for _, t in wire.tensors]
        pointers = (ctypes.c_void_p * len(addresses))(*addresses)
        sizes = (ctypes.c_longlong * len(wire.sizes))(*wire.sizes)
        reals = (ctypes.c_double * max(len(wire.reals), 1))(*wire.reals)
        return getattr(self.library, f"hh_{kernel}")(pointers, sizes, reals, None)

    def start(self, kernel: str, wire: Wire) -> None:
        self.calls.append(kernel)
        self.seed += 1
        self.library.cuemu_reset()
        self.library.cuemu_seed(self.seed, self.order)
        for field, t in wire.tensors:
            if t is not None and t.numel():
                size = t.numel() * t.element_size()
                self.library.cuemu_buffer(t.data_ptr(), size, field.name.encode(), field.written)
        rc = self.call(kernel, wire)
        text = ctypes.create_string_buffer(1 << 15)
        count = self.library.cuemu_errors(text, len(text))
        if rc:
            self.reports.append(f"{kernel}: returned {rc}")
        if count:
            self.reports.append(f"{kernel}: {text.value.decode()}")
