"""The matrix rate of this machine, now: the fastest dense product PyTorch reaches, the denominator of every floor.

On CPUs whose PyTorch sends fp32 `mm` to a library that is slow there (MKL on AMD reaches half), oneDNN's own linear is
still reachable through mkldnn tensors; in bf16 both lead to oneDNN. All paths are timed on three shapes; the best
median counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

SHAPES = ((4096, 256, 256), (2048, 512, 512), (1024, 1024, 1024))
CALL_FLOP = 2_000_000_000


def _paths(m: int, n: int, k: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    a, w = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    paths: dict[str, Callable[[], object]] = {"linear": lambda: F.linear(a, w)}
    if torch.backends.mkldnn.is_available():
        a_mkldnn, w_mkldnn = a.to_mkldnn(), w.to_mkldnn()
        paths["oneDNN linear"] = lambda: torch._C._nn.mkldnn_linear(a_mkldnn, w_mkldnn)
    return paths


@torch.no_grad()
def matrix_rate(dtype: torch.dtype, repeats: int = 5) -> tuple[float, str]:
    """FLOP per second and how it was reached, say (4.6e11, "oneDNN linear 4096x256x256")."""
    best = (0.0, "")
    for m, n, k in SHAPES:
        flop = 2 * m * n * k
        calls = max(1, CALL_FLOP // flop)
        for name, run in _paths(m, n, k, dtype).items():
            run()
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                for _ in range(calls):
                    run()
                times.append((time.perf_counter() - start) / calls)
            best = max(best, (flop / statistics.median(times), f"{name} {m}x{n}x{k}"))
    return best


def bandwidth(elements: int = 1 << 26, repeats: int = 5) -> float:
    """Bytes per second of memory, from `a + b -> c` on vectors that no cache holds."""
    a, b, c = (torch.ones(elements) for _ in range(3))
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        torch.add(a, b, out=c)
        times.append(time.perf_counter() - start)
    return 12 * elements / statistics.median(times[1:])
