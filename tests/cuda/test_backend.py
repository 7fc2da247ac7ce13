"""The `cuda` backend where there is no GPU: it imports, says why it cannot run, and its build decides in the open."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hhmpn_fast import InputError, backends, info
from hhmpn_fast.backends import Call
from hhmpn_fast.backends.cuda import launch
from tests.cuda import harness as cuda_harness
from tests.cuda.cases import needs_harness, on_cpu
from tests.model.cases import random_batch, random_model
from tests.model.graphs import check_buffered

ROOT = Path(__file__).parent.parent.parent
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.fixture
def cuda_build():
    return cuda_harness.build_backend()


@no_gpu
def test_says_why_it_cannot_run() -> None:
    reason = backends.why_not("cuda", "attention", Call("cpu", torch.float32, 64))
    assert reason and reason == launch.missing()
    model, generator = random_model(0, torch.float32, dim=64)
    batch = random_batch(generator, dict(model.config.modalities), 2, 3, torch.float32)
    with backends.use_backend("cuda"), pytest.raises(InputError, match="backend 'cuda' cannot run") as error:
        model(batch)
    assert reason in str(error.value)
    assert f"cuda    cannot run: {reason}" in backends.explain()


@needs_harness
@pytest.mark.parametrize(
    ("op", "call", "said"),
    [
        ("attention", Call("cpu", torch.float64, 64), "the dtype is torch.float64"),
        ("attention", Call("cpu", torch.float32, 96), "d = 96, the kernels hold 64, 128 and 256"),
        ("update_labels", Call("cpu", torch.float32, 64, ("norm",)), "do not hold the option norm"),
        ("attention", Call("cpu", torch.float32, 64, ("exclude_self",)), None),
        ("tower", Call("cpu", torch.bfloat16, 256), None),
    ],
)
def test_reasons_of_a_call(op: str, call: Call, said: str | None) -> None:
    with on_cpu(0):
        reason = backends.why_not("cuda", op, call)
    assert reason is None if said is None else said in reason


@needs_harness
@pytest.mark.parametrize("changes", [{}, {"sharing": "tied"}, {"exclude_self": True}, {"without": ("m2l",)}])
def test_a_whole_model_equals_plain_pytorch(changes: dict) -> None:
    model, generator = random_model(3, torch.float32, dim=64, **changes)
    batch = random_batch(generator, dict(model.config.modalities), 3, 6, torch.float32)
    results = []
    for name in ("cuda", "torch"):
        model.zero_grad()
        model.seed_dropout(9)
        with on_cpu(0), backends.use_backend(name):
            logits = model(batch)
            model.loss(logits, torch.ones_like(logits[-1])).backward()
        results.append([logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()) + 1e-7)


@needs_harness
@pytest.mark.parametrize(("dropout", "samples"), [(0.2, 3), (0.0, 9)], ids=["rows", "rows and samples"])
def test_what_lies_behind_a_batch_changes_nothing(dropout: float, samples: int) -> None:
    own = {"dim": 64, "labels": ("a", "b"), "modalities": {"m0": 3, "m1": 5}, "steps": 2, "dropout": dropout}
    model, generator = random_model(3, torch.float32, **own)
    with on_cpu(0):
        check_buffered(model.train(), generator, "cuda", 1e-4, samples)


def test_build_decisions(cuda_build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setenv("HHMPN_CUDA", "0")
    cuda_build.build(tmp_path, tmp_path / "temp")
    assert "the cuda backend is not built (HHMPN_CUDA=0)" in capsys.readouterr().out
    assert json.loads((tmp_path / "cuda_manifest.json").read_text()) == {"cuda": False, "reason": "HHMPN_CUDA=0"}
    monkeypatch.setattr(cuda_build, "find_nvcc", lambda: None)
    monkeypatch.setenv("HHMPN_CUDA", "auto")
    assert cuda_build.decide() == (None, "no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda", ())
    monkeypatch.setenv("HHMPN_CUDA", "1")
    with pytest.raises(SystemExit, match="no nvcc"):
        cuda_build.decide()
    monkeypatch.setenv("HHMPN_CUDA", "yes")
    with pytest.raises(SystemExit, match="expected 0, 1 or auto"):
        cuda_build.decide()


def toolkit(folder: Path, release: str, knows: str = "") -> str:
    """An nvcc that tells its release and the GPUs that it knows and fails at everything else."""
    nvcc = folder / "nvcc"
    version = f'[ "$1" = --version ] && echo "Cuda compilation tools, release {release}, V1" && exit'
    nvcc.write_text(f'#!/bin/sh\n{version}\n[ "$1" = --list-gpu-code ] && echo "{knows}"\n')
    nvcc.chmod(0o755)
    return str(nvcc)


def smi(folder: Path, said: str, status: int = 0) -> tuple[str, ...]:
    """An nvidia-smi that says this."""
    tool = folder / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\nprintf "{said}"\nexit {status}\n')
    tool.chmod(0o755)
    return (str(tool),)


def test_an_editable_installation_is_for_this_machine(cuda_build, monkeypatch, tmp_path: Path, capsys) -> None:
    nvcc = toolkit(tmp_path, "13.0", "sm_80\nsm_90")
    monkeypatch.setattr(cuda_build, "find_nvcc", lambda: nvcc)
    monkeypatch.setenv("HHMPN_CUDA", "auto")
    monkeypatch.setattr(cuda_build, "QUERY", smi(tmp_path, "9.0\\n9.0\\n8.0\\n"))
    assert cuda_build.decide(editable=True).architectures == ("sm_80", "sm_90")
    assert cuda_build.decide().architectures == cuda_build.ARCHITECTURES
    monkeypatch.setattr(cuda_build, "QUERY", smi(tmp_path, "12.0\\n"))
    assert cuda_build.decide(editable=True).architectures == cuda_build.ARCHITECTURES
    monkeypatch.setattr(cuda_build, "QUERY", smi(tmp_path, "7.5\\n"))
    assert "its GPU is sm_75; the kernels need sm_80 or newer" in cuda_build.decide(editable=True).reason
    monkeypatch.setattr(cuda_build, "QUERY", smi(tmp_path, "no devices were found\\n", 6))
    cuda_build.build(tmp_path, tmp_path / "temp", editable=True)
    said = json.loads((tmp_path / "cuda_manifest.json").read_text())
    assert said == {
        "cuda": False,
        "reason": "nvidia-smi finds no GPU; HHMPN_CUDA=1 builds for sm_80, sm_90, compute_90",
    }
    assert said["reason"] in capsys.readouterr().out
    monkeypatch.setenv("HHMPN_CUDA", "1")
    assert cuda_build.decide(editable=True).architectures == cuda_build.ARCHITECTURES


def test_a_driver_that_does_not_answer_is_no_gpu(cuda_build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_build, "QUERY", ("sleep", "60"))
    monkeypatch.setattr(cuda_build, "QUERY_SECONDS", 0.1)
    assert cuda_build.own_architectures() == ()
    monkeypatch.setattr(cuda_build, "QUERY", ("no-such-program",))
    assert cuda_build.own_architectures() == ()


def test_objects_have_the_names_of_their_folders(cuda_build, monkeypatch, tmp_path: Path) -> None:
    made = []

    def run(command, **options):
        made.append(Path(command[-1]).name)
        Path(command[command.index("-o") + 1]).touch()
        return subprocess.CompletedProcess(command, 0, "release 13.0")

    monkeypatch.setattr(cuda_build.subprocess, "run", run)
    monkeypatch.setattr(cuda_build, "nvcc_version", lambda _: (13, 0))
    cuda_build.compile_library(tmp_path / "lib.so", tmp_path / "temp", "nvcc")
    names = {p.name.rsplit("_", 1)[0] for p in (tmp_path / "temp").glob("*.o")}
    assert {"attention_forward", "tower_backward", "weight_gradients_backward"} <= names
    compiled = len(made)
    cuda_build.compile_library(tmp_path / "lib.so", tmp_path / "temp", "nvcc")
    assert len(made) == compiled + 1  # the link alone


def test_an_old_nvcc_is_left_alone(cuda_build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    nvcc = toolkit(tmp_path, "11.8")
    monkeypatch.setattr(cuda_build, "find_nvcc", lambda: nvcc)
    monkeypatch.setenv("HHMPN_CUDA", "auto")
    cuda_build.build(tmp_path, tmp_path / "temp")
    assert "not built" in capsys.readouterr().out
    assert "release 11.8; the kernels need 12.0" in json.loads((tmp_path / "cuda_manifest.json").read_text())["reason"]
    monkeypatch.setenv("HHMPN_CUDA", "1")
    with pytest.raises(SystemExit, match=r"release 11\.8"):
        cuda_build.decide()


@pytest.mark.parametrize("wanted", ["auto", "1"])
def test_a_failing_nvcc_fails_the_installation(cuda_build, monkeypatch, tmp_path: Path, wanted: str) -> None:
    nvcc = toolkit(tmp_path, "13.0")
    monkeypatch.setattr(cuda_build, "find_nvcc", lambda: nvcc)
    monkeypatch.setenv("HHMPN_CUDA", wanted)
    (tmp_path / "libhhmpn_cuda.so").touch()
    with pytest.raises(SystemExit, match="HHMPN_CUDA=0 installs without"):
        cuda_build.build(tmp_path, tmp_path / "temp")
    assert not (tmp_path / "libhhmpn_cuda.so").exists() and not (tmp_path / "cuda_manifest.json").exists()


def test_info_tells_the_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cuda_manifest.json").write_text('{"cuda": false, "reason": "HHMPN_CUDA=0"}')
    monkeypatch.setattr(info, "__file__", str(tmp_path / "info.py"))
    assert "cuda_manifest: cuda = False, reason = HHMPN_CUDA=0" in info.collect()[-1]


@no_gpu
def test_info_says_why_cuda_cannot_run() -> None:
    assert f"  cuda        cannot run: {launch.missing()}" in info.collect()


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_the_binding_loads_without_a_gpu(cuda_build, tmp_path: Path) -> None:
    cuda_build.build_binding(tmp_path / "_cuda.so")
    code = f"""
import torch
torch.ops.load_library({str(tmp_path / "_cuda.so")!r})
try:
    torch.ops.hhmpn_cuda.open("nowhere.so")
except RuntimeError as error:
    print("open:", error)
try:
    torch.ops.hhmpn_cuda.fields("attention_forward")
except RuntimeError as error:
    print("fields:", error)
try:
    torch.ops.hhmpn_cuda.launch("attention_forward", [torch.zeros(1)], [0], [0.0])
except NotImplementedError as error:
    print("launch: no CPU kernel")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "open: " in done.stdout and "nowhere.so" in done.stdout, done.stderr
    assert "fields: " in done.stdout and "the CUDA library is not open" in done.stdout, done.stderr
    assert "launch: no CPU kernel" in done.stdout
