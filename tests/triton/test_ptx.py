"""What Triton's compiler made of the kernels: their sm_80 machine-independent code, executed on small ragged shapes.

bf16 and tf32 products go through the tensor-core layouts of the real code; addresses and shared memory are checked.
The launches are the ops' own.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from hhmpn_fast import ops  # noqa: E402
from hhmpn_fast.kernels.launch_table import Entry  # noqa: E402
from hhmpn_fast.ops.dropout import keep  # noqa: E402
from tests.ops.under import kernels, plain  # noqa: E402
from tests.triton.support.compare import clear_rows, leaves, offsets_of  # noqa: E402
from tests.triton.support.execute import DTYPES, close, executed  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:triton")
SMALL = Entry(16, 16, 0, 4, 2, "the least tile")
DROPOUT = ops.Dropout(0.3, torch.tensor([2**35 + 11, 7]), ops.site("f2f_attention", 1))


@pytest.mark.parametrize("mode", ["lockstep", "warps"])
@pytest.mark.parametrize("dtype", ["bf16", "tf32"])
def test_attention(dtype: str, mode: str) -> None:
    torch.manual_seed(0)
    dim, groups, lengths = 64, 2, [3, 0, 17, 9]
    table, rows = offsets_of(lengths), sum(lengths)
    q = (torch.randn(rows, dim) * dim**-0.5).to(DTYPES[dtype])
    x, pulls = torch.randn(rows, dim).to(DTYPES[dtype]), torch.randn(groups, rows, dim).to(DTYPES[dtype])
    inputs, exact_inputs = leaves(q, x), leaves(q.double(), x.double())
    exact, exact_lse = plain.attention(*exact_inputs, table, table, groups, dropout=DROPOUT)
    wanted = torch.autograd.grad((exact * pulls.double()).sum(), exact_inputs)
    with executed(dtype, mode, SMALL) as ran:
        context, lse = kernels.attention(*inputs, table, table, groups, dropout=DROPOUT)
        found = torch.autograd.grad((context * pulls).sum(), inputs)
    assert ran == ["attention_forward_short", "attention_d_q_short", "attention_d_x_short"]
    close("context", context, exact, dtype)
    finite = torch.isfinite(exact_lse.detach())
    assert torch.equal(torch.isfinite(lse), finite)
    close("lse", lse[finite], exact_lse[finite], dtype)
    for name, gradient, right in zip(("d_q", "d_x"), found, wanted):
        close(name, gradient, right, dtype)


def test_the_compiled_dropout_mask_is_the_references_bit_for_bit() -> None:
    rows, keys, dim = 19, 21, 64
    q, x = torch.zeros(rows, dim).half(), torch.eye(keys, dim).half()
    with executed("fp16", "lockstep", SMALL):
        context, _ = kernels.attention(q, x, offsets_of([rows]), offsets_of([keys]), 1, dropout=DROPOUT)
    assert torch.equal(context[0, :, :keys] != 0, keep(DROPOUT, torch.arange(rows), keys))


@pytest.mark.parametrize("dtype", ["bf16", "tf32"])
@pytest.mark.parametrize("form", ["labels", "features"])
def test_update(form: str, dtype: str) -> None:
    torch.manual_seed(1)
    rows, dim, sources = 19, 64, 2

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape) * dim**-0.5

    wide = (dim, dim) if form == "labels" else (sources, dim, dim)
    weights = [random(dim, dim), random(*wide), random(dim), random(dim, dim), random(dim)]
    state, s = torch.randn(rows, dim), torch.randn(sources, rows, dim)
    exact_state, exact_s, *exact_weights = (t.to(DTYPES[dtype]).double() for t in (state, s, *weights))
    clear = clear_rows(f"update_{form}", exact_state, exact_s, ops.BlockWeights(None, *exact_weights), 2**-5)
    assert clear.any()  # rows in which no rounding decides about a gate
    pulls = clear * (torch.randn(sources, rows, dim) if form == "labels" else torch.randn(rows, dim))
    entry = Entry(16, 32, 32, 4, 2, "two steps through every width")
    results = []
    for kind, module in ((DTYPES[dtype], kernels), (torch.float64, plain)):
        first, second, *rest = inputs = leaves(*(t.to(DTYPES[dtype]).to(kind) for t in (state, s, *weights)))
        with executed(dtype, "warps", entry) as ran:
            out = getattr(module, f"update_{form}")(first, second, ops.BlockWeights(None, *rest), DROPOUT)
            gradients = torch.autograd.grad((out * pulls.to(kind)).sum(), inputs)
        results.append([out, *gradients])
        expected = [
            f"update_{form}_forward",
            *["rows_product"] * (3 if form == "labels" else 2),
            *["weight_product"] * 3,
        ]
        assert ran == (expected if module is kernels else [])
    for name, found, right in zip(("out", "state", "context", "value", "hidden", "b1", "output", "b2"), *results):
        close(f"{form} {name}", found, right, dtype)
