"""The matrix rate of this machine, now: the fastest dense product PyTorch reaches, the denominator of every floor.

On CPUs whose PyTorch sends fp32 `mm` to a library that is slow there (MKL on AMD reaches half), oneDNN's own linear is
still reachable through mkldnn tensors; in bf16 both lead to oneDNN. All paths are timed on three shapes; the one with
the best median is the product that is then timed again and again between the contestants.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

SHAPES = ((4096, 256, 256), (2048, 512, 512), (1024, 1024, 1024))
CALL_FLOP = 2_000_000_000


@dataclass(frozen=True)
class Product:
    """One dense product by one path."""

    name: str
    flop: int
    run: Callable[[], object]

    @torch.no_grad()
    def rate(self) -> float:
        """FLOP per second over a few milliseconds, after one call that warms the caches."""
        calls = max(1, CALL_FLOP // self.flop)
        self.run()
        start = time.perf_counter()
        for _ in range(calls):
            self.run()
        return calls * self.flop / (time.perf_counter() - start)


def _products(m: int, n: int, k: int, dtype: torch.dtype) -> list[Product]:
    a, w = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    shape, flop = f"{m}x{n}x{k}", 2 * m * n * k
    products = [Product(f"linear {shape}", flop, lambda: F.linear(a, w))]
    if torch.backends.mkldnn.is_available():
        a_mkldnn, w_mkldnn = a.to_mkldnn(), w.to_mkldnn()
        run = lambda: torch._C._nn.mkldnn_linear(a_mkldnn, w_mkldnn)  # noqa: E731
        products.append(Product(f"oneDNN linear {shape}", flop, run))
    return products


def fastest(dtype: torch.dtype, repeats: int = 5) -> tuple[Product, float]:
    """The product with the best median rate, and that rate."""
    products = [p for shape in SHAPES for p in _products(*shape, dtype)]
    rates = [statistics.median(p.rate() for _ in range(repeats)) for p in products]
    best = max(range(len(products)), key=rates.__getitem__)
    return products[best], rates[best]


def matrix_rate(dtype: torch.dtype) -> float:
    """FLOP per second of the fastest product."""
    return fastest(dtype)[1]


def bandwidth(elements: int = 1 << 26, repeats: int = 5) -> float:
    """Bytes per second of memory, from `a + b -> c` on vectors that no cache holds."""
    a, b, c = (torch.ones(elements) for _ in range(3))
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        torch.add(a, b, out=c)
        times.append(time.perf_counter() - start)
    return 12 * elements / statistics.median(times[1:])
