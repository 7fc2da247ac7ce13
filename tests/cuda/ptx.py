"""The CUDA kernels as nvcc compiles them: their PTX run by tests/ptx, launched exactly as the C launchers would.

The host harness records a launcher's launches (kernel, grid, shared bytes, parameter block) instead of running them;
the parameter block's host addresses become the interpreter's, and nvcc's PTX of the same mangled name is run.
"""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from hhmpn_fast.backends.cuda.fields import Wire
from tests import ptx
from tests.cuda.harness import SOURCES, Harness, alone, headers, sources


def compile_ptx(source: Path, nvcc: str) -> str:
    """nvcc's PTX of one source for sm_80, d = 64 only; kept by the hash of what it is made from."""
    digest = hashlib.sha256(headers(SOURCES) + source.read_bytes()).hexdigest()[:20]
    target = Path(tempfile.gettempdir()) / f"hhmpn_{source.parent.name}_{source.stem}_{digest}.ptx"
    with alone("ptx"):
        if not target.exists():
            flags = ["-std=c++20", "-O3", "-arch=sm_80", "-DHH_SMALLEST_ONLY", f"-I{SOURCES}", "-ptx"]
            half = target.with_suffix(".tmp")
            subprocess.run([nvcc, *flags, str(source), "-o", str(half)], check=True, capture_output=True)
            half.rename(target)
    return target.read_text()


class PtxLauncher:
    """A library for `launch.using` that runs nvcc's PTX; shared-memory races are collected in `reports`."""

    def __init__(self, harness: Harness, nvcc: str, mode: str = "lockstep") -> None:
        self.harness, self.library, self.mode, self.nvcc = harness, harness.library, mode, nvcc
        self.library.cuemu_recorded.argtypes = [
            ctypes.c_long,
            ctypes.c_char_p,
            ctypes.POINTER(ctypes.c_long),
            ctypes.c_char_p,
            ctypes.c_size_t,
        ]
        self.library.cuemu_recorded.restype = ctypes.c_long
        self.machines: dict[Path, ptx.Machine] = {}
        self.reports: list[str] = []
        self.kernels: set[str] = set()

    def machine(self, kernel: str) -> ptx.Machine:
        for source in sources():
            if source not in self.machines:
                self.machines[source] = ptx.Machine(compile_ptx(source, self.nvcc))
            if kernel in self.machines[source].mod.kernels:
                return self.machines[source]
        raise AssertionError(f"no PTX has {kernel}")

    def fields(self, kernel: str) -> str:
        return self.harness.fields(kernel)

    def start(self, kernel: str, wire: Wire) -> None:
        tensors = [t for _, t in wire.tensors if t is not None and t.numel()]
        self.library.cuemu_record(1)
        self.harness.call(kernel, wire)
        self.library.cuemu_record(0)
        index = 0
        while True:
            name, params = ctypes.create_string_buffer(1 << 14), ctypes.create_string_buffer(1 << 14)
            dims = (ctypes.c_long * 7)()
            length = self.library.cuemu_recorded(index, name, dims, params, len(name))
            if length < 0:
                break
            self.run(name.value.decode(), list(dims), params.raw[:length], tensors)
            index += 1
        assert index, f"{kernel}: nothing was launched"

    def run(self, name: str, dims: list[int], params: bytes, tensors: list[torch.Tensor]) -> None:
        views = [t.detach().view(torch.int16) if t.dtype == torch.bfloat16 else t.detach() for t in tensors]
        arrays = [v.view(torch.uint8).numpy() if v.dtype == torch.bool else v.numpy() for v in views]

        def block(pointer_of) -> bytearray:
            blob = bytearray(params)
            handles = [pointer_of(a) for a in arrays]
            for at in range(0, len(blob) - 7, 8):
                word = int.from_bytes(blob[at : at + 8], "little")
                for t, handle in zip(tensors, handles):
                    start = t.data_ptr()
                    if start <= word < start + t.numel() * t.element_size():
                        blob[at : at + 8] = int(handle + word - start).to_bytes(8, "little")
                        break
            return blob

        machine = self.machine(name)
        machine.run(name, dims[:3], dims[3:6], block, dims[6], self.mode)
        self.kernels.add(name)
        self.reports += [f"{name}: {race}" for race in machine.races.values()]
        for array in arrays:
            assert isinstance(array, np.ndarray)
