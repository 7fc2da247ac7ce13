"""Triton kernels (installed as hhmpn_fast.kernels)."""
