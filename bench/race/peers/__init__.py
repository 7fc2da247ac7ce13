"""The contestants, one file each: this library and the best PyTorch a careful user can write."""
