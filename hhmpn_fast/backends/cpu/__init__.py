"""The `cpu` backend: the ops of csrc/cpu with the signatures that `hhmpn_fast.ops` and the model call.

float32, bfloat16 (fp32 accumulation) and float64; gradients in C++; a second derivative raises.
"""

from __future__ import annotations

import torch

from hhmpn_fast.backends import Call
from hhmpn_fast.backends.cpu.attention import attention as attention
from hhmpn_fast.backends.cpu.embed import absorb as absorb
from hhmpn_fast.backends.cpu.embed import embed as embed
from hhmpn_fast.backends.cpu.f2f import f2f as f2f
from hhmpn_fast.backends.cpu.infer import digest as digest
from hhmpn_fast.backends.cpu.infer import infer as infer
from hhmpn_fast.backends.cpu.infer import pack as pack
from hhmpn_fast.backends.cpu.joint_loss import joint_loss as joint_loss
from hhmpn_fast.backends.cpu.library import describe as describe
from hhmpn_fast.backends.cpu.library import load_error
from hhmpn_fast.backends.cpu.readout import joint_bce as joint_bce
from hhmpn_fast.backends.cpu.readout import readout as readout
from hhmpn_fast.backends.cpu.tower import tower as tower
from hhmpn_fast.backends.cpu.update import update_features as update_features
from hhmpn_fast.backends.cpu.update import update_labels as update_labels

load_error()  # loads the library, so that torch.ops.hhmpn_fast is there; `why_not` gives the reason where it is not

_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
_HELD = {"readout": ("m2l", "output_bias")}  # options that a kernel has, by op


def why_not(op: str, call: Call) -> str | None:
    """None when the kernels run `op` as called, else the reason."""
    error = load_error()
    if error is not None:
        return error
    if call.device != "cpu":
        return f"the tensors are on {call.device}, the kernels run on the host"
    if call.dtype not in _DTYPES:
        return f"the dtype is {call.dtype}, the kernels hold float32, bfloat16 and float64"
    missing = [o for o in call.options if o not in _HELD.get(op, ())]
    if missing:
        return f"the kernels do not hold the option {', '.join(missing)}"
    return None
