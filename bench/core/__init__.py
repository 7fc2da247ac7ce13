"""What every benchmark stands on: workloads, useful FLOP, the matrix rate, interleaved timing."""
