"""The kernels under other tritons: they use only what the lowest has, and compile under every minor from it on."""

from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("triton")
from bench.gpu import versions  # noqa: E402
from bench.gpu.launches import KINDS, forms  # noqa: E402
from hhmpn_fast.kernels.launch import Launch  # noqa: E402

KERNELS = versions.ROOT / "kernels"
# What the kernels take from triton.language, all of it there in 3.5. Look a new name up there before it is added.
LOWEST = {
    *("abs", "arange", "broadcast_to", "cdiv", "constexpr", "dot", "exp", "exp2", "float32", "full", "int32", "int64"),
    *("int8", "join", "load", "log", "max", "maximum", "minimum", "num_programs", "philox", "program_id", "reshape"),
    *("store", "sum", "trans", "uint32", "where", "zeros"),
}
# The minors there were in 2026; `newest` is whatever was published since.
MINORS = (versions.LOWEST, "3.6.0", versions.PINNED, "3.8.0", "newest")


def test_the_lowest_triton_has_every_name_that_the_kernels_use() -> None:
    used = set()
    for file in KERNELS.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tl":
                used.add(node.attr)
    assert used == LOWEST


def test_the_declared_range_starts_at_the_lowest_version_compiled() -> None:
    major, minor, _ = versions.LOWEST.split(".")
    text = (versions.ROOT / "pyproject.toml").read_text()
    assert text.count("triton>=") == text.count(f"triton>={major}.{minor}") == 2


def test_what_is_installed_for_development_is_the_pin() -> None:
    assert f"\ntriton=={versions.PINNED}\n" in (versions.ROOT / "constraints.txt").read_text()


def hold(version: str, sweep: str) -> None:
    try:
        found = versions.check(version, sweep)
    except versions.Unfetched as error:
        pytest.skip(str(error))
    assert found["failed"] == [] and found["compiled"] >= least(sweep)


def least(sweep: str) -> int:
    """The forms of one dtype and part, times dtypes and parts."""
    kernels = forms()
    one = len(kernels) + (sum(map(len, kernels.values())) if sweep == "every" else 0)
    return one * len(KINDS) * len(versions.ARCHITECTURES)


@pytest.mark.parametrize("version", [versions.LOWEST, versions.PINNED])
def test_every_kernel_compiles(version: str) -> None:
    hold(version, "main")


@pytest.mark.slow
@pytest.mark.parametrize("version", MINORS)
def test_every_launched_form_compiles(version: str) -> None:
    if version != "newest":
        return hold(version, "every")
    try:
        later = versions.published()
    except versions.Unfetched as error:
        pytest.skip(str(error))
    later = [v for v in later if versions.minors([v, MINORS[-2]])[-1] != MINORS[-2]]
    assert later
    for one in later:
        hold(one, "every")


def test_the_last_patch_of_every_minor_from_the_lowest_on() -> None:
    published = ["3.10.0", "3.9.0", "3.7.1", "3.7.0", "3.6.0", "3.5.1", "3.5.0", "3.4.0", "2.3.1", "3.9.1rc1"]
    assert versions.minors(published) == ["3.5.1", "3.6.0", "3.7.1", "3.9.0", "3.10.0"]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of their own for what is fetched and found."""
    monkeypatch.setattr(versions, "FETCHED", tmp_path)
    monkeypatch.setattr(versions, "FOUND", tmp_path / "versions")
    return tmp_path


def test_what_cannot_be_fetched_is_said(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = (*versions.PIP, "--no-cache-dir", "--isolated")
    monkeypatch.setattr(versions, "PIP", nowhere)
    monkeypatch.setattr(versions, "pip", lambda *a, real=versions.pip: real(*a, "--no-index"))
    with pytest.raises(versions.Unfetched, match=r"pip install -q triton: ERROR: .*triton==3.0.99"):
        versions.check("3.0.99", "main")
    assert not list(elsewhere.glob("triton-3.0.99/*"))


def test_what_was_found_holds_until_a_source_changes(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes are counted; what they would say is made here."""
    started = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess:
        started.append(command)
        said = json.dumps({"triton": said_version, "compiled": 8, "failed": ["sm80 a kernel"]})
        return subprocess.CompletedProcess(command, 0, stdout=f"{said}\n", stderr="")

    installed, said_version = versions.metadata.version("triton"), versions.metadata.version("triton")
    monkeypatch.setattr(versions.subprocess, "run", run)
    assert [versions.check(installed, "main")["failed"] for _ in range(2)] == [["sm80 a kernel"]] * 2
    assert len(started) == 1
    monkeypatch.setattr(versions, "digest", lambda: "of other sources")
    versions.check(installed, "main")
    assert len(started) == 2 and len(list(versions.FOUND.iterdir())) == 1
    said_version = "3.0.0"
    monkeypatch.setattr(versions, "digest", lambda: "of yet others")
    with pytest.raises(RuntimeError, match=f"asked for triton {installed}, and 3.0.0 was imported"):
        versions.check(installed, "main")


def test_a_form_that_does_not_compile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.gpu import compile as compiler

    def build(launch: Launch, architecture: str) -> None:
        if launch.entry.kernel == "rows_product" and architecture == "sm90":
            raise ValueError("at 1:2:\nno such operation")

    monkeypatch.setattr(compiler, "build", build)
    found = versions.compile_here("main")
    assert found["failed"] == [f"sm90 rows_product {t} main form: no such operation" for t in KINDS]
    assert found["compiled"] == least("main")
