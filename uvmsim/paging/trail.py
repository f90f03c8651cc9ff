"""What the driver left behind of a run, in the words of `uvmsim.runs.outcome`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from traces.files.schema import DECODE, PREFILL
from uvmsim.paging import tables as t
from uvmsim.paging.drive import PagedRun, Setup
from uvmsim.paging.kernels import Space
from uvmsim.paging.layout import PAGE
from uvmsim.runs.outcome import Outcome, share


@dataclass(frozen=True)
class Paged:
    """A run of the driver, what it ran on, and the address space of its process."""

    run: PagedRun
    setup: Setup
    space: Space

    def step_ns(self) -> np.ndarray:
        """int64 [S]: duration of each forward pass."""
        end = np.zeros(len(self.setup.phase), np.int64)
        np.maximum.at(end, self.setup.kernels.step, self.run.ends)
        return np.diff(np.maximum.accumulate(end), prepend=0)

    def copied(self) -> np.ndarray:
        """int64 [S]: bytes copied explicitly, beside the paging (`phases.COPY_USED`)."""
        copied = np.zeros(len(self.setup.phase), np.int64)
        np.add.at(copied, self.setup.kernels.step, self.setup.kernels.copy_bytes)
        return copied

    def measures(self, run: Outcome) -> dict[str, Any]:
        """The keys of other runs where they have a meaning here, and the driver's counters."""
        counts, copied, phase = self.run.counts, self.copied(), run.job.workload.step_phase
        speeds = run.speeds()
        del speeds["ttft_s"]
        seconds = speeds["time_s"]
        compute = float(self.setup.kernels.compute_ns.sum()) / 1e9
        return {
            "chunks": self.setup.n_chunks,
            **driver_counters(counts.sum(axis=0), int(copied.sum())),
            **speeds,
            "time_split_s": {"compute": min(compute, seconds), "paging": max(seconds - compute, 0)},
            "by_phase": {
                name: driver_counters(
                    counts[phase == number].sum(axis=0), int(copied[phase == number].sum())
                )
                for name, number in (("prefill", PREFILL), ("decode", DECODE))
            },
            "notes": self.run.notes,
        }

    def counted(self, steps: np.ndarray) -> dict[str, Any]:
        """The driver's counters of some forward passes (bool [S])."""
        return driver_counters(self.run.counts[steps].sum(axis=0), int(self.copied()[steps].sum()))


def driver_counters(row: np.ndarray, copied: int = 0) -> dict[str, Any]:
    """The driver's counters by name; ``row`` int64 [COUNTERS], ``copied`` bytes beside the paging."""
    n = row.tolist()
    return {
        "fault_batches": n[t.BATCHES],
        "faulted_pages": n[t.FAULTS],
        "fault_entries": n[t.ENTRIES],
        "services": n[t.SERVICES],
        "chunks_in": n[t.ACTIVATED],
        "chunks_out": n[t.EVICTED],
        "evictions": n[t.EVICTED],
        "services_per_chunk": share(n[t.SERVICES], n[t.ACTIVATED]),
        "bytes_h2d": n[t.PAGES_IN] * PAGE + copied,
        "bytes_d2h": n[t.PAGES_OUT] * PAGE,
        "bytes_zero_copy": n[t.REMOTE] * PAGE,
        "copies": n[t.COPIES],
        "blocks_migrated_ahead": n[t.MIGRATED],
    }
