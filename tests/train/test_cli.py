"""The command line end to end: train, kill, resume, evaluate, predict; bad input is one sentence and exit code 2."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hhmpn_fast import backends
from hhmpn_fast.cli import main
from hhmpn_fast.data import convert
from hhmpn_fast.train import device, feed

SMALL = ["--dim", "16", "--steps", "2", "--lr", "0.003", "--batch-size", "8", "--no-tensorboard", "--quiet"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(1)
    root = tmp_path_factory.mktemp("cli")
    for split, n in (("train", 48), ("valid", 16), ("test", 16)):
        a = generator.normal(size=(n, 6, 4))
        labels = np.stack([a.mean(1)[:, 0] > 0, a.mean(1)[:, 1] > 0.1], 1).astype(np.uint8)
        np.savez(root / f"{split}.npz", a=a, b=generator.normal(size=(n, 3)), y=labels)
    both = {"labels": "y", "label_names": ["x", "y"]}
    convert("npz", root, root / "set", modalities=["a=a", "b=b"], **both)
    np.savez(root / "new.npz", a=generator.normal(size=(5, 6, 4)), b=generator.normal(size=(5, 3)))
    convert("npz", root / "new.npz", root / "new", modalities=["a=a", "b=b"])
    return root


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Runs a command that must end with code 2 and one sentence; returns it."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert code == 2, (code, out, err)
    assert err.count("\n") == 1 and err.startswith("hhmpn-fast"), err
    return err


def test_train_evaluate_predict(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    assert main(["train", str(data / "set"), "--out", str(run), "--epochs", "4", *SMALL]) == 0
    printed = capsys.readouterr().out
    for part in (
        "constant (prevalence > 0.5)",
        "HHMPN, threshold 0.50",
        "HHMPN, tuned threshold",
        "micro-F1",
        "per label",
    ):
        assert part in printed
    assert sorted(p.name for p in run.iterdir()) == [
        "checkpoint.safetensors",
        "metrics.jsonl",
        "results.json",
        "run.json",
        "weights.safetensors",
    ]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4

    assert main(["evaluate", str(run), str(data / "set"), "--json", str(tmp_path / "again.json")]) == 0
    first, again = (json.loads(p.read_text()) for p in (run / "results.json", tmp_path / "again.json"))
    assert first["rows"] == again["rows"] and first["per_label"] == again["per_label"]

    for name in ("p.csv", "p.json"):
        assert main(["predict", str(run), str(data / "new"), "--out", str(tmp_path / name)]) == 0
    assert "ends in '.txt'; expected .csv or .json" in refused(
        capsys, "predict", run, data / "new", "--out", tmp_path / "p.txt"
    )
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    samples = json.loads((tmp_path / "p.json").read_text())
    assert len(rows) == len(samples["samples"]) == 5
    for row, sample in zip(rows, samples["samples"]):
        assert row["id"] == sample["id"]
        assert float(row["p(x)"]) == pytest.approx(sample["probabilities"]["x"], abs=1e-6)
        assert (row["x"] == "1") == ("x" in sample["labels"]) == (sample["probabilities"]["x"] > samples["threshold"])


def test_a_killed_run_resumes_to_the_same_bits(data: Path, tmp_path: Path) -> None:
    arguments = [str(data / "set"), "--epochs", "30", "--checkpoint-every", "4", *SMALL]
    command = [sys.executable, "-m", "hhmpn_fast.cli", "train"]
    subprocess.run([*command, *arguments, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    place = tmp_path / "killed"
    process = subprocess.Popen([*command, *arguments, "--out", str(place)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (place / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (place / "weights.safetensors").exists()
    subprocess.run([*command, "--resume", str(place), "--no-tensorboard", "--quiet"], check=True, capture_output=True)
    expected, found = (load_file(tmp_path / n / "weights.safetensors") for n in ("whole", "killed"))
    assert expected.keys() == found.keys()
    assert all(expected[k].equal(found[k]) for k in expected)
    lines = [(tmp_path / n / "metrics.jsonl").read_text() for n in ("whole", "killed")]
    assert lines[0] == lines[1]


def test_seeds_and_folds_summarise(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    common = [str(data / "set"), "--epochs", "1", *SMALL]
    assert main(["train", *common, "--out", str(tmp_path / "seeds"), "--seeds", "0", "1"]) == 0
    assert "2 runs, mean (sd)" in capsys.readouterr().out
    assert main(["train", *common, "--out", str(tmp_path / "folds"), "--folds", "4", "--use", "b"]) == 0
    assert "4 runs, mean (sd)" in capsys.readouterr().out
    assert len(list((tmp_path / "folds").glob("fold-*"))) == 4
    summary = json.loads((tmp_path / "seeds" / "summary.json").read_text())
    runs = [json.loads((tmp_path / "seeds" / f"seed-{i}" / "results.json").read_text()) for i in (0, 1)]
    mean = np.mean([r["rows"]["HHMPN, threshold 0.50"]["micro_f1"] for r in runs])
    assert summary["threshold"]["micro_f1"][0] == pytest.approx(mean)


def test_where_the_batches_come_from_is_told_once(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [str(data / "set"), "--epochs", "2", "--device", "cpu", *SMALL]
    told = "split 'train' lies on cpu (0.00 GiB of at most 1.00); split 'valid' lies on cpu"
    for number, (room, given, count) in enumerate(
        ((0, options[:-1], 0), (2**30, options[:-1], 1), (2**30, options, 0))
    ):
        monkeypatch.setattr(feed, "room", lambda device, room=room: room)
        assert main(["train", *given, "--out", str(tmp_path / str(number))]) == 0
        assert capsys.readouterr().out.count(told) == count


def test_bad_input_is_one_sentence(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run, given = tmp_path / "run", data / "set"
    assert "found no metadata.json" in refused(capsys, "train", tmp_path / "nowhere", "--out", run)
    assert "modality 'c': not in" in refused(capsys, "train", given, "--out", run, "--use", "c")
    assert "unrecognized arguments: --dimension" in refused(capsys, "train", given, "--out", run, "--dimension", 3)
    assert "heads: found 3; expected a divisor" in refused(
        capsys, "train", given, "--out", run, "--heads", 3, "--dim", 16
    )
    assert "without: found 'x'" in refused(capsys, "train", given, "--out", run, "--without", "x")
    assert "found no data set or no --out" in refused(capsys, "train", given)
    assert "backend 'triton' cannot run" in refused(
        capsys, "train", given, "--out", run, "--backend", "triton", "--epochs", 1, *SMALL
    )
    assert "run.json cannot be read" in refused(capsys, "train", "--resume", tmp_path / "nothing")
    assert "weights" in refused(capsys, "evaluate", tmp_path / "nothing.safetensors", given)
    assert "--threads: found 0" in refused(capsys, "train", given, "--out", run, "--threads", 0)
    assert not run.exists() or not list(run.iterdir()), "a refused run left files behind"


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert main(["train", str(data / "set"), "--out", str(run), "--epochs", "1", "--device", "cpu", *SMALL]) == 0
    assert json.loads((run / "run.json").read_text())["device"] == "cpu"
    capsys.readouterr()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sentence = "--device: found 'cuda', where torch sees no GPU; expected one of auto, cpu"
    new = tmp_path / "new"
    assert sentence in refused(capsys, "train", data / "set", "--out", new, "--device", "cuda", *SMALL)
    assert sentence in refused(capsys, "evaluate", run, data / "set", "--device", "cuda", "--json", tmp_path / "e.json")
    assert sentence in refused(capsys, "predict", run, data / "new", "--device", "cuda", "--out", tmp_path / "p.csv")
    assert sentence in refused(capsys, "train", "--resume", run, "--device", "cuda")
    assert "found 'gpu'; expected auto, cpu, cuda or cuda:N" in refused(
        capsys, "train", data / "set", "--out", new, "--device", "gpu"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "found 'cuda:2', where torch sees 2 GPUs; expected one of auto, cpu, cuda:0, cuda:1." in refused(
        capsys, "train", data / "set", "--out", new, "--device", "cuda:2"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_auto_is_a_gpu_where_a_gpu_backend_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    able = {"triton": None}
    monkeypatch.setattr(backends, "why_not", lambda name, op, call: able.get(name, "it cannot"))
    monkeypatch.delenv("HHMPN_FAST_BACKEND", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.pick("auto", 64).type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.pick(None, 64).type == "cuda" and device.pick("cpu", 64).type == "cpu"
    for chosen, expected in (("triton", "cuda"), ("cuda", "cpu"), ("torch", "cpu"), ("cpu", "cpu")):
        with backends.use_backend(chosen):
            assert device.pick("auto", 64).type == expected
    able.clear()
    assert device.pick("auto", 64).type == "cpu"


def test_outputs_need_a_folder(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run, nowhere = tmp_path / "run", tmp_path / "nowhere"
    assert main(["train", str(data / "set"), "--out", str(run), "--epochs", "1", *SMALL]) == 0
    capsys.readouterr()
    assert "its folder does not exist" in refused(capsys, "evaluate", run, data / "set", "--json", nowhere / "e.json")
    assert "its folder does not exist" in refused(capsys, "predict", run, data / "new", "--out", nowhere / "p.csv")
    assert not nowhere.exists()
    (run / "run.json").write_text("[]")
    assert "run.json has no entry 'data'" in refused(capsys, "train", "--resume", run)


def test_help_names_every_command_without_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('torch is not needed for this')\n")
    env = os.environ | {"PYTHONPATH": str(tmp_path) + os.pathsep + os.environ.get("PYTHONPATH", "")}
    command = [sys.executable, "-m", "hhmpn_fast.cli", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
    assert all(name in shown for name in ("train", "evaluate", "predict", "info", "convert"))


def test_a_run_is_never_overwritten(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["train", data / "set", "--out", tmp_path / "run", "--epochs", "1", *SMALL]
    assert main([str(a) for a in arguments]) == 0
    capsys.readouterr()
    assert "exists already; expected a new directory, or --resume" in refused(capsys, *arguments)
    weights = tmp_path / "run" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    assert "cannot be read" in refused(capsys, "evaluate", tmp_path / "run", data / "set")


def test_info_reports_even_when_parts_are_broken(tmp_path: Path) -> None:
    good = subprocess.run([sys.executable, "-m", "hhmpn_fast.info"], capture_output=True, text=True, check=True).stdout
    for part in ("hhmpn_fast", "torch", "processor", "backend", "triton", "cuda", "cannot run"):
        assert part in good
    (tmp_path / "torch.py").write_text("raise ImportError('torch is broken')\n")
    env = os.environ | {"PYTHONPATH": str(tmp_path) + os.pathsep + os.environ.get("PYTHONPATH", "")}
    broken = subprocess.run(
        [sys.executable, "-m", "hhmpn_fast.info"], capture_output=True, text=True, check=True, env=env
    )
    assert "torch is broken" in broken.stdout and "python" in broken.stdout
