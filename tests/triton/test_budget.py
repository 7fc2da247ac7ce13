"""Every kernel of the launch table, compiled ahead of time, keeps its budget; the table is whole."""

from __future__ import annotations

import dataclasses
import itertools
import sys

import pytest
import torch

triton = pytest.importorskip("triton")
from bench.gpu.budget import ARCHITECTURES, broken  # noqa: E402
from bench.gpu.compile import TARGETS, Signature, build, compiled, facts  # noqa: E402
from bench.gpu.launches import forms, recorded  # noqa: E402
from hhmpn_fast.kernels import launch_table, tiles  # noqa: E402
from hhmpn_fast.kernels.attention.op import length  # noqa: E402
from hhmpn_fast.kernels.launch_table import KINDS, TABLE, WIDTHS, entry  # noqa: E402
from hhmpn_fast.kernels.records import Sizes  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:triton")
DTYPES = ("bf16", "tf32")
KERNELS = tuple(forms())
# A kernel of every form on the parts beside sm_80; the rest of the matrix is slow.
SAMPLE = ("attention_forward", "attention_d_x", "update_features_forward", "rows_product")
NEAR = [("sm80", kernel) for kernel in KERNELS] + [(a, kernel) for a in ARCHITECTURES[1:] for kernel in SAMPLE]
FAR = [case for case in itertools.product(ARCHITECTURES, KERNELS) if case not in NEAR]
MIXED = ("update_labels_forward", "update_features_forward", "rows_product")  # kernels that read weights in tiles
PARAMETERS = 12


def hold(kernel: str, dtype: str, dim: int, architecture: str, form: str = "") -> None:
    found = facts(compiled(kernel, dtype, dim, architecture, form), architecture)
    assert not broken(kernel, dtype, architecture, found, dim), found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("architecture", "kernel"), NEAR)
def test_budget(architecture: str, kernel: str, dtype: str) -> None:
    hold(kernel, dtype, 256, architecture)


@pytest.mark.parametrize("kernel", MIXED)
def test_budget_beside_float32_weights(kernel: str) -> None:
    hold(kernel, "mixed", 256, "sm80")


@pytest.mark.slow
@pytest.mark.parametrize("dim", WIDTHS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", MIXED)
def test_budget_beside_float32_weights_of_the_rest(kernel: str, architecture: str, dim: int) -> None:
    for form in ("", *(forms()[kernel] if dim == 256 else ())):
        hold(kernel, "mixed", dim, architecture, form)


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
@pytest.mark.parametrize(("kernel", "form"), [(k, f) for k, others in forms().items() for f in others])
def test_budget_of_the_other_forms(kernel: str, form: str, architecture: str) -> None:
    for dtype in (*DTYPES, "ieee"):
        hold(kernel, dtype, 256, architecture, form)


def test_a_mask_takes_the_short_tiles() -> None:
    mask = torch.ones(100, 100, dtype=torch.bool)
    assert [length(200, 2, m) for m in (None, mask)] == ["", "_short"]
    assert "mask, dropout" in forms()["attention_forward_short"]
    assert not any("mask" in form for form in forms()["attention_forward"])


def test_the_table_is_whole() -> None:
    expected = set(itertools.product(KERNELS, KINDS, WIDTHS, launch_table.ARCHITECTURES))
    assert set(TABLE) == expected
    assert all(entry.why and entry.kernel == kernel for (kernel, *_), entry in TABLE.items())
    assert launch_table.ARCHITECTURES == ARCHITECTURES


def test_no_kernel_takes_more_than_a_dozen_parameters() -> None:
    functions = {launch.function for launch in recorded("bf16", 256, "sm80").values()}
    modules = {sys.modules[function.fn.__module__] for function in functions} | {tiles}
    shared = {f for module in modules for f in vars(module).values() if isinstance(f, triton.JITFunction)}
    assert len(functions) == 10 and functions <= shared
    assert {f.__name__: len(f.arg_names) for f in shared if len(f.arg_names) > PARAMETERS} == {}


class NoGpu:
    """What Triton's JIT asks of a driver before it compiles."""

    def get_current_target(self) -> object:
        return TARGETS["sm80"]

    def get_current_device(self) -> int:
        return 0


def test_what_is_compiled_is_what_the_jit_would_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.runtime.driver, "_active", NoGpu())
    for (kernel, form), launch in recorded("bf16", 256, "sm80").items():
        found, binder = Signature.of(launch), launch.function.create_binder()[-1]
        bound, kinds, _ = binder(**launch.arguments, form=launch.form, debug=False, **launch.entry.options)
        assert {name: kind for name, (kind, _) in zip(bound, kinds)} == found.types, (kernel, form)
        hints = [(place, hint) for place, (_, hint) in enumerate(kinds) if list(bound)[place] != "form"]
        aligned = {path for place, hint in hints for path in divisible(hint, (place,))}
        assert aligned == set(found.attrs), (kernel, form)


def divisible(hint: object, path: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Where the JIT found a multiple of 16."""
    if isinstance(hint, tuple):
        return [place for n, field in enumerate(hint) for place in divisible(field, (*path, n))]
    return [path] if hint == "D" else []


@pytest.mark.parametrize(
    "kernel", ["attention_forward_short", "attention_d_q", "attention_d_x", "update_features_forward"]
)
def test_ones_in_records_are_constants_and_compile(kernel: str) -> None:
    """One feature, one group, the first site but one: the JIT compiles each 1 in, where a kernel may not call it."""
    launch = recorded("bf16", 1, "sm80")[kernel, "mask, dropout" if kernel.endswith("_short") else ""]
    ones = {"drop": launch.arguments["drop"]._replace(threshold=1, site=1)}
    ones |= {name: Sizes(1, 1) for name in ("sizes",) if name in launch.arguments}
    assert build(dataclasses.replace(launch, arguments=launch.arguments | ones), "sm80").asm["cubin"]


def test_a_tile_too_large_breaks_the_budget() -> None:
    large = dataclasses.replace(entry("attention_d_x", "half", 256, "sm80"), m=64, n=64, warps=4)
    launch = recorded("bf16", 256, "sm80", large)["attention_d_x", ""]
    found = facts(build(launch, "sm80"), "sm80")
    assert "local memory" in " ".join(broken("attention_d_x", "bf16", "sm80", found))
