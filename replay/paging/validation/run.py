"""The whole validation: predict every run, write that down, let the driver decide, then compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from replay.paging.validation import engine as engine_runs
from replay.paging.validation import llama as llama_runs
from replay.paging.validation import predict
from replay.paging.validation.compare import by_step, errors, exact, observed_run
from replay.paging.validation.config import EngineRun, LlamaRun, PagingConfig, load
from replay.paging.validation.report import to_markdown
from replay.paging.validation.traced import partial_blocks, seen_of
from replay.records import (
    MEASUREMENTS,
    PREDICTIONS,
    cleared,
    described,
    now,
    report_folder,
    to_predict_from,
    write_json,
    write_report,
)
from traces.errors import InputError
from traces.faults import open_faults
from uvmsim.version import __version__

Progress = Callable[[int, int, str], None]
Cell = EngineRun | LlamaRun


def validate(
    config: PagingConfig | str | Path, folder: str | Path, *, hardware: str | None = None,
    library: str | None = None, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Predict, write, measure, compare; returns the report, which is in ``folder`` too.

    Files: ``predictions.json`` (complete before the first cold run), ``measurements.json`` (rewritten
    after every run), ``report.json``, ``report.md``; ``NAME.routing.arrow`` and ``NAME.faults.arrow``
    of each run of llama.cpp. Raises `InputError`.
    """
    if not isinstance(config, PagingConfig):
        config = load(config)
    spec, hw = to_predict_from(hardware or config.hardware)
    if hw.uvm is None:
        raise InputError(f"{spec}: has no [uvm] table to predict from; run `uvmsim calibrate`")
    target = report_folder(folder)
    cleared(target, PREDICTIONS)
    cells: list[Cell] = [*config.engine, *config.llama]
    total, done = 3 * len(cells), 0

    def tell(what: str) -> None:
        nonlocal done
        if progress:
            progress(done, total, what)
        done += 1

    about = {"uvmsim": __version__, "hardware": described(hw, spec), "config": _plain(config)}
    predicted: dict[str, Any] = {}
    for cell in cells:
        tell(f"predict {cell.name}")
        predicted[cell.name] = _guarded(lambda c=cell: _predict(c, spec, library, target))  # type: ignore[misc]
    write_json(target / PREDICTIONS, {**about, "written": now(), "runs": predicted})
    measured: dict[str, Any] = {}
    for cell in cells:
        tell(f"cold {cell.name}")
        measured[cell.name] = _guarded(lambda c=cell: _measure(c, config, library, target))  # type: ignore[misc]
        write_json(target / MEASUREMENTS, {**about, "written": now(), "runs": measured})
    rows = [_row(c, predicted[c.name], measured[c.name]) for c in cells]
    report = {**about, "written": now(), "rows": rows, "overall": overall(rows, config)}
    write_report(target, report, to_markdown(report))
    if progress:
        progress(total, total, "")
    return report


def _guarded(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A run that fails is a row of the report."""
    try:
        return {"status": "ok"} | work()
    except KeyboardInterrupt:
        raise
    except Exception as err:
        return {"status": "failed", "why": f"{type(err).__name__}: {err}"}


def _predict(cell: Cell, spec: str, library: str | None, target: Path) -> dict[str, Any]:
    from uvmsim.machine.hardware import Hardware

    if isinstance(cell, EngineRun):
        return engine_runs.predict(cell, Hardware.load(spec))
    routing = _file(target, cell, "routing")
    llama_runs.run(cell, library, routing, managed=False, cold=False)
    trace = llama_runs.opened(routing)
    ctx = int(trace.meta.extra.get("n_ctx") or cell.prompt + cell.predict)
    warm = llama_runs.step_ns(trace)
    return predict.llama(cell, routing, spec, ctx) | {"warm_step_ns": warm.tolist()}


def _measure(cell: Cell, config: PagingConfig, library: str | None, target: Path) -> dict[str, Any]:
    if isinstance(cell, EngineRun):
        found = engine_runs.measure(cell, config.repetitions)
        seen = found.pop("seen")
        last = found.pop("base_page") + found.pop("pages")
        partial = {last // 512: last % 512} if last % 512 else {}
        return found | {"driver": observed_run(seen, partial)}
    routing = llama_runs.opened(_file(target, cell, "routing"))
    times, problems, notes = [], [], []
    for i in range(config.repetitions):
        out = target / f".{cell.name}.{i}.arrow"
        made = llama_runs.run(cell, library, out, managed=True, cold=True)
        notes += made["notes"]
        trace = llama_runs.opened(out)
        times.append(llama_runs.step_ns(trace).tolist())
        if not llama_runs.same_routing(routing, trace):
            problems.append(f"cold run {i + 1} chose other experts than the resident one")
        out.unlink()
    again, faults = _file(target, cell, "cold"), _file(target, cell, "faults")
    made = llama_runs.run(cell, library, again, managed=True, cold=True, faults=faults)
    trace, t = llama_runs.opened(again), open_faults(faults)
    said = t.meta.get("recording") or {}
    looks = said.get("looks") or []
    from_ns = looks[0]["from_ns"] if looks else 0
    seen = seen_of(t, from_ns)
    starts = llama_runs.step_starts(trace)
    return {
        "step_ns": times, "recorded_step_ns": llama_runs.step_ns(trace).tolist(),
        "problems": problems, "notes": notes + made["notes"], "looks": looks,
        "driver": observed_run(seen, partial_blocks(t), came=sum(x["came"] for x in looks) or None)
        | {"step_bytes_in": by_step(seen, starts)},
    }  # fmt: skip


def _file(target: Path, cell: LlamaRun, what: str) -> Path:
    return target / f"{cell.name}.{what}.arrow"


def _row(cell: Cell, predicted: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    kind = "engine" if isinstance(cell, EngineRun) else "llama.cpp"
    row: dict[str, Any] = {
        "run": cell.name,
        "kind": kind,
        "predicted": predicted,
        "measured": measured,
    }
    failed = next((x for x in (predicted, measured) if x["status"] != "ok"), None)
    if failed is not None:
        return row | {"status": "failed", "why": failed["why"]}
    driver = measured["driver"]
    return row | {
        "status": "ok", "errors": errors(predicted, driver, measured["step_ns"]),
        "given_faults": exact(driver),
    }  # fmt: skip


def overall(rows: list[dict[str, Any]], config: PagingConfig) -> dict[str, Any]:
    """Mean and worst of each error over the runs, and whether all targets are met."""
    good = [r for r in rows if r["status"] == "ok"]
    made: dict[str, Any] = {"runs": len(rows), "failed": len(rows) - len(good)}
    keys = sorted({k for r in good for k in r["errors"]})
    for key in keys:
        values = np.abs([r["errors"][key] for r in good if key in r["errors"]])
        made[key] = {"mean": float(values.mean()), "worst": float(values.max())}
    given = [abs(v) for r in good for v in r["given_faults"].values() if v is not None]
    made["given_faults_worst"] = max(given, default=None)
    limits = {
        **dict.fromkeys(("batches", "services", "operations"), config.target_counts),
        "time": config.target_time, "curve": config.target_curve,
    }  # fmt: skip
    met = {k: made[k]["worst"] <= v for k, v in limits.items() if k in made}
    met["bytes given the faults"] = made["given_faults_worst"] is not None and (
        made["given_faults_worst"] <= config.target_bytes
    )
    made["met"] = met
    made["passed"] = not made["failed"] and met["bytes given the faults"]
    return made


def _plain(config: PagingConfig) -> dict[str, Any]:
    """The config with names of files instead of the paths of this machine."""
    made = config.model_dump()
    for run in made["llama"]:
        run["model"] = Path(run["model"]).name
    if made["hardware"]:
        made["hardware"] = Path(made["hardware"]).name
    return made
