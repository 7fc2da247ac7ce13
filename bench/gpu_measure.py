"""`make bench-gpu`: on a GPU, measures the workloads on the triton and torch backends; elsewhere says so.

    python -m bench.gpu_measure [--rounds 20]

Each backend's forward pass and training step, interleaved, by CUDA events around whole calls, the cache flushed before
each; medians in milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch

from bench.workloads import NAMES, WORKLOADS
from hhmpn_fast.backends import use_backend

BACKENDS = ("triton", "torch")


def timed(run: Callable[[], object], flush: torch.Tensor) -> float:
    """Milliseconds of one call on the device."""
    flush.zero_()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def calls(name: str, dtype: torch.dtype) -> dict[tuple[str, str], Callable[[], object]]:
    """(backend, mode) -> one call."""
    workload = WORKLOADS[name]
    model = workload.model(dropout=0.2).to("cuda", dtype)
    batch, targets = workload.batch(dtype=dtype).to("cuda"), workload.targets().to("cuda", dtype)

    def infer(backend: str) -> object:
        model.eval()
        with use_backend(backend), torch.no_grad():
            return model(batch)

    def train(backend: str) -> object:
        model.train()
        model.zero_grad(set_to_none=True)
        with use_backend(backend):
            return model.loss(model(batch), targets).backward()

    modes = {"infer": infer, "train": train}
    return {(b, m): (lambda b=b, f=f: f(b)) for b in BACKENDS for m, f in modes.items()}


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    if not torch.cuda.is_available():
        print("bench-gpu: torch finds no GPU on this machine, so there is nothing to measure; see `make gpu-report`.")
        return 1
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, medians of {rounds} in ms")
    flush = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda")
    for name in NAMES:
        for dtype in (torch.bfloat16, torch.float32):
            runs = calls(name, dtype)
            for run in runs.values():  # compiles, and warms up
                run()
            times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
            for _ in range(rounds):
                for key, run in runs.items():
                    times[key].append(timed(run, flush))
            cells = [f"{b} {m} {statistics.median(t):.3f}" for (b, m), t in times.items()]
            print(f"{name:24} {str(dtype).removeprefix('torch.'):9} " + "   ".join(cells), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
