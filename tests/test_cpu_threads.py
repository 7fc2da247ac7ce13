"""The same bits for any number of threads and in every run."""

import pytest
import torch
from cpu_cases import run

from hhmpn_fast.ops import cpu
from hhmpn_fast.ops.cpu_library import load_error

pytestmark = pytest.mark.skipif(load_error() is not None, reason=str(load_error()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_threads(dtype):
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 3, 2, 2):
            torch.set_num_threads(threads)
            runs.append(run(cpu, dtype, True))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        for i, (a, b) in enumerate(zip(runs[0], other)):
            assert torch.equal(a, b), i
