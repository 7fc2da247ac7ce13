"""A frozen model gives its model's logits, to the bit where the kernels run it whole, and sees no later change."""

from __future__ import annotations

import pytest
import torch

from hhmpn_fast import InputError, Ragged
from hhmpn_fast.backends import use_backend
from hhmpn_fast.backends.cpu.library import load_error
from hhmpn_fast.ops.infer import INFER
from tests.model.cases import random_batch, random_model
from tests.ops.registration import check

BACKENDS = ["torch", "auto"]  # auto is cpu where the extension is built, for the readings that its kernels hold
READINGS = [
    {},
    {"f2f_layers": 2},
    {"sharing": "tied"},
    {"embed_bias": False},
    {"output_weight": "tied"},
    {"exclude_self": True, "without": ("f2f",)},
    {"label_graph": "prior"},
    {"without": ("f2f",)},
    {"without": ("f2l",)},
    {"without": ("l2l",)},
    {"without": ("m2l",)},
    {"modalities": {"only": 4}},
    {"heads": 2},
    {"norm": "post"},
    {"embed_activation": "relu"},
    {"positions": ("m0",)},
    {"dropout_place": "lamp"},
    {"intermediate": "lamp"},
    {"empty_modality": "keep"},
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reading", READINGS, ids=lambda r: ", ".join(f"{k}={v}" for k, v in r.items()) or "paper")
@pytest.mark.parametrize("size", [1, 5])
def test_the_logits_are_the_models(reading: dict, dtype: torch.dtype, size: int, backend: str) -> None:
    low = dtype == torch.bfloat16
    model, generator = random_model(3 + size, torch.float32 if low else dtype, dim=48, **reading)
    batch = random_batch(generator, model.config.modalities, size, 40, torch.float32 if low else dtype)
    with use_backend(backend), torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=low):
        want = model.eval()(batch)
    model.train()
    with use_backend(backend):
        found = model.freeze(dtype if low else None)(batch)
    assert found.dtype == want.dtype
    assert not found.requires_grad
    if backend == "auto" and load_error() is None and model.plan()["infer"].run is not None:
        assert torch.equal(found, want)
    # PyTorch's products differ by where their operands lie in memory.
    bound = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(found, want, rtol=bound, atol=bound)


@pytest.mark.parametrize("backend", BACKENDS)
def test_later_changes_are_not_seen(backend: str) -> None:
    model, generator = random_model(5)
    batch = random_batch(generator, model.config.modalities, 3, 9)
    with use_backend(backend):
        frozen = model.freeze()
        before = frozen(batch)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        torch.testing.assert_close(frozen(batch), before, rtol=1e-11, atol=1e-11)
        assert not torch.allclose(model.freeze()(batch), before, rtol=1e-3)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.skipif(load_error() is not None, reason=str(load_error()))
def test_a_model_frozen_on_one_backend_runs_on_another() -> None:
    model, generator = random_model(6)
    batch = random_batch(generator, model.config.modalities, 3, 9)
    with use_backend("cpu"):
        frozen = model.freeze()
    with use_backend("torch"):
        torch.testing.assert_close(frozen(batch), model.eval()(batch).detach(), rtol=1e-11, atol=1e-11)


def test_what_does_not_fit_is_refused() -> None:
    model, generator = random_model(7, torch.float32, modalities={"a": 3, "b": 2})
    with pytest.raises(InputError, match="dtype: found torch.float16; expected torch.float32"):
        model.freeze(torch.float16)
    with pytest.raises(InputError, match="modality 'b': not in the batch"):
        model.freeze()(random_batch(generator, {"a": 3}, 2, 4, torch.float32))


@pytest.mark.skipif(load_error() is not None, reason=str(load_error()))
def test_packed_weights_that_do_not_fit_are_named() -> None:
    model, generator = random_model(8, torch.float32, modalities={"a": 3, "b": 2}, dim=32)
    batch = random_batch(generator, {"a": 3, "b": 2}, 2, 4, torch.float32)
    with use_backend("cpu"):
        frozen = model.freeze()
        frozen._packed = {**frozen._packed, "f2l_value": frozen._packed["f2l_value"][:, :-1]}
        with pytest.raises(ValueError, match="infer: packed label weights"):
            frozen(batch)
        with pytest.raises(ValueError, match="infer: found"):
            frozen._packed = {**frozen._packed, "embed_weights": []}
            frozen(batch)


@pytest.mark.skipif(load_error() is not None, reason=str(load_error()))
def test_opcheck() -> None:
    model, generator = random_model(9, torch.float32, modalities={"a": 3, "b": 2}, dim=32)
    batch = random_batch(generator, {"a": 3, "b": 2}, 1, 20, torch.float32)
    with use_backend("cpu"):
        packed = model.freeze()._packed
    data = {"xs": list(batch.values), "offsets": batch.offsets, "present": batch.present, "mask": None}
    check(INFER, **data, **packed, steps=model.config.steps)
    torch.library.opcheck(torch.ops.hhmpn_fast.pack.default, (torch.randn(3, 5, 7), True))


@pytest.mark.skipif(load_error() is not None, reason=str(load_error()))
def test_absorbed_products_are_kept_until_a_bit_changes() -> None:
    model, generator = random_model(10, torch.float32)
    batch: Ragged = random_batch(generator, model.config.modalities, 2, 5, torch.float32)
    with use_backend("cpu"), torch.no_grad():
        model.eval()
        found = [model(batch)]
        kept = model.f2l.absorbed().query
        assert model.f2l.absorbed().query is kept
        with torch.autocast("cpu", torch.bfloat16):
            assert model.f2l.absorbed().query is not kept
        # None of these counts as a version of the parameter.
        model.f2l.w1.data.neg_()
        found.append(model(batch))
        model.f2f[0].wr.data[:, 0] += 1
        found.append(model(batch))
        model.f2f[0].wv.detach().numpy()[-1, -1] *= -1
        found.append(model(batch))
        fresh, _ = random_model(10, torch.float32)
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(fresh.eval()(batch), found[-1])
    assert all(not torch.equal(a, b) for a, b in zip(found, found[1:]))


@pytest.mark.skipif(load_error() is not None, reason=str(load_error()))
def test_digest_sees_every_bit_and_the_order() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(n, generator=generator) for n in (1, 63, 4097, 40000)]
    digest = torch.ops.hhmpn_fast.digest
    seen = {digest(tensors), digest(tensors[::-1]), digest([-t for t in tensors]), digest(tensors[:3])}
    for t in tensors:
        for at in (0, t.numel() // 2, t.numel() - 1):
            bits = t.view(torch.int32)
            for bit in (0, 13, 31):
                old = bits[at].clone()
                bits[at] ^= torch.tensor(1 << bit, dtype=torch.int64).to(torch.int32)
                seen.add(digest(tensors))
                bits[at] = old
    # A tensor of one element has one place, not three.
    assert len(seen) == 4 + 3 + 3 * 3 * 3
    assert digest(tensors) in seen
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert digest(tensors) in seen
    torch.set_num_threads(threads)
