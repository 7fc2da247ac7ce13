"""What Triton's compiler made of the kernels: their sm_80 machine-independent code, executed on small ragged shapes.

bf16 and tf32 products go through the tensor-core layouts of the real code; addresses and shared memory are checked.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from triton_support.compare import offsets_of  # noqa: E402
from triton_support.execute import DTYPES, close, execute  # noqa: E402

from hhmpn_fast import ops  # noqa: E402
from hhmpn_fast.kernels.configs import Launch  # noqa: E402
from hhmpn_fast.ops import plain  # noqa: E402
from hhmpn_fast.ops.dropout import keep, threshold  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:triton")
SMALL = Launch(16, 16, 0, 4, 2, "the least tile")
DROPOUT = ops.Dropout(0.3, torch.tensor([2**35 + 11, 7]), ops.site("f2f_attention", 1))


@pytest.mark.parametrize("mode", ["lockstep", "warps"])
@pytest.mark.parametrize("dtype", ["bf16", "tf32"])
def test_attention(dtype: str, mode: str) -> None:
    torch.manual_seed(0)
    dim, groups, lengths = 64, 2, [3, 0, 17, 9]
    table, rows = offsets_of(lengths), sum(lengths)
    q = (torch.randn(rows, dim) * dim**-0.5).to(DTYPES[dtype])
    x = torch.randn(rows, dim).to(DTYPES[dtype])
    context, lse = torch.full((groups, rows, dim), torch.nan).to(q.dtype), torch.full((groups, rows), torch.nan)
    common = {
        "q": q, "x": x, "q_offsets": table, "x_offsets": table, "mask": None, "rng": DROPOUT.rng, "lse": lse,
        "context": context, "stride_q": dim, "stride_x": dim, "stride_mask": 0, "rows": rows, "dim": dim,
        "queries": len(lengths), "keys_total": len(lengths), "samples": len(lengths) // groups, "groups": groups,
        "threshold": threshold(DROPOUT.p), "scale": 1 / (1 - DROPOUT.p), "site": DROPOUT.site,
    }  # fmt: skip
    tiles = rows // 16 + len(lengths)
    execute("attention_fwd", dtype, SMALL, (tiles, groups), mode, {}, **common)

    exact_q, exact_x = (t.double().requires_grad_() for t in (q, x))
    exact, exact_lse = plain.attention(exact_q, exact_x, table, table, groups, dropout=DROPOUT)
    close("context", context, exact, dtype)
    finite = torch.isfinite(exact_lse.detach())
    assert torch.equal(torch.isfinite(lse), finite)
    close("lse", lse[finite], exact_lse[finite], dtype)

    dcontext = torch.randn(groups, rows, dim).to(q.dtype)
    wanted = torch.autograd.grad((exact * dcontext.double()).sum(), (exact_q, exact_x))
    dq, dx = (torch.full((rows, dim), torch.nan).to(q.dtype) for _ in range(2))
    delta, dlse = torch.full((groups, rows), torch.nan), torch.zeros(groups, rows)
    common |= {"dcontext": dcontext, "dlse": dlse, "delta": delta, "dq": dq, "dx": dx}
    execute("attention_dq", dtype, SMALL, (tiles,), mode, {}, **common)
    execute("attention_dx", dtype, SMALL, (tiles,), mode, {}, **common)
    close("dq", dq, wanted[0], dtype)
    close("dx", dx, wanted[1], dtype)


def test_the_compiled_dropout_mask_is_the_references_bit_for_bit() -> None:
    rows, keys, dim = 19, 21, 64
    q, x = torch.zeros(rows, dim).half(), torch.eye(keys, dim).half()
    context, lse = torch.empty(1, rows, dim).half(), torch.empty(1, rows)
    execute(
        "attention_fwd", "fp16", SMALL, (rows // 16 + 1, 1), "lockstep", {},
        q=q, x=x, q_offsets=offsets_of([rows]), x_offsets=offsets_of([keys]), mask=None, rng=DROPOUT.rng,
        context=context, lse=lse, stride_q=dim, stride_x=dim, stride_mask=0, rows=rows, dim=dim, queries=1, samples=1,
        threshold=threshold(DROPOUT.p), scale=1.0, site=DROPOUT.site,
    )  # fmt: skip
    assert torch.equal(context[0, :, :keys] != 0, keep(DROPOUT, torch.arange(rows), keys))


@pytest.mark.parametrize("dtype", ["bf16", "tf32"])
@pytest.mark.parametrize("form", ["labels", "features"])
def test_update(form: str, dtype: str) -> None:
    torch.manual_seed(1)
    rows, dim, sources = 19, 64, 2
    entry = Launch(16, 32, 32, 4, 2, "two steps through every width")

    def random(*shape: int) -> Tensor:
        return (torch.randn(*shape) * dim**-0.5).to(DTYPES[dtype])

    wide = (dim, dim) if form == "labels" else (sources, dim, dim)
    weights = [random(dim, dim), random(*wide), random(dim), random(dim, dim), random(dim)]
    state, s = torch.randn(rows, dim).to(DTYPES[dtype]), torch.randn(sources, rows, dim).to(DTYPES[dtype])
    total = rows * sources if form == "labels" else rows
    out, h, g = (torch.full((total, dim), torch.nan).to(DTYPES[dtype]) for _ in range(3))
    scalars = {
        "rows": total, "rows_u": rows, "sources": sources, "dim": dim, "threshold": threshold(DROPOUT.p),
        "scale": 1 / (1 - DROPOUT.p), "site": DROPOUT.site, "rng": DROPOUT.rng,
    }  # fmt: skip
    named = dict(zip(("wv", "wr", "b1", "wb", "b2"), weights), wc=weights[1], u=state, v=state, s=s, out=out, h=h, g=g)
    execute(f"update_{form}_fwd", dtype, entry, (-(-total // 16),), "warps", {}, **named, **scalars)
    exact = getattr(plain, f"update_{form}")(
        state.double(), s.double(), ops.BlockWeights(None, *(w.double() for w in weights)), DROPOUT
    )
    close("out", out, exact.reshape(total, dim), dtype)
    if form == "labels":
        return

    product = torch.full((sources, rows, dim), torch.nan).to(DTYPES[dtype])
    named = {"a": state, "w": weights[0], "b": out, "wz": weights[1], "gate": None, "residual": None, "out": product}
    tile = Launch(16, 32, 32, 4, 2, "")
    execute("rows_product", dtype, tile, (2, 2, sources), "warps", {"DROPOUT": False}, **named, **scalars)
    exact = state.double() @ weights[0].double() + out.double() @ weights[1].double()
    close("rows_product", product, exact, dtype)
    product = torch.full((1, rows, dim), torch.nan).to(DTYPES[dtype])
    named |= {"gate": s[0], "residual": s[1], "out": product}
    flags = {"TWO": False, "GATE": True, "RESIDUAL": True}
    execute("rows_product", dtype, tile, (2, 2, 1), "warps", flags, **named, **scalars)
    kept = torch.where(keep(DROPOUT, torch.arange(rows), dim), state.double() / (1 - DROPOUT.p), 0.0)
    exact = torch.where(s[0] > 0, kept @ weights[0].double(), 0.0) + s[1].double()
    close("gated product", product[0], exact, dtype)
    partial, bias = torch.full((2, sources, dim, dim), torch.nan), torch.full((2, dim), torch.nan)
    named = {"y": state, "x": s, "partial": partial, "partial_bias": bias, "span": 16}
    execute("weight_product", dtype, tile, (4, sources, 2), "warps", {"DROPOUT": False}, **named, **scalars)
    close("weight_product", partial.sum(0), state.double().T @ s.double(), dtype)
    close("bias", bias.sum(0), state.double().sum(0), dtype)
