"""Run in a copy of the tree: who refuses the reading NAME=VALUE (an argument), whose own value is the paper's.

Prints "refused" where every backend and the composition refuse it, "composed" where single ops run it.
"""

import sys

import torch

from hhmpn_fast import InputError, Ragged, backends
from hhmpn_fast.backends import PHASES, use_backend
from hhmpn_fast.config import HHMPNConfig
from hhmpn_fast.model import HHMPN

name, value = said = sys.argv[1].split("=")
config = HHMPNConfig({"a": 3, "b": 2}, ("x", "y"), dim=8, dropout=0.0)
own, other = HHMPN(config).double().eval(), HHMPN(config.with_(**{name: value})).double().eval()
other.load_state_dict(own.state_dict())
batch = Ragged(("a", "b"), (torch.randn(4, 3).double(), torch.randn(3, 2).double()), torch.tensor([[3, 1], [0, 3]]))

# Fused paths: no record holds it, whether or not its backend can run here.
fused = 0
for backend in map(backends.record, backends.AUTO_ORDER):
    for phase in set(PHASES) & set(backend.ops):
        body = backend.ops[phase]
        call = backends.Call(backend.device, torch.float32, 64, tuple(d.said for d in other.config.deviations))
        held = set().union(*body.holds.values()) if isinstance(body.holds, dict) else set(body.holds)
        assert not {name, "=".join(said)} & held, (backend.name, phase)
        if backend.unavailable(backend.device) is None:
            assert "=".join(said) in backend.why_not(phase, call), (backend.name, phase)
        fused += 1
assert fused >= 5, fused

# Whole models: the paper's value runs everywhere, the other one where the composition knows it.
ran = {}
for chosen in ("torch", "reference", "auto", "cpu"):
    if chosen == "cpu" and backends.why_not("cpu", "tower", backends.Call("cpu", torch.float64, 8)):
        continue
    with use_backend(chosen), torch.no_grad():
        plain = own(batch)
        try:
            ran[chosen] = other(batch)
        except InputError as error:
            assert f"{name}: found '{value}'" in str(error) or f"{name}={value}" in str(error), error
if not ran:
    print("refused")
elif len(ran) >= 3:
    for found in ran.values():
        assert torch.allclose(found, ran["reference"]) and not torch.allclose(found, plain)
    print("composed")
