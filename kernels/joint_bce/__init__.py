"""joint_bce: the kernel, which gives the loss and its gradient, and the op that launches it."""
