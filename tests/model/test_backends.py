"""Choosing a backend: explicit choices never fall back, and every refusal has its reason."""

from __future__ import annotations

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from hhmpn_fast import HHMPNConfig, InputError, backends, info, ops
from hhmpn_fast.backends import Call, use_backend


def test_explicit_choice_never_falls_back() -> None:
    call = Call("cpu", torch.float32, 8)
    for name in ("triton", "cuda"):
        reason = backends.why_not(name, "attention", call)
        if reason is None:
            continue
        x, table = torch.zeros(2, 8), torch.tensor([0, 2], dtype=torch.int32)
        with use_backend(name), pytest.raises(InputError, match=f"backend '{name}' cannot run attention: "):
            ops.attention(x, x, table, table)


def test_unknown_backend_is_named() -> None:
    with pytest.raises(InputError, match="backend: found 'tpu'; expected one of auto, reference, torch, cpu"):
        use_backend("tpu").__enter__()


def test_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HHMPN_FAST_BACKEND", "torch")
    assert backends.current() == "torch"
    with use_backend("reference"):
        assert backends.current() == "reference"
    monkeypatch.setenv("HHMPN_FAST_BACKEND", "nothing")
    with pytest.raises(InputError, match="backend: found 'nothing'"):
        backends.current()


def test_explain_lists_every_op_and_candidate() -> None:
    text = backends.explain(Call("cpu", torch.float16, 64, ("norm",)))
    for op in backends.ops():
        for name in backends.AUTO_ORDER:
            assert any(line.split()[:2] == [op, name] for line in text.splitlines())
    assert "cannot run: " in text and "norm" in text


def test_explain_and_info_speak_of_the_devices_they_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backends.explain().splitlines()[:2] == [
        f"backend: {backends.current()}; cpu, torch.float32, d = 256",
        "GPU: torch sees none",
    ]
    seen = SimpleNamespace(name="Fast One", major=9, minor=1, total_memory=2**37)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: seen)
    config = HHMPNConfig({"a": 3, "b": 2}, ("x", "y"), dim=64)
    found = [f"cuda:{i}, Fast One, compute capability 9.1, 128.0 GiB" for i in (0, 1)]
    assert backends.explain(config=config).splitlines()[:2] == [
        f"backend: {backends.current()}; cuda, torch.float32, d = 64",
        f"GPU: {'; '.join(found)}",
    ]
    assert any(line.startswith(f"gpu           {'; '.join(found)} (this torch is built for") for line in info.collect())


def test_auto_runs_every_reading_on_some_backend() -> None:
    call = Call("cpu", torch.float64, 8, ("norm",))
    with use_backend("auto"):
        assert backends.choose("update_labels", call) is backends.record("torch").ops["update_labels"].run


def test_options_without_a_kernel_are_refused_by_the_kernel_too() -> None:
    u, square, bias = torch.zeros(2, 8), torch.zeros(8, 8), torch.zeros(8)
    w = ops.BlockWeights(None, square, square, bias, square, bias)
    options = ops.UpdateOptions(message_dropout=ops.Dropout(0.5, torch.zeros(2, dtype=torch.int64), 0))
    found = backends.record("cpu")
    if not isinstance(found, str) and found.unavailable("cpu") is None:
        with pytest.raises(InputError, match="update_labels: found message_dropout; expected none"):
            ops.Ops(found.ops).update_labels(u, u[None], w, None, options)


def test_import_is_light() -> None:
    code = "import sys, hhmpn_fast.model, hhmpn_fast.ops; print([m for m in sys.modules if m in HEAVY])"
    heavy = "HEAVY = {'triton', 'sklearn', 'matplotlib', 'scipy', 'h5py', 'tensorboard', 'pandas'}\n"
    out = subprocess.run([sys.executable, "-c", heavy + code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.skipif(torch.cuda.is_available(), reason="says why where there is no GPU")
def test_info_says_why_no_gpu_backend_can_run() -> None:
    lines = "\n".join(info.collect())
    for name in ("triton", "cuda"):
        assert re.search(rf"^  {name} +cannot run: .", lines, re.M)
