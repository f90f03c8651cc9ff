"""Traces that ship with the package: captured by our own command from experiments/tiny_moe."""

from pathlib import Path

BUNDLED = Path(__file__).with_name("tiny-moe.arrow")
"""Prefill and decode of held-out text; what commands use when no trace is named."""

BUNDLED_EXPERTS_AS = "gpt-oss-20b"
"""The preset whose expert size stands in for the tiny model's own in `uvmsim compare`."""
