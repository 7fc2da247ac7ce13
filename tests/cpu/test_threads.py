"""The same bits for any number of threads and in every run."""

import pytest
import torch

from hhmpn_fast.backends import use_backend
from hhmpn_fast.backends.cpu.library import load_error
from tests.cpu.cases import run
from tests.model.cases import random_batch, random_model
from tests.ops.under import cpu

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


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dim", [12, 40, 96])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_sample_shared_by_threads_keeps_its_bits(dtype, dim, dropout):
    # Alone in its batch, or by far the longest: then a team runs it, by columns and by rows.
    before = torch.get_num_threads()
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    for seed, size in ((20, 1), (22, 3)):
        model, generator = random_model(seed, wide, dim=dim, dropout=dropout)
        batch = random_batch(generator, model.config.modalities, size, 150 if size == 1 else 3, wide)
        if size > 1:
            longest = random_batch(generator, model.config.modalities, 1, 200, wide)
            values = tuple(torch.cat(pair) for pair in zip(longest.values, batch.values))
            batch = type(batch)(batch.names, values, torch.cat([longest.lengths, batch.lengths], 1))
        runs = []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                model.seed_dropout(seed)
                model.zero_grad()
                with use_backend("cpu"), torch.autocast("cpu", torch.bfloat16, enabled=wide != dtype):
                    logits = model.train()(batch)
                    logits.float().square().sum().backward()
                    with torch.no_grad():
                        runs.append([logits.detach(), model.eval()(batch), *(p.grad for p in model.parameters())])
        finally:
            torch.set_num_threads(before)
        for other in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], other) if a is not None)
