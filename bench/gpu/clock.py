"""What a call costs on a device: kernels and launches by the profiler, a CUDA graph of it, and the device's ceilings.

On a processor the same functions run, for the smoke test: "kernels" are then PyTorch's ops, and nothing is captured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.core.timing import Session
from bench.race.contestants import CannotRun
from hhmpn_fast import InputError

CALLS = 3  # under the profiler
QUANTILES = (0.25, 0.5, 0.75)
TORCH_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


class DeviceSession(Session):
    """A `Session` for `interleave` on a device: nothing is held, and the ceilings are measured beside it."""

    def __init__(self) -> None:
        super().__init__(torch.float32)

    def probe(self) -> None:
        """Nothing: the ceilings have cells of their own."""

    @contextmanager
    def section(self) -> Iterator[None]:
        """Nothing to hold."""
        yield


@contextmanager
def products(dtype: str) -> Iterator[None]:
    """fp32 matrix products by IEEE rules, or in tf32."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def wait(device: str) -> None:
    """Until the device has done everything."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def kernels(run: Callable[[], object], device: str) -> tuple[float, float]:
    """Milliseconds of kernels (copies and fills included) a call, and launches a call."""
    on_gpu = torch.device(device).type == "cuda"
    run()
    wait(device)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as found:
        for _ in range(CALLS):
            run()
        wait(device)
    if on_gpu:
        events = [e for e in found.events() if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
        spent = sum(e.time_range.elapsed_us() for e in events)
    else:
        events = [e for e in found.events() if e.name.startswith("aten::")]
        spent = sum(e.self_cpu_time_total for e in events)
    return spent / CALLS / 1e3, len(events) / CALLS


def captured(run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
    """A CUDA graph of one call on data that stay where they are: its replay, and the output it writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return graph.replay, out


def spread(run: Callable[[], object], device: str, milliseconds: int = 60) -> tuple[float, float, float]:
    """Quartiles of a call's milliseconds: Triton's do_bench, which flushes the cache; a plain loop on a processor."""
    if torch.device(device).type == "cuda":
        from triton.testing import do_bench

        low, median, high = do_bench(run, warmup=milliseconds // 4, rep=milliseconds, quantiles=QUANTILES)
        return low, median, high
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    low, median, high = statistics.quantiles(times, n=4)
    return low, median, high


def graphed_ms(run: Callable[[], object], device: str) -> float:
    """Milliseconds of a call without the host: Triton's do_bench_cudagraph; a plain loop on a processor."""
    if torch.device(device).type == "cuda":
        from triton.testing import do_bench_cudagraph

        return do_bench_cudagraph(run, rep=30, return_mode="median")
    return spread(run, device)[1]


def ceilings(device: str, size: int = 8192, copied: int = 2**30) -> dict[str, float]:
    """FLOP/s of a matrix product a dtype, bytes/s of a copy (read and written)."""
    found = {}
    for dtype, side in (("bf16", size), ("tf32", size), ("fp32", size // 2)):
        pair = [torch.randn(side, side, device=device, dtype=TORCH_DTYPES[dtype]) for _ in range(2)]
        with products(dtype), torch.no_grad():
            found[f"{dtype}_flop_s"] = 2 * side**3 / spread(partial(torch.mm, *pair), device)[1] * 1e3
    source = torch.ones(copied, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    found["copy_bytes_s"] = 2 * copied / spread(lambda: target.copy_(source), device)[1] * 1e3
    return found


def free(device: str) -> str:
    """What a failure left is given back; "" where the device still answers, else why it does not."""
    if torch.device(device).type != "cuda":
        return ""
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.ones(1, device=device).sum().item()
    except Exception as error:  # whatever is left of a device after a fault
        return one_line(error)
    return ""


def one_line(error: BaseException) -> str:
    """An exception in one line; a refusal is its sentence alone."""
    lines = str(error).strip().splitlines() or ["no message"]
    return lines[0] if isinstance(error, CannotRun | InputError) else f"{type(error).__name__}: {lines[0][:200]}"
