"""Where a little more or less skew of the router changes a prefill's speed several times over.

The driver's list is all but FIFO, and a prefill goes through the model in one order: once its experts
fit into the card nearly nothing misses, one chunk more and nearly everything does (a cyclic scan
through LRU). Nobody has published how unevenly random tokens use a model's experts, so a result near
that edge is a band, not a number.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from uvmsim.core.units import format_bytes
from uvmsim.mechanisms.uvm import setup_of
from uvmsim.paging.drive import Setup
from uvmsim.paging.layout import BLOCK, PAGE
from uvmsim.policies.pages.phases import PhasedPolicy
from uvmsim.runs.job import Job
from uvmsim.studies.llamabench.workload import DEFAULT_SIGMA, bench
from uvmsim.studies.simulate import simulate

SPREAD = 0.1
"""Share by which the popularity's standard deviation is varied, both ways."""


@dataclass(frozen=True)
class Cliff:
    """A prefill whose experts fit the card at one end of the band and not at the other."""

    chunks: tuple[int, int]
    """Chunks it touches with the popularity `SPREAD` less and more uneven."""
    capacity: int
    """Chunks the card holds."""
    tokens_per_s: tuple[float, float]
    """Slowest and fastest of both ends and what was asked for."""

    def to_json(self) -> dict[str, object]:
        """Plain JSON types."""
        return {"popularity": [1 - SPREAD, 1 + SPREAD], **dataclasses.asdict(self)}

    def told(self, test: str, policy: str) -> str:
        """One line."""
        less, more = self.chunks
        slow, fast = self.tokens_per_s
        edge = format_bytes(self.capacity * BLOCK, binary=True)
        return (
            f"{test}, {policy}: at a cliff, {slow:,.0f} to {fast:,.0f} t/s: the experts it uses take "
            f"{less:,} chunks where their popularity is {SPREAD:.0%} less uneven and {more:,} where it "
            f"is more so, and the card holds {self.capacity:,} ({edge}); what fits stays, what does "
            "not is brought in anew each time"
        )


def cliff_of(job: Job, prompt: int, seed: int, tokens_per_s: float) -> Cliff | None:
    """The cliff that a paged prefill of ``prompt`` random tokens stands at; None where both ends of the
    band fit, or neither does. ``tokens_per_s``: what it came to."""
    policy = job.policy
    if not isinstance(policy, PhasedPolicy) or policy.copies:
        return None
    ends = [_scaled(job, prompt, seed, 1 - SPREAD), _scaled(job, prompt, seed, 1 + SPREAD)]
    setups = [setup_of(end, False)[0] for end in ends]
    chunks = [touched(setup) for setup in setups]
    capacity = setups[0].n_chunks
    if not min(chunks) <= capacity < max(chunks):
        return None
    speeds = [tokens_per_s, *(_speed(end, prompt) for end in ends)]
    return Cliff((chunks[0], chunks[1]), capacity, (min(speeds), max(speeds)))


def touched(setup: Setup) -> int:
    """Chunks that the last forward pass touches."""
    k = setup.kernels
    wave_step = np.repeat(k.step, np.diff(k.wave_hi, prepend=0))
    last = np.repeat(wave_step, np.diff(k.touch_hi, prepend=0)) == len(setup.phase) - 1
    first, end = k.first[last] * PAGE // BLOCK, (k.last[last] - 1) * PAGE // BLOCK + 1
    edges = np.zeros(len(setup.n_pages) + 1, np.int64)
    np.add.at(edges, first, 1)
    np.add.at(edges, end, -1)
    return int((np.cumsum(edges[:-1]) > 0).sum())


def _scaled(job: Job, prompt: int, seed: int, factor: float) -> Job:
    """Warm-up and one prefill, with another spread of popularity."""
    prefill, decode = job.model.routing_sigma or DEFAULT_SIGMA
    model = dataclasses.replace(job.model, routing_sigma=(prefill * factor, decode * factor))
    made = bench(model, prompt, 0, 1, seed)
    return dataclasses.replace(job, model=model, workload=made.workload)


def _speed(job: Job, prompt: int) -> float:
    steps = simulate(job, "uvm").step_ns
    return prompt / (float(steps[len(steps) // 2 :].sum()) / 1e9)
