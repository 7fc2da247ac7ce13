"""Kernels are started by name: what is missing, unknown or of another kind is refused in one sentence."""

import pytest
import torch

from hhmpn_fast.backends.cuda.fields import Signature
from hhmpn_fast.backends.cuda.launch import launch
from tests.cuda.cases import library, needs_harness, on_cpu

KERNELS = (
    "attention_forward",
    "attention_backward",
    "update_forward",
    "update_backward",
    "weight_gradients",
    "tower_forward",
    "tower_backward",
)
LINES = """\
Dtype int32 dtype 1 0 float32, 1 bfloat16, 2 float16
Size int32 d 1 of a row
In call x 1 rows d
InOrNull bool mask 1 rows rows
Size int32 rows 1 of x
Real float32 scale 1 of every row
InList call parts 2 counts d
SizeList int32 counts 2 of each part
Out float32 total 1 d*2+1
"""


def values(**changes: object) -> dict[str, object]:
    made = {
        "total": torch.empty(9),
        "x": torch.ones(3, 4),
        "parts": [torch.ones(2, 4), torch.ones(1, 4)],
        "counts": [2, 1],
        "scale": 0.5,
        "rows": 3,
        "mask": None,
        "d": 4,
        "dtype": torch.float32,
    }
    return made | changes


def test_values_cross_in_the_order_of_the_fields() -> None:
    signature, given = Signature("toy", LINES), values()
    wire = signature.pack(given)
    signature.check_shapes(given)
    assert [f.name for f, _ in wire.tensors] == ["x", "mask", "parts", "parts", "total"]
    assert [f.written for f, _ in wire.tensors] == [False] * 4 + [True]
    assert wire.tensors[0][1] is given["x"] and wire.tensors[1][1] is None
    assert wire.sizes == [0, 4, 3, 2, 2, 2, 1] and wire.reals == [0.5]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"y": 1}, "toy: found a value for 'y'; expected dtype, d, x, "),
        ({"x": None}, "toy: x is None; expected a tensor of torch.float32."),
        ({"x": torch.ones(3, 4).double()}, "toy: x is a tensor of torch.float64; expected a tensor of torch.float32."),
        ({"dtype": torch.bfloat16}, "toy: x is a tensor of torch.float32; expected a tensor of torch.bfloat16."),
        (
            {"dtype": torch.float64},
            "toy: dtype is torch.float64; expected torch.float32, torch.bfloat16 or torch.float16.",
        ),
        ({"x": torch.ones(4, 3).T}, "toy: x has strides (1, 3); expected a contiguous tensor."),
        ({"x": 3}, "toy: x is 3; expected a tensor of torch.float32."),
        ({"mask": torch.ones(3, 3)}, "toy: mask is a tensor of torch.float32; expected a tensor of torch.bool."),
        ({"rows": 3.0}, "toy: rows is 3.0; expected an int."),
        ({"rows": torch.tensor(3)}, "toy: rows is a tensor of torch.int64; expected an int."),
        ({"scale": 1}, "toy: scale is 1; expected a float."),
        ({"parts": torch.ones(2, 4)}, "toy: parts is a tensor of torch.float32; expected a list of at most 2."),
        ({"parts": [torch.ones(1, 4)] * 3}, "toy: parts is a list of 3; expected a list of at most 2."),
        ({"counts": [2, 1.0]}, "toy: counts is 1.0; expected ints."),
    ],
)
def test_refuses_by_name(changes: dict, said: str) -> None:
    with pytest.raises(TypeError) as error:
        Signature("toy", LINES).pack(values(**changes))
    assert str(error.value).startswith(said)


def test_refuses_a_missing_value() -> None:
    given = values()
    del given["scale"]
    with pytest.raises(TypeError, match="toy: found no value for 'scale'; expected one for each of its fields."):
        Signature("toy", LINES).pack(given)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x": torch.ones(2, 4)}, "toy: x is (2, 4); expected rows d = 12."),
        ({"parts": [torch.ones(2, 4), torch.ones(2, 4)]}, "toy: parts is (2, 4); expected counts d = 4."),
        ({"total": torch.ones(8)}, "toy: total is (8,); expected d*2+1 = 9."),
    ],
)
def test_refuses_another_shape(changes: dict, said: str) -> None:
    with pytest.raises(TypeError) as error:
        Signature("toy", LINES).check_shapes(values(**changes))
    assert str(error.value) == said


@needs_harness
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_library_tells_its_fields(kernel: str) -> None:
    lines = library().fields(kernel)
    fields = Signature(kernel, lines).fields
    assert len(fields) == len(lines.splitlines())  # no name twice
    assert list(fields)[:2] == ["dtype", "d"] and any(f.written for f in fields.values())


@needs_harness
def test_a_kernel_refuses_by_name() -> None:
    with on_cpu(0) as harness, pytest.raises(TypeError, match="update_forward: found a value for 'u'"):
        launch("update_forward", u=torch.ones(1))
    assert harness.calls == []
