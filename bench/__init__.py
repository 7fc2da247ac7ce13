"""Benchmarks: workloads, useful FLOP, peers, the interleaved runner and its report. Never installed."""
