"""Planted mistakes in the kernels, each caught by a case that is named with it. Run by test_triton_interpreter."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from triton.runtime.errors import InterpreterError

from tests.ops.behind import check_behind
from tests.triton.support import attention_cases, autocast_cases, guard, readout_cases, update_cases
from tests.triton.support.compare import offsets_of

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


def behind() -> None:
    """Rows behind the last offset."""
    check_behind(attention_cases.kernels.attention, torch.float32, 24, True, 3e4)


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


def mixed() -> None:
    """Float32 weights beside float16 rows."""
    autocast_cases.test_bits_and_gradients_of_rounded_inputs(autocast_cases.update_labels, torch.float16)


# name: file, text, replacement, the case that catches it
MUTANTS: dict[str, tuple[str, str, str, Callable[[], None]]] = {
    "keys beyond the segment": (
        "attention.forward",
        'scores = tl.where(j.live[None, :], scores, float("-inf"))',
        "scores = scores",
        f2f,
    ),
    "columns without a bound": (
        "tiles",
        "mask=tile.live[:, None] & (columns < dim)[None, :], other",
        "mask=tile.live[:, None], other",
        f2f,
    ),
    "rows without a bound": ("tiles", "tile.live[:, None] & (columns < dim)[None, :]", "(columns < dim)[None, :]", f2f),
    "one row too many": (
        "attention.forward",
        "tile_of(segment.start, segment.end, BM)",
        "tile_of(segment.start, segment.end + 1, BM)",
        f2f,
    ),
    "no mask forward": ("attention.forward", 'scores = tl.where(reads != 0, scores, float("-inf"))', "pass", masked),
    "no rescale": ("attention.forward", "acc = acc * fade[:, None]", "acc = acc", f2f),
    "no pivot": ("attention.forward", 'tl.where(higher == float("-inf"), 0.0, higher)', "higher", masked),
    "mask not scaled": ("attention.forward", "tl.where(total == 0.0, 0.0, drop.scale / total)", "1.0 / total", f2f),
    "one mask for all groups": ("attention.forward", "keep_tile(drop, g,", "keep_tile(drop, 0,", f2f),
    "words of a quad swapped": (
        "tiles",
        "tl.join(tl.join(k0, k2), tl.join(k1, k3))",
        "tl.join(tl.join(k0, k1), tl.join(k2, k3))",
        f2f,
    ),
    "tiles of the segment before": ("tiles", "(tile - begin // B - segment) * B", "(tile - begin // B) * B", f2f),
    "no mask backward": (
        "attention.backward",
        "(tl.load(at, mask=allowed, other=0) != 0)",
        "(tl.load(at, mask=allowed, other=0) != 2)",
        masked,
    ),
    "swapped sign": ("attention.backward", "d_s = p * ((up - down[:, None]", "d_s = p * ((down[:, None] - up", f2f),
    "swapped operands": (
        "attention.backward",
        "tl.dot(d_s.to(q_tile.dtype), q_tile,",
        "tl.dot(d_s.to(q_tile.dtype), dc_tile,",
        f2f,
    ),
    "delta left out": (
        "attention.backward",
        "tl.store(d_out.delta + base + r.rows, down - pull, mask=r.live)",
        "tl.store(d_out.delta + base + r.rows, down * 0, mask=r.live)",
        f2f,
    ),
    "delta of one tile": ("attention.backward", "moment += tl.sum(p * up, 1)", "moment = tl.sum(p * up, 1)", f2f),
    "no delta of a single tile": ("attention.backward", "if keys.count <= BN:", "if keys.count < 0:", f2f),
    "gradient of lse left out": ("attention.backward", "+ pull[:, None]", "", f2f),
    "no weights on the values' path": (
        "attention.backward",
        "a = tl.where(keep != 0, p * drop.scale, 0.0)",
        "a = p",
        f2f,
    ),
    "first query segment only": (
        "attention.backward",
        "range(reader, queries, samples)",
        "range(reader, samples, samples)",
        f2f,
    ),
    "rows behind the last segment not cleared": ("attention.forward", "queries, rows, tl.", "queries, 0, tl.", behind),
    "rows behind the last segment read": ("tiles", "segment.number < segments, tl.load", "True, tl.load", behind),
    "nodes behind the last segment not cleared": (
        "attention.backward",
        "segments, nodes, tl.",
        "segments, 0, tl.",
        behind,
    ),
    "gate open at zero": ("update.backward", "dim) > 0.0, acc, 0.0)", "dim) >= 0.0, acc, 0.0)", labels),
    "no bias": ("update.forward", "products + load_bias(w.b1", "products + 0.0 * load_bias(w.b1", labels),
    "bias not rounded": ("tiles", "other=0.0).to(like.dtype.element_ty).to(tl", "other=0.0).to(tl", mixed),
    "states not shared": ("update.forward", "load_block(u, Tile(r.rows % rows_u, r.live),", "load_block(u, r,", labels),
    "one modality's weights": ("update.forward", "w.hidden + m * dim * dim", "w.hidden", features),
    "one modality's gradient": ("update.backward", "w_z + z * dim * dim", "w_z", features),
    "dropout not scaled": ("tiles", "value.to(tl.float32) * drop.scale", "value.to(tl.float32)", features),
    "splits overlap": ("update.backward", "end = tl.minimum(rows, (split + 1) * span)", "end = rows", splits),
    "absent modality counted": (
        "readout.forward",
        "tl.where((slot == m) & here.live[:, None], e",
        "tl.where(slot == m, e",
        absent,
    ),
    "softmax without its mean": (
        "readout.backward",
        "pulls = shares * (downs - tl.sum(shares * downs, 1)[:, None])",
        "pulls = shares * downs",
        shares,
    ),
    "last step not told apart": (
        "joint_bce.forward",
        "tl.where(t == steps - 1, 1.0, intermediate)",
        "intermediate",
        joint,
    ),
}
STEMS = (
    "tiles",
    "attention.forward",
    "attention.backward",
    "update.forward",
    "update.backward",
    "readout.forward",
    "readout.backward",
    "joint_bce.forward",
)


def kernels_module(name: str) -> ModuleType:
    return importlib.import_module(f"hhmpn_fast.kernels.{name}")


@pytest.mark.parametrize("name", MUTANTS)
def test_planted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stem, text, replacement, case = MUTANTS[name]
    original = kernels_module(stem)
    source = Path(original.__file__).read_text()
    assert text in source, "the kernel's text moved on: update the mutant"
    path = tmp_path / "mutant.py"
    path.write_text(source.replace(text, replacement))
    spec = importlib.util.spec_from_file_location("mutant", path)
    mutant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutant)
    own = {name: f for name, f in vars(mutant).items() if hasattr(f, "fn") and f.fn.__module__ == "mutant"}
    for module in map(kernels_module, STEMS):
        for function in own.keys() & vars(module).keys():
            monkeypatch.setattr(module, function, own[function])
    with pytest.raises((AssertionError, InterpreterError)) as caught:
        case()
    # A wrong value, or an access that the guard refuses; never a mutant that does not run.
    assert caught.errisinstance(AssertionError) or "KernelError" in str(caught.value), caught.value


CASES = [f2f, masked, no_keys, behind, labels, features, splits, absent, shares, joint, mixed]


@pytest.mark.parametrize("case", CASES)
def test_the_cases_pass_without_a_mutant(case: Callable[[], None]) -> None:
    case()
