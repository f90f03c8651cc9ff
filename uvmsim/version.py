"""Which uvmsim this is; every result says so."""

__version__ = "0.1.0"
