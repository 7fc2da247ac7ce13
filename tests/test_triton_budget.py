"""Every kernel of the launch table, compiled ahead of time, keeps its budget; the table is whole."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

pytest.importorskip("triton")
from bench.gpu_budget import ARCHITECTURES, KERNELS, broken  # noqa: E402
from bench.gpu_compile import build, compiled, facts, table_name  # noqa: E402
from hhmpn_fast.kernels import configs  # noqa: E402
from hhmpn_fast.kernels.configs import KINDS, TABLE, WIDTHS, launch  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:triton")
NEAR = [(a, t) for a in ("sm80", "sm90") for t in ("bf16", "tf32")]
FAR = [(a, t) for a in ("sm100", "gfx942") for t in ("bf16", "tf32")]


@pytest.mark.parametrize(("architecture", "dtype"), NEAR)
@pytest.mark.parametrize("kernel", KERNELS)
def test_budget(kernel: str, architecture: str, dtype: str) -> None:
    found = facts(compiled(kernel, dtype, 256, architecture), architecture)
    assert not broken(kernel, dtype, architecture, found), found


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "dtype"), FAR)
@pytest.mark.parametrize("kernel", KERNELS)
def test_budget_of_the_other_parts(kernel: str, architecture: str, dtype: str) -> None:
    found = facts(compiled(kernel, dtype, 256, architecture), architecture)
    assert not broken(kernel, dtype, architecture, found), found


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "dim"), itertools.product(KERNELS, (64, 128)))
def test_budget_of_narrow_rows(kernel: str, dim: int) -> None:
    for dtype in ("bf16", "tf32"):
        assert not broken(kernel, dtype, "sm80", facts(compiled(kernel, dtype, dim, "sm80"), "sm80"))


def test_the_table_is_whole() -> None:
    names = {table_name(k) for k in KERNELS}
    expected = set(itertools.product(names, KINDS, WIDTHS, configs.ARCHITECTURES))
    assert set(TABLE) == expected
    assert all(entry.why for entry in TABLE.values())
    assert configs.ARCHITECTURES == ARCHITECTURES


def test_a_tile_too_large_breaks_the_budget() -> None:
    entry = dataclasses.replace(launch("attention_dx", "half", 256, "sm80"), m=64, n=64, warps=4)
    found = facts(build("attention_dx", "bf16", 256, "sm80", entry), "sm80")
    assert "local memory" in " ".join(broken("attention_dx", "bf16", "sm80", found))
