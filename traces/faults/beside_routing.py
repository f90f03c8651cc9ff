"""A routing trace and a fault trace of one run: do they fit together?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from traces.faults import FaultTrace
from traces.routing import RoutingTrace
from traces.routing.check import Finding


def check_beside(r: RoutingTrace, f: FaultTrace) -> Iterator[Finding]:
    """What speaks against both being of one run, on one time axis (`uvmsim capture llama-cpp
    --faults`)."""
    said = r.meta.extra.get("time")
    said = said if isinstance(said, dict) else {}
    origin = said.get("origin_ns")
    if r.time_ns is None or r.duration_ns is None or origin is None:
        yield Finding(
            "no-times",
            "error",
            r.n_rows,
            "the routing trace does not say when its steps ran",
            "record both at once: uvmsim capture llama-cpp --faults",
        )
        return
    if origin != f.meta.get("origin_ns") or said.get("clock") not in ("CUPTI", "driver"):
        yield Finding(
            "other-run",
            "error",
            1,
            "the traces' times do not begin at the same moment: they are of different runs",
            f"the fault trace of this run was called {said.get('faults', 'otherwise')}",
        )
        return
    drift = (f.meta.get("recording") or {}).get("clock_drift_ns")
    shortest = int(np.median(r.duration_ns))
    if drift is not None and abs(drift) > shortest // 2:
        yield Finding(
            "clock-drift",
            "warning",
            1,
            f"the two clocks moved by {drift / 1e6:.3f} ms against each other, a step takes "
            f"{shortest / 1e6:.3f} ms",
            "events at the end of the run may be put to the wrong step",
        )
    inside = int(in_steps(r, f.numbers("time_ns")).sum())
    if inside == 0:
        yield Finding(
            "no-event-in-a-step",
            "warning",
            f.n_rows,
            "no event lies within a step: all are of loading the model, or between",
            "right where all that the steps touched was resident",
        )
    else:
        yield Finding(
            "outside-steps",
            "note",
            f.n_rows - inside,
            f"events outside any step; {inside:,} of {f.n_rows:,} lie within one",
            "loading the model, sampling, and the capture itself touch memory too",
        )


def in_steps(r: RoutingTrace, time_ns: np.ndarray) -> np.ndarray:
    """bool [n]: which moments lie within a step of a trace with times."""
    assert r.time_ns is not None and r.duration_ns is not None
    first = np.flatnonzero(np.diff(r.step, prepend=r.step[:1] - 1))
    start, end = r.time_ns[first], r.time_ns[first] + r.duration_ns[first]
    at = np.searchsorted(start, time_ns, side="right") - 1
    return (at >= 0) & (time_ns < end[np.maximum(at, 0)])
