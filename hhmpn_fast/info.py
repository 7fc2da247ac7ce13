"""`hhmpn-fast info`: versions, processor, which backends can run and why not; for broken installations too."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "safetensors",
    "scikit-learn",
    "iterative-stratification",
    "tensorboard",
    "ninja",
)
FEATURES = ("avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_bf16", "amx_tile", "amx_bf16")


def _probe(read: Callable[[], str]) -> str:
    """What a probe found, or the error it met: one broken part must not hide the others."""
    try:
        return read()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"unknown ({type(error).__name__}: {error})"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _own() -> str:
    return importlib.import_module("hhmpn_fast").__version__


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))


def _features() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        flags = next(line.split() for line in file if line.startswith("flags"))
    return " ".join(f for f in FEATURES if f in flags) or "none of those the kernels know"


def _devices() -> str:
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        build = torch.version.cuda or torch.version.hip
        return "no GPU" + ("" if build else " (this torch is a CPU build)")
    found = importlib.import_module("hhmpn_fast.backends").gpus()
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    return f"{'; '.join(found)} (this torch is built for {build})"


def _backend(name: str) -> str:
    found = importlib.import_module("hhmpn_fast.backends").record(name)
    reason = found if isinstance(found, str) else found.unavailable(found.device)
    if reason:
        return f"cannot run: {reason}"
    detail = ", ".join(f"{k} {v}" for k, v in found.describe().items())
    return f"can run ({detail})" if detail else "can run"


def _backends() -> str:
    names = importlib.import_module("hhmpn_fast.backends").NAMES
    return "\n".join(f"  {name:11} {_probe(lambda n=name: _backend(n))}" for name in names)


def _manifests() -> list[str]:
    """What the build decided, as it wrote it beside the package."""
    lines = []
    for file in sorted(Path(__file__).parent.glob("*manifest*.json")):
        held = json.loads(file.read_text(encoding="utf-8"))
        said = {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in held.items()}
        lines.append(f"{file.stem}: " + ", ".join(f"{k} = {v}" for k, v in said.items()))
    return lines


def _extension() -> str:
    return importlib.import_module("hhmpn_fast.source_digest").stale() or ""


def collect() -> list[str]:
    """The report, a line an entry."""
    lines = [
        f"hhmpn_fast    {_probe(_own)}",
        f"python        {sys.version.split()[0]} on {platform.platform()}",
        *(f"{p:13} {_probe(lambda p=p: _version(p))}" for p in PACKAGES),
        f"processor     {_probe(_processor)}, {os.cpu_count()} logical cores",
        f"features      {_probe(_features)}",
        f"threads       {_probe(lambda: str(importlib.import_module('torch').get_num_threads()))}",
        f"gpu           {_probe(_devices)}",
        f"backend       {_probe(lambda: importlib.import_module('hhmpn_fast.backends').current())}"
        " (HHMPN_FAST_BACKEND or use_backend)",
        *_probe(_backends).split("\n"),
    ]
    lines.append(_probe(lambda: "\n".join(_manifests())) or "build         no manifest")
    lines += [said for said in (_probe(_extension),) if said]
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`info` takes no option."""


def run(args: argparse.Namespace) -> int:
    """Runs `info` as parsed."""
    return main()


def main() -> int:
    """Prints the report."""
    print("\n".join(collect()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
