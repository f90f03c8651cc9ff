"""How long the GPU's own work takes: rooflines over bytes and flops, as int64 nanoseconds.

Everything a clock adds is waiting; every duration is fixed here, so all clocks agree on it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from traces.errors import InputError
from traces.jit import compiled
from uvmsim.core.jit import kernel_part
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.workload import Workload


def to_ns(seconds: np.ndarray | float) -> np.ndarray:
    """Rounded to whole nanoseconds, as `uvmsim.machine.quantities.duration_ns` does."""
    return np.rint(np.asarray(seconds, np.float64) * 1e9).astype(np.int64)


def roofline_s(
    hw: Hardware, nbytes: Any, flops: Any, bytes_per_s: float | None = None
) -> np.ndarray:
    """Seconds to read ``nbytes`` and do ``flops``, whichever takes longer (Williams et al. 2009).

    ``bytes_per_s`` replaces the device memory's speed, for weights that lie elsewhere.
    """
    reach = hw.reach
    return np.maximum(
        nbytes / (bytes_per_s or reach.expert_bytes_per_s), flops / reach.compute_flops
    )


def dense_times(
    w: Workload, model: Model, hw: Hardware, bytes_per_s: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Work outside the routed experts; ``bytes_per_s`` as in `expert_times`.

    Returns int64 [E], the blocks up to and including an event's attention, charged to the first
    event of a (step, layer), and int64 [S], what follows a step's last MoE layer.
    """
    tokens = w.step_tokens.astype(np.float64)
    own = hw.reach.dense_bytes_per_s
    bytes_per_s = bytes_per_s or own
    kv = w.step_kv * (model.kv_bytes_per_token / model.n_layers)
    before = np.zeros((w.n_layers, w.n_steps), np.int64)
    tail = np.zeros(w.n_steps, np.int64)
    moe = list(model.moe_layers)
    for block in range(model.n_layers):
        flops = 2.0 * model.dense_params[block] * tokens
        seconds = roofline_s(hw, model.dense_bytes[block], flops, bytes_per_s)
        seconds += kv / own
        ns = to_ns(seconds) + hw.engine.dense_launch_ns
        home = int(np.searchsorted(moe, block))
        if home < len(moe):
            before[home] += ns
        else:
            tail += ns
    head = roofline_s(hw, np.float64(model.output_bytes), 2.0 * model.output_params, bytes_per_s)
    tail += to_ns(head)
    tail += hw.engine.dense_launch_ns
    pre = np.where(w.event_first, before[w.event_layer, w.event_step], 0)
    return pre, tail


def expert_times(
    w: Workload, model: Model, hw: Hardware, wave_hi: np.ndarray, bytes_per_s: float | None = None,
    *, without: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """int64 [W]: computing the experts of each wave of accesses; empty waves take no time.

    ``bytes_per_s`` replaces the device memory's speed (zero-copy reads); ``without`` (bool [A]):
    accesses that something else computes.
    """
    engine, reach = hw.engine, hw.reach
    ids, counts = w.ids, w.counts
    if without is not None:
        wave_hi, ids, counts = kept_of(wave_hi, without, ids, counts)
    return _wave_ns(
        wave_hi, ids, counts, w.n_experts,
        np.asarray(model.expert_bytes, np.float64), np.asarray(model.expert_params, np.float64),
        float(bytes_per_s or reach.expert_bytes_per_s), float(reach.compute_flops),
        engine.expert_launch_ns, engine.expert_tile_tokens or 1, engine.row_kernel_tokens * w.top_k,
    )  # fmt: skip


def kept_of(
    wave_hi: np.ndarray, without: np.ndarray, *arrays: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Waves and arrays [A] without some of the accesses (bool [A])."""
    kept = ~without
    before = np.concatenate(([0], np.cumsum(kept)))
    return before[wave_hi], *(a[kept] for a in arrays)


@compiled(nogil=True)
def _wave_ns(
    wave_hi, ids, counts, n_experts, nbytes, params, read_rate, flop_rate, launch, tile, rows
):  # fmt: skip
    """`roofline_s` of each wave's experts and one launch; one pass, since every run pays for it.
    Beyond ``rows`` token-expert pairs, tokens are computed in tiles of ``tile`` an expert."""
    out = np.empty(len(wave_hi), np.int64)
    a = 0
    for w in range(len(wave_hi)):
        end = wave_hi[w]
        layer = ids[a] // n_experts if a < end else 0  # a wave is of one layer
        out[w] = wave_ns(
            counts, a, end, nbytes[layer], params[layer], read_rate, flop_rate, launch, tile, rows
        )
        a = end
    return out


@kernel_part
def wave_ns(counts, a, end, nbytes, params, read_rate, flop_rate, launch, tile, rows):
    """ns of the experts ``a`` .. ``end - 1`` of one layer, ``nbytes`` and ``params`` each, and one
    launch; none take none."""
    if a == end:
        return np.int64(0)
    tokens = np.int64(0)
    tiled = np.int64(0)
    for i in range(a, end):
        tokens += counts[i]
        tiled += (counts[i] + tile - 1) // tile * tile
    if tokens > rows:
        tokens = tiled
    seconds = max((end - a) * nbytes / read_rate, 2.0 * params * tokens / flop_rate)
    return np.int64(np.rint(seconds * 1e9)) + launch


def copy_times(
    nbytes: np.ndarray, hw: Hardware, direction: str, pinned: bool, both: bool
) -> np.ndarray:
    """int64 [C]: time on the link of copies of ``nbytes``; ``both`` = the other way is busy too."""
    speed = hw.link_bytes_per_s(direction, pinned=pinned, both_ways=both)
    return np.maximum(to_ns(nbytes / speed) + hw.copy_latency_ns, 1)


def write_back_times(
    nbytes: np.ndarray, hw: Hardware, pinned: bool, both: bool, fresh: bool
) -> np.ndarray:
    """int64 [C]: `copy_times` to the host; ``fresh``: into memory that is allocated and pinned first.

    Raises `InputError` where the machine's description does not know what that takes.
    """
    ns = copy_times(nbytes, hw, "d2h", pinned, both)
    if not fresh:
        return ns
    if not pinned:
        raise InputError(
            "write_back_alloc is about pinned memory; the pageable rates include allocation"
        )
    if hw.pinned_alloc_bytes_per_s is None:
        raise InputError(
            f"{hw.name}: pinned_alloc_bytes_per_s is not known; add it to the hardware description"
        )
    return ns + to_ns(nbytes / hw.pinned_alloc_bytes_per_s)
