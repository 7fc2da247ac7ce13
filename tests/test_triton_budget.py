"""Every kernel of the launch table, compiled ahead of time, keeps its budget; the table is whole."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

pytest.importorskip("triton")
from bench.gpu_budget import ARCHITECTURES, FORMS, KERNELS, broken, named  # noqa: E402
from bench.gpu_compile import build, compiled, facts, table_name  # noqa: E402
from hhmpn_fast.kernels import attention_op, configs  # noqa: E402
from hhmpn_fast.kernels.configs import KINDS, TABLE, WIDTHS, launch  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:triton")
DTYPES = ("bf16", "tf32")
# A kernel of every form on the parts beside sm_80; the rest of the matrix is slow.
SAMPLE = ("attention_fwd", "attention_dx", "update_features_fwd", "rows_product")
NEAR = [("sm80", kernel) for kernel in KERNELS] + [(a, kernel) for a in ARCHITECTURES[1:] for kernel in SAMPLE]
FAR = [case for case in itertools.product(ARCHITECTURES, KERNELS) if case not in NEAR]


def hold(kernel: str, dtype: str, dim: int, architecture: str, form: str = "") -> None:
    found = facts(compiled(kernel, dtype, dim, architecture, named(kernel, form)), architecture)
    assert not broken(kernel, dtype, architecture, found, dim), found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("architecture", "kernel"), NEAR)
def test_budget(architecture: str, kernel: str, dtype: str) -> None:
    hold(kernel, dtype, 256, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("architecture", "kernel"), FAR)
def test_budget_of_the_rest(architecture: str, kernel: str, dtype: str) -> None:
    hold(kernel, dtype, 256, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_budget_of_plain_fp32(kernel: str, architecture: str) -> None:
    hold(kernel, "ieee", 256, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dim", [64, 128, 512])
def test_budget_at_other_widths(dim: int, kernel: str, architecture: str) -> None:
    for dtype in (*DTYPES, "ieee"):
        hold(kernel, dtype, dim, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("kernel", "form"), [(k, f) for k, forms in FORMS.items() for f in forms])
def test_budget_of_the_other_forms(kernel: str, form: str, architecture: str) -> None:
    for dtype in (*DTYPES, "ieee"):
        hold(kernel, dtype, 256, architecture, form)


def test_a_mask_takes_the_short_tiles() -> None:
    mask = torch.ones(100, 100, dtype=torch.bool)
    assert [attention_op._length(200, 2, m) for m in (None, mask)] == ["", "_short"]
    assert "mask" not in FORMS["attention_fwd"] and "mask" in FORMS["attention_fwd_short"]


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
