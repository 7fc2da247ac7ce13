"""Who can run an op, and why not: the one place that picks between plain PyTorch and the kernels.

    reference   the equations, one sample at a time (whole models only)
    torch       packed, plain PyTorch, any device
    cpu         csrc/cpu, fused C++
    triton      kernels/
    cuda        csrc/cuda

`HHMPN_FAST_BACKEND` and `use_backend` choose. An explicit choice never falls back; `auto` takes the first of
cuda, triton, cpu, torch that can run. A model asks once a call for its `plan`; `explain` lists every op and candidate
with its reason.

To add a backend: a module with a `BACKEND` record, beside its code, and its line in `registry.HOMES`.
"""

from hhmpn_fast.backends.plan import PHASES, Plan, Step, explain, ops, plan
from hhmpn_fast.backends.record import Backend, Body, Call, gpus
from hhmpn_fast.backends.registry import AUTO_ORDER, NAMES, choose, current, first, record, use_backend, why_not

__all__ = [
    "AUTO_ORDER",
    "NAMES",
    "PHASES",
    "Backend",
    "Body",
    "Call",
    "Plan",
    "Step",
    "choose",
    "current",
    "explain",
    "first",
    "gpus",
    "ops",
    "plan",
    "record",
    "use_backend",
    "why_not",
]
