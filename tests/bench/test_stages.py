"""`make gpu` without a GPU: its commands, its time limits, what it reads out of outputs, the scripts on CPU tensors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.gpu import build, drive, small
from bench.gpu.stages import Part, Stage, counts_of, last_line, sanitized, stages

ROOT = drive.ROOT
PYTHON = sys.executable


def part(name: str, code: str, **fields: object) -> Part:
    return Part(name, (PYTHON, "-c", code), last_line, **fields)


def gone(pid: int) -> bool:
    """Whether a process has ended, or is a corpse that nobody buried."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().split(") ")[1][0] == "Z"
    except FileNotFoundError:
        return True


def ended(pid: int, seconds: float = 5.0) -> bool:
    limit = time.monotonic() + seconds
    while not gone(pid) and time.monotonic() < limit:
        time.sleep(0.05)
    return gone(pid)


def test_without_a_gpu_make_gpu_says_so_in_one_sentence() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "PYTHONPATH": ""}
    command = ["make", "-s", "gpu-sanitize", f"PYTHON={PYTHON}", "OUT=/nowhere"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""  # make's own status for a failed target is 2 too
    first, *rest = done.stderr.splitlines()
    assert first == "gpu: torch finds no GPU here, so nothing can be run or measured."
    assert all(line.startswith("make") for line in rest)


def test_the_status_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert drive.main(["gpu-test", "--out", "/nowhere"]) == 2
    assert "finds no GPU" in capsys.readouterr().err


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert drive.arguments([]).stages == [*drive.ALL]
    assert drive.arguments(["gpu-tune", "gpu-build"]).stages == ["gpu-tune", "gpu-build"]
    for wrong, words in ((["gpu-fly"], "found 'gpu-fly'; expected one of"), (["--seconds", "3"], "found 3; expected")):
        with pytest.raises(SystemExit):
            drive.arguments(wrong)
        assert words in capsys.readouterr().err


def test_a_dry_run_prints_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert drive.main(["gpu", "gpu-tune", "--dry-run"]) == 0
    said = capsys.readouterr().out
    for words in ("-m bench.gpu.build", "pytest tests -m gpu -n 8", "-m bench.gpu.measure", "-m bench.gpu.tune"):
        assert words in said


def test_the_commands_are_ones_that_their_programs_take(tmp_path: Path) -> None:
    """Modules are there, options parse, and pytest collects the tests marked `gpu`."""
    every = stages(PYTHON, tmp_path, drive.SECONDS, tmp_path)
    parts = [p for stage in every.values() for p in stage.parts]
    for one in parts:
        module = one.command[one.command.index("-m") + 1]
        assert module == "pytest" or (ROOT / f"{module.replace('.', '/')}.py").is_file()
    from bench.gpu import measure, tune

    (bench,), (sweep,) = every["gpu-bench"].parts, every["gpu-tune"].parts
    measure.arguments(bench.command[3:])
    assert tune.arguments(sweep.command[3:]).seconds == drive.SECONDS - 40
    tests = list(every["gpu-test"].parts[0].command)
    tests[tests.index("tests")] = "tests/triton/test_device.py"
    done = subprocess.run([*tests, "--collect-only", "-n", "0"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "::test_attention" in done.stdout, done.stdout[-1000:] + done.stderr[-1000:]


def test_the_sanitizer_where_it_is_and_where_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("bench.gpu.stages.PLACES", ())
    stage = stages(PYTHON, tmp_path, 60.0, tmp_path)["gpu-sanitize"]
    results = drive.perform(stage, 60.0)
    assert {r.status for r in results} == {"missing"} and "no compute-sanitizer" in results[0].outcome.note
    assert drive.record(stage, results)["ok"] is True
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "compute-sanitizer").write_text("")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    stage = stages(PYTHON, tmp_path, 60.0, tmp_path)["gpu-sanitize"]
    assert [p.missing for p in stage.parts] == [None] * 4
    assert stage.parts[0].command[:3] == (str(tmp_path / "bin" / "compute-sanitizer"), "--tool", "memcheck")


@pytest.mark.parametrize(
    ("output", "good", "note"),
    [
        ("========= ERROR SUMMARY: 0 errors\n", True, "0 errors"),
        ("========= ERROR SUMMARY: 1 error\n", False, "1 error"),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", True, "0 hazards displayed"),
        ("========= RACECHECK SUMMARY: 12 hazards displayed (12 errors, 0 warnings)\n", False, "12 hazards"),
        ("========= Error: Device not supported\n========= ERROR SUMMARY: 0 errors\n", False, "the tool did not run"),
        ("8 calls on cuda, all finite\n", False, "no summary"),
    ],
)
def test_what_the_sanitizer_says(output: str, good: bool, note: str) -> None:
    found = sanitized(output)
    assert found.good is good and note in found.note


def test_what_pytest_says(tmp_path: Path) -> None:
    report, read = tmp_path / "tests.xml", counts_of(tmp_path / "tests.xml")
    assert not read("INTERNALERROR\n").good
    cases = '<testcase classname="tests.a" name="one"/><testcase classname="tests.a" name="two"><skipped/></testcase>'
    report.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    assert read("").good and read("").note == "1 passed, 0 failed, 1 skipped"
    cases += '<testcase classname="tests.b" name="three"><failure message="m"/></testcase>'
    report.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    found = read("")
    assert not found.good and found.figures["failures"] == ["tests.b::three"]
    assert found.figures["files"]["tests.a"] == {"passed": 1, "failed": 0, "skipped": 1}
    report.write_text("<testsuites/>")
    assert not read("").good


def test_a_stage_that_fails_or_does_not_end_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {
        "gpu-build": Stage("gpu-build", (part("raises", "raise SystemExit('it broke')"),)),
        "gpu-test": Stage("gpu-test", (part("sleeps", "import time; print('begun'); time.sleep(600)"),)),
        "gpu-sanitize": Stage("gpu-sanitize", (Part("no tool", ("nowhere",), last_line, missing="no tool here"),)),
        "gpu-bench": Stage("gpu-bench", (part("works", "print('all well')"),)),
    }
    monkeypatch.setattr(drive, "no_gpu", lambda: None)
    monkeypatch.setattr(drive, "stages", lambda *_: made)
    monkeypatch.setattr(drive, "GRACE", 0.5)
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    try:
        assert drive.main(["gpu", "--out", str(tmp_path / "out"), "--seconds", "6"]) == 1
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before):
            signal.signal(number, handler)
    files = {p.name: p.read_text() for p in (tmp_path / "out").iterdir()}
    assert set(files) == {f"{name}.{end}" for name in made for end in ("json", "log")}
    status = {name: json.loads(files[f"{name}.json"])["parts"][0]["status"] for name in made}
    assert list(status.values()) == ["failed", "timed out", "missing", "ok"]
    assert [json.loads(files[f"{name}.json"])["ok"] for name in made] == [False, False, True, True]
    assert "begun" in files["gpu-test.log"] and "KeyboardInterrupt" in files["gpu-test.log"]
    table = capsys.readouterr().out.split("make gpu, logs and JSON in ")[1].splitlines()[1:]
    assert [line.split()[0] for line in table] == list(made) and table[-1].endswith("all well")


def test_nothing_of_a_part_is_left_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a child that does not mind an interrupt."""
    child = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"
    code = f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {child!r}]); "
    code += "print(p.pid, flush=True); time.sleep(600)"
    monkeypatch.setattr(drive, "GRACE", 1.0)
    begin = time.monotonic()
    result = drive.run(part("parent", code), 4.0)
    assert result.status == "timed out" and time.monotonic() - begin < 15
    assert ended(int(result.log.split()[0]))


def test_parts_together_share_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "GRACE", 0.5)
    parts = tuple(part(str(n), "import time; time.sleep(600)") for n in range(3))
    begin = time.monotonic()
    results = drive.perform(Stage("together", parts, together=True), 1.5)
    assert [r.status for r in results] == ["timed out"] * 3 and time.monotonic() - begin < 15


def test_a_signal_leaves_nothing_running(tmp_path: Path) -> None:
    code = (
        "import signal, sys; from bench.gpu import drive; from tests.bench.test_stages import part; "
        "signal.signal(signal.SIGTERM, drive.leave); "
        "drive.run(part('p', 'import os, time; open(sys.argv[1], \"w\").write(str(os.getpid())); time.sleep(600)'"
        ".replace('sys.argv[1]', repr(sys.argv[1]))), 500)"
    )
    note = tmp_path / "pid"
    driver = subprocess.Popen([PYTHON, "-c", code, str(note)], cwd=ROOT)
    limit = time.monotonic() + 60
    while not (note.is_file() and note.read_text()) and time.monotonic() < limit:
        time.sleep(0.1)
    driver.terminate()
    assert driver.wait(20) == 128 + signal.SIGTERM
    assert ended(int(note.read_text()))


def test_what_is_missing_of_a_build(tmp_path: Path) -> None:
    want = build.wanted()
    stamp, there = tmp_path / "gpu.json", tmp_path / "libhhmpn_cuda.so"
    assert build.missing(want, stamp, tmp_path) == "nothing was built here before"
    stamp.write_text(json.dumps({"built": want, "files": [there.name]}))
    assert build.missing(want, stamp, tmp_path) == "libhhmpn_cuda.so is gone"
    there.write_text("")
    assert build.missing(want, stamp, tmp_path) is None
    other = {**want, "torch": "2.11.0", "gpus": ["sm_90"]}
    assert build.missing(other, stamp, tmp_path) == "other torch, gpus than before"


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_the_small_shapes_run(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert small.main(["--backend", backend, "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"8 calls on {backend}, all finite\n"


def test_a_small_shape_that_is_not_finite_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(small, "results", lambda *_: iter([("a call", [torch.tensor([1.0, float("nan")])])]))
    assert small.main(["--backend", "torch"]) == 1
    assert "not finite: a call" in capsys.readouterr().out
