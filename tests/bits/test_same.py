"""The same bits as the build that expected.json was recorded on: every backend and instruction set, every reading."""

import pytest

from tests.bits.record import PARTS, worker


def compare(part, *arguments):
    """In a process of its own: an instruction set is chosen once a process."""
    out = worker(part, *arguments)
    if out.returncode == 3:
        pytest.skip(f"{part}: {out.stdout.strip()}")
    assert out.returncode == 0, out.stdout + out.stderr


@pytest.mark.parametrize("part", PARTS)
def test_a_fifth_of_the_cases_keeps_its_bits(part):
    compare(part)


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("part", PARTS)
def test_every_case_keeps_its_bits(part, threads):
    compare(part, "--all", "--threads", threads)
