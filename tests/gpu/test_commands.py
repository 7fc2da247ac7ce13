"""Commands on a GPU, or here on the processor: the demo set's metrics, memory that runs out, launches that block."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.studies.planted import MODEL, TRAINING
from hhmpn_fast.cli import main
from hhmpn_fast.data.planted import generate, preset
from hhmpn_fast.train.trainer import Trainer
from tests.gpu.places import Place, digest, places

SMALL = {"samples": (320, 64, 400)}


def fields(**values: object) -> list[str]:
    """{"batch_size": 8} as ["--batch-size", "8"]."""
    return [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def command(data: Path, run: Path, place: Place, **changes: object) -> list[str]:
    """`hhmpn-fast train` as the demo trains."""
    where = fields(device=place.device, backend=place.backend, **{**MODEL, **TRAINING, **changes})
    return ["train", str(data), "--out", str(run), *where, "--quiet", "--no-tensorboard"]


def scores(run: Path) -> dict[str, float]:
    """A run's test metrics at the threshold of 0.5."""
    rows = json.loads((run / "results.json").read_text())["rows"]
    return next(row for name, row in rows.items() if name.startswith("HHMPN, threshold"))


DEMO = [*places("cpu", gpu=()), *places(gpu=("auto",))]


@pytest.mark.parametrize("place", DEMO)
def test_the_demo_reaches_the_processors_metrics(place: Place, tmp_path: Path) -> None:
    on_gpu = place.device == "cuda"
    data = generate(preset("demo", **({} if on_gpu else SMALL)), tmp_path / "data", seed=0)
    changes = {} if on_gpu else {"epochs": 1, "lr": 0.02, "warmup_steps": 1}
    processor = Place("cpu", "auto" if on_gpu else "torch")
    arguments = [*command(data, tmp_path / "expected", processor, **changes), "--threads", "4" if on_gpu else "1"]
    with subprocess.Popen([sys.executable, "-m", "hhmpn_fast.cli", *arguments], stdout=subprocess.DEVNULL) as beside:
        assert main(command(data, tmp_path / "found", place, **changes)) == 0
    assert beside.returncode == 0
    found, expected = scores(tmp_path / "found"), scores(tmp_path / "expected")
    for name in ("micro_f1", "macro_f1", "hamming_loss", "accuracy"):
        assert abs(found[name] - expected[name]) <= 0.005, name
    assert expected["micro_f1"] > 0.1


@contextlib.contextmanager
def no_memory(place: Place, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """The block's allocations on the GPU fail; on the processor a step raises what PyTorch would."""
    if place.device == "cpu":

        def fail(*_: object, **__: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB. Process")

        with patch.context() as inside:
            inside.setattr(Trainer, "fit", fail)
            yield
        return
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)  # of 80 GiB less than one block of the allocator
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("place", places("cpu"))
def test_memory_that_runs_out_is_one_sentence(place: Place, tmp_path: Path, monkeypatch, capsys) -> None:
    data = generate(preset("demo", **SMALL), tmp_path / "data", seed=0)
    with no_memory(place, monkeypatch):
        assert main(command(data, tmp_path / "run", place, epochs=1)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("hhmpn-fast: --device: the GPU is out of memory (")
    assert said.endswith("; expected a smaller --batch-size, or --device cpu.\n")
    assert main(command(data, tmp_path / "again", place, epochs=1)) == 0


@pytest.mark.parametrize("place", places("cpu"))
def test_launches_that_block_give_the_same_bits(place: Place) -> None:
    """`CUDA_LAUNCH_BLOCKING=1`: every launch waits for its kernel, so that one that fails is told where it began."""
    code = "import sys; from tests.gpu.places import Place, digest; print(*digest(Place(*sys.argv[1:])), sep=chr(10))"
    environment = {**os.environ, "CUDA_LAUNCH_BLOCKING": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-c", code, *place]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == digest(place) and len(digest(place)) > 20
