"""Where a C++ compiler is, the extension is there: the kernels' tests skip without it, this one does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hhmpn_fast import info
from hhmpn_fast.backends.cpu.library import isa, load_error
from hhmpn_fast.source_digest import MANIFEST, digest, stale


def test_the_extension_is_built_where_it_can_be() -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler (c++) on PATH")
    assert load_error() is None


def test_the_extension_is_the_one_these_sources_give() -> None:
    assert stale() is None


def test_an_extension_of_other_sources_is_named(tmp_path: Path) -> None:
    package, kernels = tmp_path / "hhmpn_fast", tmp_path / "csrc" / "cpu"
    package.mkdir()
    assert stale(package) is None  # an installed package has no sources beside it
    kernels.mkdir(parents=True)
    (tmp_path / "csrc" / "ops.cpp").write_text("// ops")
    (kernels / "gemm.h").write_text("// tile")
    assert stale(package) is None  # a checkout that was never built
    (package / MANIFEST).write_text(json.dumps({"sources": digest(tmp_path / "csrc")}))
    assert stale(package) is None
    (kernels / "gemm.h").write_text("// another tile")
    assert "built from other sources" in stale(package)


def test_info_shows_the_instruction_set_the_kernels_run_on() -> None:
    if load_error() is not None:
        pytest.skip(str(load_error()))
    assert f"cpu         can run (isa {isa()}," in "\n".join(info.collect())
