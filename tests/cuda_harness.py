"""The CUDA sources built for the CPU (tests/cuda_on_cpu), loaded and called as `cuda_launch` calls the real library.

Every launch runs in checking mode: threads as fibers in a chosen order, shared memory poisoned, every access checked.
Reports are collected in `Harness.reports`; a test fails on any.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "csrc" / "cuda"
RUNTIME = ROOT / "tests" / "cuda_on_cpu"
COMMON = (
    "-std=c++20 -fPIC -g1 -Wall -Wno-unknown-pragmas -Wno-unused-function -fno-extern-tls-init -fno-strict-aliasing"
)
KERNEL = "-O1 -fsanitize=thread -fsanitize=bounds,alignment"


def nvcc() -> str | None:
    """nvcc's path, or None."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")


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


def build(sources: Sequence[Path], include: Path = SOURCES, defines: str = "") -> Path:
    """A shared library of the harness and these .cu files; objects are kept by the hash of what they are made from."""
    cache = Path(tempfile.gettempdir()) / f"hhmpn_cuda_on_cpu_{os.getuid()}"
    cache.mkdir(exist_ok=True, parents=True)
    flags = f"{COMMON} -isystem {cuda_headers()} -I{RUNTIME} -I{include}"
    runtime, kernels = (
        b"".join(p.read_bytes() for p in sorted(d.iterdir()) if p.suffix in (".h", ".hpp", ".cuh"))
        for d in (RUNTIME, include)
    )
    jobs = [(f"g++ {flags} -O2", p) for p in sorted(RUNTIME.glob("*.cpp"))]
    jobs += [(f"g++ {flags} {defines} {KERNEL} -x c++", p) for p in sources]

    def one(job: tuple[str, Path]) -> Path:
        command, source = job
        headers = runtime if source.parent == RUNTIME else runtime + kernels
        made_from = headers + command.replace(str(include), "").encode() + source.read_bytes()
        digest = hashlib.sha256(made_from).hexdigest()[:24]
        target = cache / f"{source.stem}_{digest}.o"
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
    """A launcher for `cuda_launch.using`: runs the kernels on the CPU and collects what the checks report."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.cuemu_buffer.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_int]
        self.library.cuemu_seed.argtypes = [ctypes.c_uint64, ctypes.c_int]
        self.library.cuemu_errors.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
        self.library.cuemu_errors.restype = ctypes.c_long
        self.reports: list[str] = []
        self.calls: list[str] = []
        self.order, self.seed = 0, 0

    @staticmethod
    def call(
        library: ctypes.CDLL,
        kernel: str,
        tensors: Sequence[torch.Tensor | None],
        sizes: Sequence[int],
        reals: Sequence[float],
    ) -> int:
        """One launcher of api.h, with tensors' host addresses."""
        pointers = (ctypes.c_void_p * len(tensors))(
            *[t.data_ptr() if t is not None and t.numel() else None for t in tensors]
        )
        numbers = (ctypes.c_longlong * len(sizes))(*sizes), (ctypes.c_double * max(len(reals), 1))(*reals)
        return getattr(library, kernel)(pointers, *numbers, None)

    def __call__(
        self,
        kernel: str,
        reads: Sequence[torch.Tensor | None],
        writes: Sequence[torch.Tensor | None],
        sizes: Sequence[int],
        reals: Sequence[float],
    ) -> None:
        self.calls.append(kernel)
        self.seed += 1
        self.library.cuemu_reset()
        self.library.cuemu_seed(self.seed, self.order)
        tensors = [*reads, *writes]
        for i, t in enumerate(tensors):
            if t is not None and t.numel():
                assert t.is_contiguous(), f"{kernel}: tensor {i} is not contiguous"
                size = t.numel() * t.element_size()
                name = f"{'write' if i >= len(reads) else 'read'} {i}"
                self.library.cuemu_buffer(t.data_ptr(), size, name.encode(), i >= len(reads))
        rc = self.call(self.library, kernel, tensors, sizes, reals)
        text = ctypes.create_string_buffer(1 << 15)
        count = self.library.cuemu_errors(text, len(text))
        if rc:
            self.reports.append(f"{kernel}: returned {rc}")
        if count:
            self.reports.append(f"{kernel}: {text.value.decode()}")
