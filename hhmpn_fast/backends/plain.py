"""The `torch` backend: every op in plain, packed PyTorch on any device and dtype; autograd derives its gradients.

The functions are those of `hhmpn_fast.ops`, beside each op's equation.
"""

from __future__ import annotations

from hhmpn_fast.backends.record import Backend, bodies

BACKEND = Backend("torch", device="cpu", ops=bodies("hhmpn_fast.ops"), unavailable=lambda device: None)
