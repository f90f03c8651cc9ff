"""The unified-memory driver: where tensors lie, what kernels touch, who is brought in and who goes."""
