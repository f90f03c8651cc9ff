"""uvmsim: which bytes of a Mixture-of-Experts model stay on the GPU, go, or come early.

A `Scenario` is what is asked: a trace, a model, a machine, policies. Studies answer it: `advise`,
`compare`, `mrc`, `search`, `serve`, `sweep`, `replay`, `llama_bench`, `microbench`. docs/python.md has
a worked example.

Names are loaded when first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from uvmsim.version import __version__

if TYPE_CHECKING:
    from traces.errors import InputError as InputError
    from traces.routing import RoutingTrace as RoutingTrace
    from traces.routing import routing as routing
    from uvmsim.experts.cache_misses import cache_misses as cache_misses
    from uvmsim.studies.advise.study import advise as advise
    from uvmsim.studies.compare import compare as compare
    from uvmsim.studies.llamabench.table import llama_bench as llama_bench
    from uvmsim.studies.microbench.table import microbench as microbench
    from uvmsim.studies.mrc.study import mrc as mrc
    from uvmsim.studies.resolve import open_trace as open_trace
    from uvmsim.studies.scenario import Scenario as Scenario
    from uvmsim.studies.search.study import search as search
    from uvmsim.studies.serve.study import serve as serve
    from uvmsim.studies.sweep.study import sweep as sweep

    replay: Any
    validate: Any

_HOME = {
    "InputError": "traces.errors",
    "RoutingTrace": "traces.routing",
    "Scenario": "uvmsim.studies.scenario",
    "advise": "uvmsim.studies.advise.study",
    "cache_misses": "uvmsim.experts.cache_misses",
    "compare": "uvmsim.studies.compare",
    "llama_bench": "uvmsim.studies.llamabench.table",
    "microbench": "uvmsim.studies.microbench.table",
    "mrc": "uvmsim.studies.mrc.study",
    "open_trace": "uvmsim.studies.resolve",
    "routing": "traces.routing",
    "search": "uvmsim.studies.search.study",
    "serve": "uvmsim.studies.serve.study",
    "sweep": "uvmsim.studies.sweep.study",
}
_ADDED = ("replay", "validate")
"""Studies of packages that build on this one: found as entry points, as commands are."""

__all__ = ["__version__", *_ADDED, *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _ADDED:
        from importlib.metadata import entry_points

        for found in entry_points(group="uvmsim.studies", name=name):
            return found.load()
        raise AttributeError(
            f"uvmsim.{name} is not registered; install uvmsim again (pip install -e .)"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
