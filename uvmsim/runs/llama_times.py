"""A job's times kernel by kernel, where its engine is llama.cpp with known constants and the model's
graph is known; None otherwise, and the coarse constants of the engine hold."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from traces.errors import InputError
from uvmsim.machine.engine_terms import Terms
from uvmsim.machine.llamacpp.config import LlamaConfig
from uvmsim.machine.llamacpp.model_file import LlamaModel
from uvmsim.machine.llamacpp.timing import Times, Variant, step_shape, times
from uvmsim.machine.model import Model
from uvmsim.runs.job import Job
from uvmsim.workload import Workload


@lru_cache(maxsize=32)
def _load(described_by: str) -> LlamaModel:
    return LlamaModel.load(described_by)


def llama_model(model: Model) -> LlamaModel | None:
    """The model as llama.cpp sees it; None where the file is not known, or was scaled."""
    return _load(model.described_by) if model.described_by else None


def detailed(
    job: Job, *, ncmoe: int = 0, slots: int = 0, pinned: bool = True, variant: Variant | None = None
) -> Times | None:
    """Times of a job with the experts of the first ``ncmoe`` blocks in host memory and an expert cache
    of ``slots``. Raises `InputError` for architectures whose graph is not known."""
    terms = job.hardware.engine.terms
    model = None if terms is None else llama_model(job.model)
    if terms is None or model is None:
        return None
    config = _config(job, terms, ncmoe, slots, pinned)
    ns = terms.on(job.hardware, job.model.name)
    return times(job.workload, model, config, ns, variant=variant)


def _config(job: Job, terms: Terms, ncmoe: int, slots: int, pinned: bool) -> LlamaConfig:
    """llama.cpp's flags for a job: context and micro-batch as its longest steps need them."""
    shape = step_shape(job.workload)
    widest = int(shape.n_tokens.max(initial=1))
    mib = 0
    if slots:
        mib = -(-max(job.model.expert_bytes) * (slots + 1) // (1 << 20)) + 1
    return LlamaConfig(
        n_cpu_moe=ncmoe, n_ctx=int(shape.n_kv.max(initial=256)), n_batch=max(2048, widest),
        n_ubatch=max(512, widest), moe_cache_mib=mib, mmap=not pinned,
        gpu=terms.gpu, flash_kernels=terms.flash_attention,
    )  # fmt: skip


def copy_ns(
    job: Job, found: Times, nbytes: np.ndarray, event: np.ndarray, *, pinned: bool, upload: bool
) -> np.ndarray:
    """int64 [C]: llama.cpp's copies of experts to the GPU, tensor by tensor on the compute stream.

    ``event``: the event of each. ``upload``: into the expert cache, one copy a matrix; otherwise
    neighbouring experts of an event go together.
    """
    terms = job.hardware.engine.terms
    assert terms is not None
    ns = terms.on(job.hardware, job.model.name)
    link = ns.get("pinned" if pinned else "pageable")
    if not link:
        raise InputError(
            f"{job.hardware.engine.name}: has no constant for copies from "
            f"{'page-locked' if pinned else 'mapped'} memory; calibrate it on a machine with a GPU"
        )
    if upload:
        fixed = found.banks[event] * ns.get("upload")
        return np.maximum(np.rint(nbytes * link + fixed), 1).astype(np.int64)
    matrices = np.maximum(found.matrices[event], 1)
    share = expert_runs(job.workload) / np.maximum(np.diff(job.workload.event_lo), 1)
    fixed = matrices * share[event] * ns.get("copy")
    return np.maximum(np.rint(nbytes * link + fixed), 1).astype(np.int64)


def expert_runs(w: Workload) -> np.ndarray:
    """int64 [E]: runs of neighbouring experts an event uses."""
    event = w.access_event
    order = np.lexsort((w.ids, event))
    ids, of = w.ids[order], event[order]
    starts = np.ones(len(ids), bool)
    starts[1:] = (np.diff(ids) != 1) | (np.diff(of) != 0)
    return np.bincount(of[starts], minlength=w.n_events)
