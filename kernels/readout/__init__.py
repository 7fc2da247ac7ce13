"""readout: kernels of both passes, and the op that launches them."""
