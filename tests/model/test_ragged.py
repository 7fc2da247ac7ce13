"""The packed batch: what it holds, and what it refuses in words."""

from __future__ import annotations

import pytest
import torch

from hhmpn_fast import InputError, Ragged


def test_from_samples_packs_modality_major() -> None:
    a, b = torch.arange(6.0).view(3, 2), torch.arange(4.0).view(4, 1)
    ragged = Ragged.from_samples(("a", "b"), [[a[:2], b[:0]], [a[2:], b]])
    assert ragged.batch_size == 2
    assert ragged.lengths.tolist() == [[2, 1], [0, 4]]
    assert ragged.offsets.tolist() == [0, 2, 3, 3, 7]
    assert ragged.offsets.dtype == torch.int32
    assert ragged.present.tolist() == [[True, True], [False, True]]
    assert torch.equal(ragged.values[0], a)


def test_from_offsets_equals_from_samples() -> None:
    values = {"a": torch.randn(5, 3), "b": torch.randn(2, 4)}
    offsets = {"a": torch.tensor([0, 5, 5]), "b": torch.tensor([0, 0, 2], dtype=torch.int32)}
    ragged = Ragged.from_offsets(values, offsets)
    assert ragged.lengths.tolist() == [[5, 0], [0, 2]]


def test_select_takes_modalities_by_name() -> None:
    ragged = Ragged.from_samples(("a", "b"), [[torch.ones(1, 2), torch.ones(2, 3)]])
    chosen = ragged.select(("b",))
    assert chosen.names == ("b",) and chosen.lengths.tolist() == [[2]]
    with pytest.raises(InputError, match="modality 'c': not in this batch; expected one of a, b"):
        ragged.select(("c",))


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 2, 4], r"modality 'a': offsets run 0..4; expected \(B\+1,\) from 0 to 3"),
        ([1, 3], r"modality 'a': offsets run 1..3; expected \(B\+1,\) from 0 to 3"),
        ([0, 2, 1, 3], "modality 'a': offsets fall after entry 1; expected them never to fall"),
        ([], r"modality 'a': offsets run nothing; expected \(B\+1,\) from 0 to 3"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(offsets: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Ragged.from_offsets({"a": torch.ones(3, 2)}, {"a": torch.tensor(offsets, dtype=torch.int64)})


def test_other_bad_batches_are_refused() -> None:
    with pytest.raises(InputError, match="sample 1: every modality is empty"):
        Ragged(("a",), (torch.ones(1, 2),), torch.tensor([[1, 0]]))
    with pytest.raises(InputError, match="modality 'a': lengths sum to 2 but values hold 1 nodes"):
        Ragged(("a",), (torch.ones(1, 2),), torch.tensor([[2]]))
    with pytest.raises(InputError, match="modality 'a': found a length of -1"):
        Ragged(("a",), (torch.ones(1, 2),), torch.tensor([[2, -1]]))
    with pytest.raises(InputError, match=r"modality 'a': values have shape \(3,\)"):
        Ragged(("a",), (torch.ones(3),), torch.tensor([[3]]))
    with pytest.raises(InputError, match="sample 0: found 1 modalities; expected 2"):
        Ragged.from_samples(("a", "b"), [[torch.ones(1, 1)]])
    with pytest.raises(InputError, match="modality 'b': found no offsets"):
        Ragged.from_offsets({"b": torch.ones(1, 1)}, {})
