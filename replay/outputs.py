"""Whether a run computed what the all-resident run computes, and left every byte as it was."""

from __future__ import annotations

import numpy as np

from replay.backend.base import Backend
from replay.bank import Bank
from replay.executor import Executor
from replay.places import Places, Slots
from uvmsim.runs.job import Job


def check_outputs(
    backend: Backend, job: Job, bank: Bank, places: Places, used: np.ndarray, executor: Executor
) -> list[str]:
    """Compare every output with the all-resident one and every expert's bytes with its own."""
    w = job.workload
    problems = []
    event = w.access_event
    want = bank.output_hashes(w.ids, w.counts, event)
    away = executor.decisions.on_cpu()
    if away is not None:
        want[away] = 0  # the GPU has no part in these
    if executor.on_cpu:
        problems += executor.on_cpu.problems(away)
    wrong = np.flatnonzero(backend.hashes(len(w.ids))[executor.hash_at] != want)
    if len(wrong):
        a = int(wrong[0])
        problems.append(
            f"{len(wrong)} of {len(w.ids)} expert outputs differ from the all-resident run, first "
            f"at step {int(w.event_step[event[a]])}, layer {int(w.ids[a]) // w.n_experts}, "
            f"expert {int(w.ids[a]) % w.n_experts}"
        )
    if isinstance(places, Slots):
        problems += _check_slots(backend, bank, places)
    lost = bank.corrupted(used)
    if lost:
        problems.append(f"the host's bytes of {len(lost)} experts changed, first expert {lost[0]}")
    return problems


def _check_slots(backend: Backend, bank: Bank, places: Slots) -> list[str]:
    held = [(s, e) for s, e in enumerate(places.holds) if e >= 0]
    bank.learn(np.array([e for _, e in held], np.int64))
    got = backend.checksums([places.ptrs[s] for s, _ in held], [bank.nbytes[e] for _, e in held])
    want = bank.sums[bank.image_of[[e for _, e in held]]]
    bad = np.flatnonzero(got != want)
    if not len(bad):
        return []
    slot, e = held[int(bad[0])]
    return [f"{len(bad)} of {len(held)} slots hold wrong bytes, first slot {slot} (expert {e})"]
