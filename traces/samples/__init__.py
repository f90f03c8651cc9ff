"""Traces that ship with the package, captured by our own commands."""

from pathlib import Path

BUNDLED = Path(__file__).with_name("tiny-moe.arrow")
"""Prefill and decode of held-out text by experiments/tiny_moe; what commands use when no trace is
named."""

BUNDLED_EXPERTS_AS = "gpt-oss-20b"
"""The preset whose expert size stands in for the tiny model's own in `uvmsim compare`."""

BUNDLED_FAULTS = Path(__file__).with_name("h100-uvm-faults.arrow")
"""Page faults and migrations of `uvmsim replay --mode uvm` on an H100, through CUPTI."""
