"""GPU kernels without a GPU: compiled, held to a budget, predicted; where there is one, measured beside peers."""
