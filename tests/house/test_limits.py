"""The house keeps its rules; `python -m tests.house` prints the same without pytest."""

import pytest

from tests.house.measures import MEASURES


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.__name__)
def test_the_house_keeps_its_rule(measure) -> None:
    found = list(measure())
    assert len(found) <= MEASURES[measure], "\n".join([measure.__doc__, *found])
