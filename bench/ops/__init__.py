"""One file an op under pytest-benchmark: `python -m pytest bench`."""
