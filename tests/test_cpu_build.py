"""Where a C++ compiler is, the extension is there: the kernels' tests skip without it, this one does not."""

from __future__ import annotations

import shutil

import pytest

from hhmpn_fast.ops.cpu_library import load_error


def test_the_extension_is_built_where_it_can_be() -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler (c++) on PATH")
    assert load_error() is None
