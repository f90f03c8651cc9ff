"""uvmsim: which bytes of a Mixture-of-Experts model stay on the GPU, go, or come early."""

__version__ = "0.1.0"

__all__ = ["__version__", "cache_misses"]


def __getattr__(name: str):
    if name == "cache_misses":  # imported when asked for: the compiler takes half a second to load
        from uvmsim.experts.cache_misses import cache_misses

        return cache_misses
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
