"""A policy asked a whole stream, compiled or as plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core.errors import NumbaError

from traces.errors import InputError
from uvmsim.core.bind import bind, explain
from uvmsim.paging import hooks, tables
from uvmsim.policies.pages.base import PAGES, PageContext, PagePolicy
from uvmsim.policies.pages.registry import HOOKS
from uvmsim.studies.decisions.play import ANSWER, play
from uvmsim.studies.decisions.stream import PROCESSES, Stream

N_BLOCKS, N_CHUNKS = 96, 32
LAST_PAGES = 100
BOUNDARIES = np.arange(0, N_BLOCKS + 1, 8, dtype=np.int64)
"""Layers of 8 blocks, for policies that know a model's layout."""
REQUESTS = 1024


def ask(policy: PagePolicy, q: Stream, seed: int = 0, compiled: bool = True) -> np.ndarray:
    """The answers, int64 [N, ANSWER] as `play` has them. Raises `InputError`."""
    n_pages = np.full(N_BLOCKS, PAGES, np.int32)
    n_pages[-1] = LAST_PAGES
    d = tables.new_driver(n_pages, np.arange(N_BLOCKS) * PROCESSES // N_BLOCKS, N_CHUNKS, REQUESTS)
    state = policy.state(PageContext(N_BLOCKS, N_CHUNKS, PROCESSES, BOUNDARIES, seed))
    swaps: dict[Any, Any] = {getattr(hooks, h): getattr(type(policy), h) for h in HOOKS}
    region, answers = np.zeros(4, np.int64), np.zeros((len(q.kind), ANSWER), np.int64)
    bound = bind(play, swaps, {}, states=(state, d, q), compiled=compiled)
    try:
        with np.errstate(all="ignore"):
            bound.run(state, d, q, region, answers)
    except NumbaError as err:
        raise InputError(f"policy {policy.name or type(policy).__name__}: {explain(err)}") from err
    except Exception as err:
        raise InputError(f"policy {type(policy).__name__}: {policy.explain(state, err)}") from err
    return answers
