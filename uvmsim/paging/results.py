"""What a run of the paging driver returns, in the words of `uvmsim.runs.outcome`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from traces.files.schema import DECODE, PREFILL
from uvmsim.paging import tables as t
from uvmsim.paging.drive import PagedRun, Setup
from uvmsim.paging.kernels import Space
from uvmsim.paging.layout import PAGE
from uvmsim.runs.outcome import Result, phase_measures, share, token_latency


@dataclass
class PagedResult(Result):
    """One run; ``paged`` and ``setup`` are set."""

    paged: PagedRun | None = None
    setup: Setup | None = None
    space: Space | None = None

    @property
    def policy(self) -> str | None:
        return self.job.page_policy.name if self.job.page_policy else "default"

    @property
    def step_end(self) -> np.ndarray:
        """int64 [S]: when each forward pass ended, ns."""
        assert self.paged is not None and self.setup is not None
        end = np.zeros(len(self.setup.phase), np.int64)
        np.maximum.at(end, self.setup.kernels.step, self.paged.ends)
        return np.maximum.accumulate(end)

    @property
    def step_copied(self) -> np.ndarray:
        """int64 [S]: bytes copied explicitly, beside the paging (`phases.COPY_USED`)."""
        assert self.setup is not None
        copied = np.zeros(len(self.setup.phase), np.int64)
        np.add.at(copied, self.setup.kernels.step, self.setup.kernels.copy_bytes)
        return copied

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; the keys of `uvmsim.runs.outcome.measures` where they have a meaning here,
        and the driver's counters."""
        assert self.paged is not None and self.setup is not None
        job, counts = self.job, self.paged.counts
        w, end = job.workload, self.step_end
        duration = np.diff(end, prepend=0)
        seconds = float(end[-1]) / 1e9
        total, copied = counts.sum(axis=0), self.step_copied
        compute = float(self.setup.kernels.compute_ns.sum()) / 1e9
        tokens = int(w.step_tokens.sum())
        return {
            "policy": self.policy,
            "mechanism": self.mechanism,
            "model": job.model.name,
            "hardware": job.hardware.name,
            "vram_bytes": job.hardware.vram_bytes,
            "seed": job.seed,
            "threshold": job.threshold,
            "status": "ok",
            "chunks": self.setup.n_chunks,
            **driver_counters(total, int(copied.sum())),
            "time_s": seconds,
            "tokens": tokens,
            "tokens_per_s": tokens / seconds if seconds else None,
            **phase_measures("prefill", PREFILL, job, duration),
            **phase_measures("decode", DECODE, job, duration),
            "token_latency_ms": token_latency(job, duration),
            "time_split_s": {"compute": min(compute, seconds), "paging": max(seconds - compute, 0)},
            "by_phase": {
                name: driver_counters(
                    counts[w.step_phase == phase].sum(axis=0),
                    int(copied[w.step_phase == phase].sum()),
                )
                for name, phase in (("prefill", PREFILL), ("decode", DECODE))
            },
            "notes": self.paged.notes,
        }


def driver_counters(row: np.ndarray, copied: int = 0) -> dict[str, Any]:
    """The driver's counters by name; ``row`` int64 [COUNTERS], ``copied`` bytes beside the paging."""
    n = row.tolist()
    return {
        "fault_batches": n[t.BATCHES],
        "faulted_pages": n[t.FAULTS],
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
