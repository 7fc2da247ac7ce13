"""Helpers of the Triton tests: a guarded interpreter, and cases that run inside it."""
