"""Prints every finding of the chosen measures, all by default: `python -m tests.house [MEASURE ...]`."""

import sys

from tests.house.measures import MEASURES

failed = 0
for measure, allowed in MEASURES.items():
    if not sys.argv[1:] or measure.__name__ in sys.argv[1:]:
        found = list(measure())
        failed += len(found) > allowed
        print(f"{measure.__name__:18} {len(found):4} of at most {allowed}  {measure.__doc__.splitlines()[0]}")
        print("".join(f"    {line}\n" for line in found), end="")
sys.exit(failed > 0)
