"""Which experts the tokens of a request use: from a recorded trace, else made by family."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traces.files.schema import DECODE, PREFILL
from traces.routing import RoutingTrace
from uvmsim.machine.model import Model
from uvmsim.studies.advise.families import family_of

WARM, MEASURED = 128, 256
"""Tokens decoded before what is measured, so that a cache is full, and those that are."""
MOST_PROMPT = 2048
"""Different prompt tokens; longer prompts repeat them."""
DRAWN_LAYERS = 16
"""Layers that are drawn; in deeper models others repeat them under other names, which a cache cannot
tell from a draw of their own."""


@dataclass(frozen=True)
class Routed:
    """Ids of experts, int16 [tokens, layers, k]."""

    warm: np.ndarray
    prompt: np.ndarray
    decode: np.ndarray
    source: str
    """Where they come from, in words."""
    recorded: bool


def routed(model: Model, prompt: int, seed: int, trace: RoutingTrace | None = None) -> Routed:
    """Routing of a prompt and of tokens decoded before and after it. Raises `InputError`."""
    n = min(prompt, MOST_PROMPT)
    if trace is not None:
        return _recorded(model, n, trace)
    return _made(model, n, seed)


def unrouted() -> Routed:
    """A model without experts: a token is a token."""
    one = np.zeros((1, 0, 0), np.int16)
    return Routed(one, one, one, "", recorded=False)


def _recorded(model: Model, n: int, trace: RoutingTrace) -> Routed:
    model.check_fits(trace.meta)
    d = trace.dense.by_sequence()
    decode, prompt = (d.ids[d.phase == p] for p in (DECODE, PREFILL))
    words = f"recorded: {trace.path.name if trace.path else 'the trace given'}, "
    words += f"{len(decode):,} decode and {len(prompt):,} prompt tokens"
    if not len(decode):
        decode, words = prompt, words + "; prompt tokens stand in for decode"
    if not len(prompt):
        prompt, words = decode, words + "; decode tokens stand in for a prompt"
    asked = WARM + MEASURED
    if len(decode) < asked:
        words += "; repeated, since they are few"
    tokens = decode[np.arange(asked) % len(decode)]
    return Routed(
        tokens[:WARM], prompt[np.arange(n) % len(prompt)], tokens[WARM:], words, recorded=True
    )


def _made(model: Model, n: int, seed: int) -> Routed:
    family, words = family_of(model.architecture)
    layers = len(model.moe_layers)
    drawn = min(layers, DRAWN_LAYERS)
    made = family.generator(drawn, model.n_experts, model.top_k, seed)
    # What is decoded first belongs to another text.
    ids, _ = made.generate(np.array([0, WARM, WARM + n + MEASURED]), seed)
    home = np.arange(layers) * drawn // layers
    lap = np.arange(layers) - np.searchsorted(home, home)
    ids = ids[:, home] + (lap * max(model.n_experts // 3, 1))[None, :, None]
    ids = (ids % model.n_experts).astype(np.int16)
    return Routed(ids[:WARM], ids[WARM : WARM + n], ids[WARM + n :], words, recorded=False)
