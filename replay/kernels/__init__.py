"""Expert, read and checksum kernels: CUDA source, its loader, and the NumPy reference."""
