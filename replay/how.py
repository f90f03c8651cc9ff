"""What a replay needs to know beyond the job."""

from __future__ import annotations

import os
from dataclasses import dataclass

from replay.bank import DEFAULT_LIMIT


@dataclass(frozen=True)
class How:
    """What a replay needs to know beyond the job."""

    dtype: str | None = None
    """Weights' type; None: as the model is stored, else fp16."""
    split: int = 1
    """Copies an expert is split into."""
    ahead: int = 2
    detail: bool = True
    """See `replay.executor.Pace`."""
    bank_limit: int = DEFAULT_LIMIT
    """Bytes of the host bank; above it experts share images."""
    managed_on_demand: bool = False
    """managed: a miss is prefetched to the device, not faulted in."""
    advice: str | None = None
    """managed: advice for the whole bank, one of `replay.backend.base.ADVICE`."""
    tier_file: str | os.PathLike[str] | None = None
    """Folder on the disk that a job's ``tier`` stands for: the experts' file is written there."""
    tier_bytes: int | None = None
    """Most bytes of that file, above which experts share images; None: 30 GB."""
    tier_threads: int | None = None
    """Threads that read it, a piece of 1 MiB at a time; None: 16."""
    managed_at_own_risk: bool = False
    """managed: allocate more managed memory than is known to be safe."""
