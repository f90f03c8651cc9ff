"""A sweep from Python: a scenario, and some of its fields as axes."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import ValidationError

from traces.errors import InputError
from uvmsim.policies.base import Policy
from uvmsim.policies.registry import name_of
from uvmsim.policies.user_files import OURS
from uvmsim.studies.answer import Answer
from uvmsim.studies.decodings import refuse
from uvmsim.studies.resolve import load_trace
from uvmsim.studies.scenario import Progress, Scenario, field_as_kept, scenario_of
from uvmsim.studies.sweep.config import SweepConfig, check
from uvmsim.studies.sweep.execute import Summary
from uvmsim.studies.sweep.execute import sweep as run

SINGULAR = {"mechanisms": "mechanism", "policies": "policy"}
"""A scenario's fields that are called otherwise in a sweep's rows."""


@dataclass(frozen=True, repr=False)
class Sweep(Answer):
    """The rows of a sweep, in the order of its grid, and what they came to."""

    printer: ClassVar[str] = "uvmsim.report.sweep_table:print_sweep"

    scenario: Scenario
    axes: dict[str, list[Any]]
    summary: Summary
    cells: pa.Table
    """One row a cell: `uvmsim.studies.sweep.rows.COLUMNS`."""

    @property
    def outcomes(self) -> Sequence[dict[str, Any]]:
        """One a cell, as a flat row."""
        return self.cells.to_pylist()

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a cell."""
        return self.cells.to_pylist()

    def __len__(self) -> int:
        return self.cells.num_rows

    def table(self) -> pa.Table:
        """One row a cell: `uvmsim.studies.sweep.rows.COLUMNS`."""
        return self.cells


def sweep(
    scenario: Scenario | Any = None,
    axes: Mapping[str, Any] | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    jobs: int = 1,
    dask: str | None = None,
    retry: bool = False,
    progress: Progress | None = None,
) -> Sweep:
    """Run every combination of the values in ``axes``, by field of a `Scenario`; the other fields are
    as in ``scenario`` (or a trace alone).

    A value may be a list, or a range: ``{"from": "4GiB", "to": "14GiB", "steps": 41}``. ``folder``
    keeps the rows, as `uvmsim sweep` does: what is there already is not run again. ``jobs``: processes;
    above 1 a script needs an ``if __name__ == "__main__"`` around its work. ``dask``: a scheduler's
    address. ``retry``: cells that failed are run again. Raises `InputError`.
    """
    s = scenario_of(scenario)
    if s.engine != "fast":
        raise InputError(f"{s.engine}: a sweep's clock is the compiled one", argument="engine")
    for name in ("state", "state_out"):
        if getattr(s, name) is not None:
            raise InputError(": a sweep's policies begin from nothing", argument=name)
    refuse(s, "a sweep")
    config = config_of(s, axes or {})
    with tempfile.TemporaryDirectory(prefix="uvmsim-") as temporary:
        place = Path(temporary) / "rows.sweep" if folder is None else Path(folder)
        done = run(config, place, jobs=jobs, dask=dask, retry=retry, progress=progress)
        from uvmsim.studies.sweep.store import read

        table = read(place)
    keys = table["cell"].to_pylist()
    order = {key: i for i, key in enumerate(done.order)}
    mine = sorted((order[key], i) for i, key in enumerate(keys) if key in order)
    cells = table.take([i for _, i in mine])
    names = {SINGULAR.get(k, k) for k in axes or {}}
    return Sweep(s, {k: getattr(config, k) for k in sorted(names)}, done, cells)


def config_of(s: Scenario, axes: Mapping[str, Any]) -> SweepConfig:
    """The sweep's config: each field of the scenario is an axis of what it holds."""
    given: dict[str, Any] = {}
    for name in s.__dataclass_fields__:
        key = SINGULAR.get(name, name)
        raw = next((axes[k] for k in (name, key) if k in axes), None)
        if name == "engine":
            if raw is not None:
                raise InputError(": a sweep's clock is the compiled one", argument="engine")
            continue
        if isinstance(raw, Mapping):
            given[key] = dict(raw)
            continue
        values = getattr(s, name) if raw is None else field_as_kept(name, raw)
        told = [_told(name, x) for x in (values if isinstance(values, list | tuple) else [values])]
        if any(x is not None for x in told):
            given[key] = told
    unknown = set(axes) - set(s.__dataclass_fields__) - set(SINGULAR.values())
    if unknown:
        raise InputError(f": no field of a Scenario: {', '.join(sorted(unknown))}", argument="axes")
    try:
        config = SweepConfig.model_validate(given)
    except ValidationError as err:
        fault = err.errors()[0]
        what = fault["msg"].removeprefix("Value error, ")
        raise InputError(f": {what}", argument=str(fault["loc"][0])) from None
    check(config)
    return config


def _told(name: str, value: Any) -> Any:
    """A value as a sweep's config names it: cells travel to other processes as text."""
    if value is None or isinstance(value, str | int | float):
        return str(Path(value).resolve()) if _is_trace(name) and isinstance(value, str) else value
    if _is_trace(name):
        return _file_of(name, value)
    if name == "policies":
        return named(value)
    raise InputError(f"{value.name}: a sweep takes names and files", argument=name)


def _is_trace(name: str) -> bool:
    return name in ("trace", "profile")


def _file_of(name: str, trace: Any) -> str:
    """The file that a trace in memory is all of."""
    if trace.path is None or load_trace(str(trace.path)).sha256 != trace.sha256:
        raise InputError(
            ": this trace is in memory alone, and a sweep opens files; trace.save('mine.arrow') first",
            argument=name,
        )
    return str(Path(trace.path).resolve())


def named(policy: Any) -> str:
    """A policy as text: by its name, or by file and class."""
    if isinstance(policy, tuple):
        return "+".join(x if isinstance(x, str) else named(x) for x in policy)
    if not isinstance(policy, Policy) and not isinstance(policy, type):
        return str(policy.name)
    cls = policy if isinstance(policy, type) else type(policy)
    made = policy() if isinstance(policy, type) else policy
    if cls.__module__.partition(".")[0] in OURS:
        return name_of(made)
    file = inspect.getsourcefile(cls) if cls.__module__ != "__main__" else None
    if file is None or not file.endswith(".py") or "." in cls.__qualname__:
        raise InputError(
            f"{cls.__name__}: a sweep's processes import policies; write the class to a file and give "
            f"'./mine.py:{cls.__name__}'",
            argument="policies",
        )
    parameters = name_of(made).removeprefix(made.name or cls.__name__)
    return f"{file}:{cls.__name__}{parameters}"
