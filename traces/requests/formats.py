"""Which columns of other people's request traces hold what: one map a format.

Sources: Azure/AzurePublicDataset (AzureLLMInferenceDataset2023.md, 2024.md), HPMLL/BurstGPT,
kvcache-ai/Mooncake (FAST25-release/traces), alibaba-edu/qwen-bailian-usagetraces-anon,
microsoft/vidur (data), Mutinifni/splitwise-sim, casys-kaist/LLMServingSim, and the ShareGPT JSON that
`vllm bench serve` reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Columns:
    """A format by its columns (CSV) or keys (JSON). It is known by having all of them."""

    name: str
    """As ``format`` has it."""
    source: str
    kind: str
    """"csv", "jsonl" or "json"."""
    prompt: str
    output: str
    arrival: str | None = None
    unit: str = "s"
    """Of ``arrival``: "s", "ms", "ns", or "date" for a date with a time of day."""
    blocks: str | None = None
    block_tokens: int = 0
    failures: str = ""
    """What a row without output is called, which is then left out; empty: such a row is an error."""
    parts: str | None = None
    """Key of a session's requests, one after the other; ``prompt`` and ``output`` are theirs."""
    pause: str | None = None
    """Key of a part: ns between its answer and the next part."""

    @property
    def wanted(self) -> tuple[str, ...]:
        """Columns that a file of this format has at least."""
        if self.parts:
            return tuple(c for c in (self.arrival, self.parts) if c)
        return tuple(c for c in (self.arrival, self.prompt, self.output, self.blocks) if c)


KNOWN = (
    Columns(
        "azure", "Azure LLM inference trace 2023 or 2024", "csv",
        "ContextTokens", "GeneratedTokens", "TIMESTAMP", "date",
    ),
    Columns(
        "burstgpt", "BurstGPT", "csv", "Request tokens", "Response tokens", "Timestamp",
        failures="failures (0 response tokens)",
    ),
    Columns(
        "vidur", "Vidur trace", "csv", "num_prefill_tokens", "num_decode_tokens", "arrived_at",
    ),
    Columns(
        "vidur-lengths", "Vidur trace, lengths only", "csv", "num_prefill_tokens", "num_decode_tokens",
    ),
    Columns(
        "splitwise", "splitwise-sim trace", "csv", "prompt_size", "token_size", "arrival_timestamp",
    ),
    Columns(
        "bailian", "Alibaba bailian usage trace", "jsonl", "input_length", "output_length", "timestamp",
        blocks="hash_ids", block_tokens=16,
    ),
    Columns(
        "mooncake", "Mooncake trace", "jsonl", "input_length", "output_length", "timestamp", "ms",
        blocks="hash_ids", block_tokens=512,
    ),
    Columns(
        "llmservingsim", "LLMServingSim trace", "jsonl", "input_toks", "output_toks",
        "arrival_time_ns", "ns",
    ),
    Columns(
        "llmservingsim-agentic", "LLMServingSim agentic trace", "jsonl", "input_toks", "output_toks",
        "arrival_time_ns", "ns", parts="sub_requests", pause="tool_duration_ns",
    ),
    Columns("sharegpt", "ShareGPT conversations", "json", "conversations", "conversations"),
)  # fmt: skip
"""In the order in which they are tried: one with more columns before one that has fewer of them."""

MARKS = {"bailian": ("chat_id",)}
"""Columns that tell a format from another with the same ones and that hold nothing needed."""


def named(name: str) -> Columns | None:
    """The format of that name."""
    return next((c for c in KNOWN if c.name == name), None)


def recognised(kind: str, columns: Iterable[str]) -> Columns | None:
    """The first format of that kind whose columns are all there."""
    there = set(columns)
    for c in KNOWN:
        if c.kind == kind and there.issuperset((*c.wanted, *MARKS.get(c.name, ()))):
            return c
    return None
