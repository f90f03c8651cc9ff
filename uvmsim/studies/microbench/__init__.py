"""Scans and page-stride walks over managed memory, as gpu_ext's studies run them."""
