"""Puts the repository, with `bench` and `tests`, last on the path; one thread a test.

Two workers of `pytest -n 2` with two threads each would wait for one another. Tests about threads ask for their own.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in the tests' own processes
sys.path.append(str(Path(__file__).parents[1]))
