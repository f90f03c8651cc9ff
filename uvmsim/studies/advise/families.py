"""Routing where nobody recorded any: popularity and locality by family of model.

The statistics are fitted on recorded routing (experiments/routing_families) and drive the generator of
`traces.synth.generate`: how popular the experts of a layer are, and how long a choice lasts. A family
that nobody recorded gets the middle of those that are known, and the answer says so.
"""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from traces.synth.generate import SynthModel

QUANTILES = 17
THIRDS = ("first", "middle", "last")
FILE = Path(__file__).with_name("families.toml")


def third_of(layer: int, n_layers: int) -> int:
    """0, 1 or 2: the third of the layers that a layer is in."""
    return min(3 * layer // n_layers, 2)


class Part(BaseModel):
    """A third of the layers."""

    model_config = ConfigDict(extra="forbid")
    third: str
    log_popularity: list[float]
    """Mean log popularity of the experts by rank, least popular first, at even steps."""
    persistence: list[float]
    """Parts of the variance that last `traces.synth.generate.TIMES`."""


class Family(BaseModel):
    """What is known of how a family of models routes."""

    model_config = ConfigDict(extra="forbid")
    name: str
    architectures: list[str]
    source: str
    model: str
    tokens: int
    sequences: int
    layers: int
    experts: int
    top_k: int
    parts: list[Part]

    def generator(self, n_layers: int, n_experts: int, top_k: int, seed: int) -> SynthModel:
        """The generator for a model of this shape; which experts are popular is drawn by lot."""
        rng = np.random.Generator(np.random.PCG64([seed, n_layers, n_experts]))
        at = np.linspace(0, QUANTILES - 1, n_experts)
        logits, share = [], []
        for layer in range(n_layers):
            part = self.parts[third_of(layer, n_layers)]
            curve = np.interp(at, np.arange(QUANTILES), part.log_popularity)
            logits.append(rng.permutation(curve))
            share.append(part.persistence)
        return SynthModel(np.array(logits), np.array(share), top_k)


@functools.cache
def families() -> dict[str, Family]:
    """All that were recorded, by name."""
    found = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {name: Family.model_validate(table) for name, table in found.items()}


def family_of(architecture: str) -> tuple[Family, str]:
    """The family of an architecture (llama.cpp's name), and where its numbers come from, in words."""
    known = families()
    for family in known.values():
        if architecture in family.architectures:
            return (
                family,
                f"statistics of {family.name}: {family.tokens:,} tokens of {family.source}",
            )
    names = ", ".join(known)
    return middle(list(known.values())), (
        f"nobody recorded {architecture} here: the middle of what is known of {names}; "
        "--trace takes your own"
    )


def middle(known: list[Family]) -> Family:
    """The mean of several families, each weighing the same."""

    def mean(rows: list[list[float]]) -> list[float]:
        return [float(x) for x in np.mean(rows, axis=0)]

    parts = [
        Part(
            third=third,
            log_popularity=mean([f.parts[i].log_popularity for f in known]),
            persistence=mean([f.parts[i].persistence for f in known]),
        )
        for i, third in enumerate(THIRDS)
    ]
    return known[0].model_copy(
        update={
            "name": "middle",
            "architectures": [],
            "parts": parts,
            "source": "the mean of " + ", ".join(f.name for f in known),
            "tokens": sum(f.tokens for f in known),
            "sequences": sum(f.sequences for f in known),
        }
    )
