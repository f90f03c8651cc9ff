"""uvmsim: which bytes of a Mixture-of-Experts model stay on the GPU, go, or come early."""

__version__ = "0.1.0"
