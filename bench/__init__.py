"""Benchmarks, never installed: core/ (what is counted and timed), race/ (the peers), ops/, gpu/, studies/."""
