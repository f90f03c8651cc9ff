"""Traces from paths and URLs."""

from __future__ import annotations

import functools
from pathlib import Path

from traces.errors import InputError
from traces.routing import RoutingTrace
from uvmsim.studies.resolve import load_trace
from uvmsim.studies.sweep.cells import TraceFacts
from uvmsim.studies.sweep.config import SweepConfig, is_url


def open_trace(path: str | None, limit: int | None = None) -> RoutingTrace:
    """The trace at a path (memory-mapped) or URL (fetched once a process); None: the bundled one."""
    return load_trace(_fetched(path) if path is not None and is_url(path) else path, limit)


@functools.cache
def _fetched(url: str) -> str:
    """A local copy of what ``url`` names; it lives as long as the process."""
    try:
        import fsspec
    except ImportError:
        raise InputError(f"{url}: reading URLs needs fsspec; pip install 'uvmsim[dask]'") from None
    try:
        # The suffix stays: a trace is told from other files by its content, but errors name it.
        return str(fsspec.open_local(f"simplecache::{url}", simplecache={"same_names": True}))
    except ImportError as err:
        raise InputError(f"{url}: {err}") from None
    except Exception as err:
        why = " ".join(str(err).split()) or type(err).__name__
        raise InputError(f"{url}: cannot be read ({why})") from None


def facts_of(path: str | None) -> TraceFacts:
    """The facts of the trace at ``path``; reads all of it once, for its hash."""
    return TraceFacts.of(path, open_trace(path))


def traces_of(config: SweepConfig) -> list[str | None]:
    """Every trace and profile a config names, once."""
    profiles = [p for p in config.profile if p is not None]
    return list(dict.fromkeys([*config.trace, *profiles]))


def same_trace(facts: TraceFacts, trace: RoutingTrace) -> None:
    """`InputError` where the file is not the one the cells were made for."""
    if trace.sha256 != facts.sha256:
        where = facts.path or Path(str(trace.path)).name
        raise InputError(f"{where}: changed while the sweep ran, or differs between machines")
