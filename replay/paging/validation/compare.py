"""What the driver did in a cold run, and how far off the prediction was."""

from __future__ import annotations

from typing import Any

import numpy as np

from replay.paging.counts import batch_rows, counts, inward, page_of, piece_histogram, summary
from replay.paging.device import Seen
from replay.paging.microbench import piece_times
from replay.paging.service_check import check
from replay.paging.touches import PAGE, PAGES
from replay.paging.tree_check import Blocks

COHERENCE, PREFETCH = 2, 3


def observed_run(
    seen: Seen, n_pages: dict[int, int] | None = None, threshold: int = 51,
    came: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The driver's side, in the words of `replay.paging.validation.predict.described`, and more.
    ``n_pages``: of blocks (by number) that are not whole; ``came``: bytes that are on the GPU now and
    were not before, by the page table.

    Bytes by cause are those of the record, and for services of which the record has nothing those that
    the tree brings for their faults; ``recorded_bytes_in`` has the record's alone."""
    c, m = counts(seen), inward(seen)
    size, cause = m["bytes"].astype(np.int64), m["cause"]
    checked = check(seen, Blocks(n_pages), threshold)
    demand, tree = checked.missing.pages.tolist()
    recorded = int(size.sum())
    page = page_of(seen.faults["address"])
    b = batch_rows(seen)
    handler = (b["replay_ns"] - b["first_ns"])[b["replay_ns"] > 0]
    return {
        "bytes_in": recorded + (demand + tree) * PAGE if came is None else came,
        "demand_bytes": int(size[cause == COHERENCE].sum()) + demand * PAGE,
        "tree_bytes": int(size[cause == PREFETCH].sum()) + tree * PAGE,
        "other_bytes": int(size[(cause != COHERENCE) & (cause != PREFETCH)].sum()),
        "recorded_bytes_in": recorded, "unrecorded_bytes": (demand + tree) * PAGE,
        "batches": c.batches, "services": c.services, "entries": c.entries,
        "faulted_pages": c.pages, "pieces": c.pieces, "operations": checked.operations,
        "blocks": len(np.unique(page // PAGES)),
        "histogram": piece_histogram(seen), "piece_ns": piece_times(seen),
        "given_faults": checked.to_json(),
        "entries_of_batch": summary(b["entries"]), "services_of_batch": summary(b["services"]),
        "batch_gpu_ns": summary(b["gpu_ns"][b["gpu_ns"] > 0]), "handler_ns": summary(handler),
        "handler_total_ns": int(handler.sum()), "lost": seen.dropped, "others": seen.others,
    }  # fmt: skip


def by_step(seen: Seen, starts: np.ndarray, origin_ns: int = 0) -> list[int]:
    """Bytes that moved in during each step; ``starts`` int64 [S] on the driver's clock less
    ``origin_ns``."""
    m = inward(seen)
    at = np.searchsorted(starts, m["begin"].astype(np.int64) - origin_ns, side="right") - 1
    made = np.bincount(np.maximum(at, 0), m["bytes"].astype(np.float64), len(starts))
    return [int(x) for x in made]


def errors(
    predicted: dict[str, Any], driver: dict[str, Any], step_ns: list[list[int]]
) -> dict[str, Any]:
    """Relative errors of a prediction: of each count; ``time`` of the whole run (median of runs);
    ``curve``, the worst of the time until the end of any step, and of those after the first fifth."""
    made: dict[str, Any] = {
        k: predicted[k] / driver[k] - 1
        for k in ("bytes_in", "demand_bytes", "tree_bytes", "batches", "services", "operations")
        if driver.get(k)
    }
    steps = np.median(np.array(step_ns, np.float64), axis=0)
    model = np.array(predicted["step_ns"], np.float64)
    made["time"] = float(model.sum() / steps.sum() - 1)
    n = min(len(steps), len(model))
    curve = np.cumsum(model[:n]) / np.cumsum(steps[:n]) - 1
    made["curve"] = float(np.abs(curve).max())
    made["curve_after_first_fifth"] = float(np.abs(curve[n // 5 :]).max())
    return made


def exact(driver: dict[str, Any]) -> dict[str, Any]:
    """Whether the tree brings, given the order of the faults, what the driver moved: relative error of
    bytes by cause and of pieces over the services that were recorded, and the share of those that are
    not the same page by page."""
    given = driver["given_faults"]
    model, real = given["model"], given["driver"]
    made = {}
    for cause in ("demand", "prefetch"):
        for key in ("bytes", "pieces"):
            want = real[cause][key]
            made[f"{cause} {key}"] = model[cause][key] / want - 1 if want else None
    if given["recorded"]:
        made["services that differ"] = 1 - given["equal"] / given["recorded"]
    return made
