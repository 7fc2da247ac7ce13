"""The GPU kernels without a GPU: compiled, held to a budget, predicted; and, where there is one, raced with their peers."""
