"""Planted mistakes in the kernels, each caught by a case that is named with it. Run by test_triton_interpreter."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from triton.runtime.errors import InterpreterError

from triton_support import attention_cases, guard, readout_cases, update_cases
from triton_support.compare import offsets_of

guard.install()


def f2f() -> None:
    """Ragged F2F with an empty segment, keys that fill no tile, and dropout."""
    torch.manual_seed(0)
    table = offsets_of([5, 0, 17, 18])
    attention_cases.hold(torch.randn(40, 24), torch.randn(40, 24), table, table, 2, dropout=attention_cases.DROPOUT)


def masked() -> None:
    """L2L under a mask."""
    attention_cases.test_l2l_under_a_mask(torch.float32, 6)


def no_keys() -> None:
    """Rows without a key."""
    torch.manual_seed(0)
    attention_cases.hold(torch.randn(4, 8), torch.randn(2, 8), offsets_of([2, 2]), offsets_of([0, 2]), 1)


def labels() -> None:
    """Label update whose states are shared by the modalities."""
    torch.manual_seed(0)
    w = update_cases.weights(24, None)
    update_cases.hold("update_labels", torch.randn(9, 24), torch.randn(2, 9, 24), w, torch.float32, None)


def features() -> None:
    """Feature update with dropout."""
    torch.manual_seed(0)
    w = update_cases.weights(24, 3)
    context = torch.randn(3, 19, 24)
    update_cases.hold("update_features", torch.randn(19, 24), context, w, torch.float32, update_cases.DROPOUT)


def splits() -> None:
    """A weight gradient of two splits of rows."""
    update_cases.test_rows_in_several_splits("update_labels")


def absent() -> None:
    """Modalities that are absent hold NaN."""
    readout_cases.test_what_an_absent_modality_holds_reaches_nothing()


def shares() -> None:
    """Readout of three modalities, some absent."""
    torch.manual_seed(0)
    readout_cases.hold(3, 5, 2, 24, torch.float32)


def joint() -> None:
    """The joint loss of three steps."""
    readout_cases.test_joint_loss((3, 5, 4), True)


# name: file, text, replacement, the case that catches it
MUTANTS: dict[str, tuple[str, str, str, Callable[[], None]]] = {
    "keys beyond the segment": (
        "attention_fwd",
        'scores = tl.where((j < keys)[None, :], scores, float("-inf"))',
        "scores = scores",
        f2f,
    ),
    "columns without a bound": (
        "tiles",
        "mask=live[:, None] & (columns < dim)[None, :], other",
        "mask=live[:, None], other",
        f2f,
    ),
    "rows without a bound": ("tiles", "live[:, None] & (columns < dim)[None, :]", "(columns < dim)[None, :]", f2f),
    "one row too many": ("attention_fwd", "live = r < q_end", "live = r <= q_end", f2f),
    "no mask forward": ("attention_fwd", 'scores = tl.where(reads != 0, scores, float("-inf"))', "pass", masked),
    "no rescale": ("attention_fwd", "acc = acc * fade[:, None]", "acc = acc", f2f),
    "no pivot": ("attention_fwd", 'tl.where(higher == float("-inf"), 0.0, higher)', "higher", masked),
    "mask not scaled": ("attention_fwd", "tl.where(total == 0.0, 0.0, scale / total)", "1.0 / total", f2f),
    "one mask for all groups": ("attention_fwd", "keep_tile(rng, site + g,", "keep_tile(rng, site,", f2f),
    "words of a quad swapped": (
        "tiles",
        "tl.join(tl.join(k0, k2), tl.join(k1, k3))",
        "tl.join(tl.join(k0, k1), tl.join(k2, k3))",
        f2f,
    ),
    "tiles of the segment before": ("tiles", "(tile - begin // B - segment) * B", "(tile - begin // B) * B", f2f),
    "no mask backward": (
        "attention_bwd",
        "(tl.load(at, mask=allowed, other=0) != 0)",
        "(tl.load(at, mask=allowed, other=0) != 2)",
        masked,
    ),
    "swapped sign": ("attention_bwd", "ds = p * ((up - down[:, None]", "ds = p * ((down[:, None] - up", f2f),
    "swapped operands": (
        "attention_bwd",
        "tl.dot(ds.to(q_tile.dtype), q_tile,",
        "tl.dot(ds.to(q_tile.dtype), dc_tile,",
        f2f,
    ),
    "delta left out": (
        "attention_bwd",
        "tl.store(delta + base + r, down - pull, mask=live)",
        "tl.store(delta + base + r, down * 0, mask=live)",
        f2f,
    ),
    "delta of one tile": ("attention_bwd", "moment += tl.sum(p * up, 1)", "moment = tl.sum(p * up, 1)", f2f),
    "no delta of a single tile": ("attention_bwd", "if keys <= BN:", "if keys < 0:", f2f),
    "gradient of lse left out": ("attention_bwd", "+ pull[:, None]", "", f2f),
    "no weights on the values' path": ("attention_bwd", "a = tl.where(keep != 0, p * scale, 0.0)", "a = p", f2f),
    "first query segment only": (
        "attention_bwd",
        "range(key % samples, queries, samples)",
        "range(key % samples, samples, samples)",
        f2f,
    ),
    "gate open at zero": ("update_bwd", "dim) > 0.0, acc, 0.0)", "dim) >= 0.0, acc, 0.0)", labels),
    "no bias": ("update_fwd", "hidden += tl.load(b1 + cn", "tl.load(b1 + cn", labels),
    "states not shared": ("update_fwd", "load_block(u, r % rows_u,", "load_block(u, r,", labels),
    "one modality's weights": ("update_fwd", "wc + m * dim * dim", "wc", features),
    "one modality's gradient": ("update_bwd", "wz + z * dim * dim", "wz", features),
    "dropout not scaled": ("update_bwd", "a_tile.to(tl.float32) * scale", "a_tile.to(tl.float32)", features),
    "splits overlap": ("update_bwd", "end = tl.minimum(rows, (split + 1) * span)", "end = rows", splits),
    "absent modality counted": (
        "readout_kernels",
        "tl.where((slot == m) & here[:, None], e",
        "tl.where(slot == m, e",
        absent,
    ),
    "softmax without its mean": (
        "readout_kernels",
        "pulls = shares * (downs - tl.sum(shares * downs, 1)[:, None])",
        "pulls = shares * downs",
        shares,
    ),
    "last step not told apart": (
        "readout_kernels",
        "tl.where(t == steps - 1, 1.0, intermediate)",
        "intermediate",
        joint,
    ),
}
USERS = {
    "tiles": ("attention_fwd", "attention_bwd", "update_fwd", "update_bwd", "readout_kernels"),
    "attention_fwd": ("attention_op",),
    "attention_bwd": ("attention_op",),
    "update_fwd": ("update_op",),
    "update_bwd": ("update_op",),
    "readout_kernels": ("readout_op",),
}


def kernels_module(name: str) -> object:
    return importlib.import_module(f"hhmpn_fast.kernels.{name}")


@pytest.mark.parametrize("name", MUTANTS)
def test_planted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stem, text, replacement, case = MUTANTS[name]
    original = kernels_module(stem)
    source = Path(original.__file__).read_text()
    assert text in source, "the kernel's text moved on: update the mutant"
    path = tmp_path / f"{stem}_mutant.py"
    path.write_text(source.replace(text, replacement))
    spec = importlib.util.spec_from_file_location(f"{stem}_mutant", path)
    mutant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutant)
    for user in USERS[stem]:
        module = kernels_module(user)
        for attribute in vars(mutant):
            if hasattr(module, attribute) and hasattr(getattr(mutant, attribute), "fn"):
                monkeypatch.setattr(module, attribute, getattr(mutant, attribute))
    with pytest.raises((AssertionError, InterpreterError)) as caught:
        case()
    # A wrong value, or an access that the guard refuses; never a mutant that does not run.
    assert caught.errisinstance(AssertionError) or "KernelError" in str(caught.value), caught.value


@pytest.mark.parametrize("case", [f2f, masked, no_keys, labels, features, splits, absent, shares, joint])
def test_the_cases_pass_without_a_mutant(case: Callable[[], None]) -> None:
    case()
