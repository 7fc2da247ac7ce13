"""Options as text: lists of names, A=B pairs, numbers, column ranges; what does not read is one sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hhmpn_fast.errors import InputError


def names(text: str) -> list[str]:
    """A,B as names."""
    return [t.strip() for t in text.split(",") if t.strip()]


def pairs(option: str, items: Sequence[str], mark: str = "=") -> dict[str, str]:
    """Each A=B of an option that may be given several times."""
    found = {}
    for item in items:
        key, between, value = item.partition(mark)
        if not key or not between or key in found:
            raise InputError(f"option {option}: found '{item}'; expected A{mark}B, each A once.")
        found[key] = value
    return found


def whole(option: str, text: str) -> int:
    """A whole number of at least 0."""
    if not text.strip().isdigit():
        raise InputError(f"option {option}: found '{text}'; expected a whole number.")
    return int(text)


def real(option: str, text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise InputError(f"option {option}: found '{text}'; expected a number.") from None


def ranges(text: str, what: str) -> list[int]:
    """Places: 0-2,7 gives [0, 1, 2, 7]."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise InputError(f"{what}: columns '{text}'; expected places such as 0-63,70.")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found
