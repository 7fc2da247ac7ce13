"""Where a command computes: the options --backend, --device and --threads, and the block that runs under them."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator

import torch

from hhmpn_fast import backends
from hhmpn_fast.errors import InputError

GPU_BACKENDS = ("cuda", "triton")


def add_arguments(parser: argparse.ArgumentParser, device: str = "auto") -> None:
    """The three options; `device` says in the help what stands where none is given."""
    parser.add_argument("--backend", choices=("auto", *backends.NAMES), help="default: HHMPN_FAST_BACKEND, else auto")
    parser.add_argument("--device", metavar="auto|cpu|cuda|cuda:N", help=f"default: {device}")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads; default: torch's")


@contextlib.contextmanager
def settings(args: argparse.Namespace) -> Iterator[None]:
    """Runs the block with the threads and the backend that were asked for.

    Raises:
        InputError: --threads below 1, or a GPU whose memory does not suffice.
    """
    if args.threads is not None:
        if args.threads < 1:
            raise InputError(f"--threads: found {args.threads}; expected an integer of at least 1.")
        torch.set_num_threads(args.threads)
    try:
        with backends.use_backend(args.backend or backends.current()):
            yield
    except torch.OutOfMemoryError as error:
        wanted = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))
        raise InputError(
            f"--device: the GPU is out of memory (the next {wanted[1] if wanted else 'tensor'} did not fit); "
            "expected a smaller --batch-size, or --device cpu."
        ) from error


def pick(name: str | None, dim: int) -> torch.device:
    """The device that --device names.

    Args:
        name: "auto" (also None), "cpu", "cuda" or "cuda:N". "auto" is a GPU where torch sees one and a GPU backend, the
            chosen one if one is chosen, can run attention there; else the processor.
        dim: d of the model.

    Raises:
        InputError: another name, or a device that this machine does not have.
    """
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() and _gpu_runs(dim) else "cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if found is None:
        raise InputError(f"--device: found '{name}'; expected auto, cpu, cuda or cuda:N.")
    if name != "cpu" and int(found[1] or 0) >= count:
        seen = f"{count} GPU{'s' * (count != 1)}" if count else "no GPU"
        able = ", ".join(["auto", "cpu", *(f"cuda:{i}" for i in range(count))])
        raise InputError(f"--device: found '{name}', where torch sees {seen}; expected one of {able}.")
    place = torch.device(name)
    if place.index is not None:
        torch.cuda.set_device(place)  # kernels are launched on the current device
    return place


def _gpu_runs(dim: int) -> bool:
    """Whether a GPU backend that may be used can run attention, in the parameters' dtype."""
    call, chosen = backends.Call("cuda", torch.float32, dim), backends.current()
    able = [name for name in GPU_BACKENDS if chosen in ("auto", name)]
    return any(backends.why_not(name, "attention", call) is None for name in able)
