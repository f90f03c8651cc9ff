"""From raw tables to the quantities of a machine and of our engine on it, each with its source, and
to TOML."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from replay.calibrate.cpu_kernels import TABLE, cpu_expert_tables
from replay.calibrate.disk import DISK, disk_tables
from replay.calibrate.policy_rows import TABLE as POLICIES
from replay.calibrate.policy_rows import policy_tables, source_of
from replay.calibrate.probe import HANDOVER, HOP
from replay.calibrate.stats import Row, fit_copies
from uvmsim.core.units import format_ns, format_rate
from uvmsim.machine.engine import SPEEDS
from uvmsim.machine.hardware import Hardware, HardwareSpec, UvmSpec

WORDS = ("name", "gpu", "summary", "engine", "uvm", "disk", "policy_ns")
MACHINE = tuple(k for k in HardwareSpec.model_fields if k not in WORDS)
"""Quantities of a machine, in file order."""
ENGINE = ("dense_launch_ns", "expert_launch_ns", "decision_ns", "cpu_sync_ns", *SPEEDS)
"""Quantities of the engine."""
PROGRAM = "the replay engine (uvmsim replay), MXFP4 experts"
LARGE = 1 << 20
"""Copies from here up are experts; smaller ones are left out of the fit of the link."""


@dataclass
class Measurements:
    """Everything one calibration found out."""

    backend: str
    machine: dict[str, Any]
    date: str
    tables: dict[str, list[Row]] = field(default_factory=dict)
    """By stage: its rows."""
    errors: dict[str, str] = field(default_factory=dict)
    """By stage: why it has no rows."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage: how long it took."""
    fitted: dict[str, tuple[Any, str]] = field(default_factory=dict)
    """Quantities found by the engine's own runs, which come before any other source."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "backend": self.backend, "machine": self.machine, "date": self.date,
            "tables": self.tables, "errors": self.errors, "seconds": self.seconds,
            "fitted": {k: {"value": v, "how": how} for k, (v, how) in self.fitted.items()},
        }  # fmt: skip


def quantities(m: Measurements, base: Hardware) -> dict[str, tuple[Any, str]]:
    """Field of the machine -> (value, source). What could not be measured is ``base``'s, and says
    so."""
    # Its kernels' speeds are the engine's; the machine's are what plain tests find.
    return _quantities(m, MACHINE, {k: v for k, v in m.fitted.items() if k not in SPEEDS}, base)


def engine_quantities(m: Measurements, base: Hardware) -> dict[str, tuple[Any, str]]:
    """Field of the engine -> (value, source), in the same way. A speed that its own runs did not
    find is left out: it is then the machine's."""
    names = tuple(k for k in ENGINE if k in m.fitted or k not in SPEEDS)
    return _quantities(m, names, m.fitted, base.engine)


def _quantities(
    m: Measurements, names: tuple[str, ...], fitted: dict[str, tuple[Any, str]], base: Any
) -> dict[str, tuple[Any, str]]:
    stamp = _stamp(m)
    found: dict[str, tuple[Any, str]] = {}
    for name in names:
        finder = FINDERS.get(name, _unknown)
        try:
            if name in fitted:
                value, how = fitted[name]
            else:
                value, how = finder(m)
            found[name] = (value, f"{stamp}: {how}")
        except (KeyError, IndexError, ValueError, StopIteration, ZeroDivisionError) as err:
            value = getattr(base, name)
            if value is None:
                continue
            table = err.args[0] if isinstance(err, KeyError) else None
            why = m.errors.get(str(table)) or "no usable rows"
            found[name] = (value, f"estimate: not measured ({why}); the {base.name} profile's")
    return found


def _stamp(m: Measurements) -> str:
    """When and on what it was measured."""
    if m.backend == "host":
        return f"measured {m.date} with --backend host: memcpy in place of a GPU"
    return "measured " + ", ".join(
        [m.date, *(f"{k} {m.machine[k]}" if k != "gpu" else str(m.machine[k])
                   for k in ("gpu", "driver", "cuda", "cupy") if k in m.machine)]
    )  # fmt: skip


def summary(m: Measurements) -> str:
    """One line saying what the profile is."""
    return f"calibrated {m.date} by uvmsim calibrate --backend {m.backend}"


def to_toml(m: Measurements, base: Hardware, name: str) -> str:
    """The profile as a file `Hardware.load` reads, with the replay engine's table."""
    lines = ["", "[engine]", f"name = {_text(f'replay-{name}')}", f"summary = {_text(PROGRAM)}"]
    for key, (value, source) in engine_quantities(m, base).items():
        lines += _table(f"engine.{key}", value, source)
    lines += _cpu_experts(m) + _disk(m)
    return machine_toml(m, base, name) + "\n".join([*lines, *_uvm(m, base)]) + "\n"


def _cpu_experts(m: Measurements) -> list[str]:
    """The engine's experts on the CPU, by type."""
    lines: list[str] = []
    for kind, found in cpu_expert_tables(*(m.tables.get(t, []) for t in (TABLE, "cpu"))).items():
        lines += ["", f"[engine.cpu_experts.{kind}]"]
        lines += [f"{k} = {v}" for k, v in found.items() if k != "source"]
        lines.append(f"source = {_text(_stamp(m) + ': ' + found['source'])}")
    return lines


def _disk(m: Measurements) -> list[str]:
    """The disk, by how it is read."""
    lines: list[str] = []
    for mode, found in disk_tables(m.tables.get(DISK, [])).items():
        lines += ["", f"[disk.{mode}]"]
        lines += [f"{k} = {v}" for k, v in found.items() if k != "source"]
        lines.append(f"source = {_text(_stamp(m) + ': ' + found['source'])}")
    return lines


def machine_toml(m: Measurements, base: Hardware, name: str) -> str:
    """The machine's part of a profile: what it is, and its quantities."""
    lines = [
        f"# Written by uvmsim calibrate; raw tables: {name}.measurements.json",
        *(f"# {k}: {v}" for k, v in m.machine.items()),
        *(f"# not measured: {k}: {' '.join(why.split())}" for k, why in m.errors.items()),
        f"name = {_text(name)}",
        f"gpu = {_text(str(m.machine.get('gpu', 'unknown')))}",
        f"summary = {_text(summary(m))}",
    ]
    for key, (value, source) in quantities(m, base).items():
        lines += _table(key, value, source)
    found = m.tables.get(POLICIES, [])
    for policy, times in policy_tables(found).items():
        lines += _policy(policy, times, f"{_stamp(m)}: {source_of(found)}")
    return "\n".join(lines) + "\n"


def restated(hw: Hardware, name: str) -> str:
    """The machine's part of a profile that repeats another description."""
    lines = [f"name = {_text(name)}", f"gpu = {_text(hw.gpu)}", f"summary = {_text(hw.summary)}"]
    for key in MACHINE:
        value = getattr(hw, key)
        if value is not None:
            lines += _table(key, value, hw.sources.get(key, f"the {hw.name} description"))
    for policy, times in (hw.policy_ns or {}).items():
        lines += _policy(policy, times.model_dump(exclude={"source"}), times.source)
    return "\n".join(lines) + "\n"


def _policy(name: str, times: dict[str, int], source: str) -> list[str]:
    """What a policy's hooks cost the host."""
    lines = ["", f"[policy_ns.{_text(name)}]", *(f"{k} = {v}" for k, v in times.items())]
    return [*lines, f"source = {_text(source)}"]


def _uvm(m: Measurements, base: Hardware) -> list[str]:
    """Constants of the paging driver's model: measured, all of them, or else the base's."""
    lines: list[str] = []
    found = {k.removeprefix("uvm."): v for k, v in m.fitted.items() if k.startswith("uvm.")}
    if found.keys() >= UvmSpec.model_fields.keys():
        for key in UvmSpec.model_fields:
            value, how = found[key]
            lines += _table(f"uvm.{key}", value, f"{_stamp(m)}: {how}")
        return lines
    for key, value in base.paging_constants().items():
        source = f"estimate: the {base.name} profile's ({base.sources.get(f'uvm.{key}', '')})"
        lines += _table(f"uvm.{key}", value, source)
    return lines


def _table(key: str, value: Any, source: str) -> list[str]:
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return ["", f"[{key}]", f"value = {shown}", f"source = {_text(source)}"]


def _text(text: str) -> str:
    """A TOML basic string; JSON's escapes are a subset of TOML's."""
    return json.dumps(" ".join(text.split()), ensure_ascii=False)


# ---- one finder a quantity: (value, how it was found) ------------------------------------------


def _spread(row: Row) -> str:
    low, high = row["bytes"] / row["p90_ns"], row["bytes"] / max(row["p10_ns"], 1e-3)
    return f"median of {row['n']}, p10 to p90 {low:.3g} to {high:.3g} GB/s"


def _rate_of(table: str, what: str, pick: Callable[[list[Row]], Row]) -> Any:
    def find(m: Measurements) -> tuple[int, str]:
        r = pick(m.tables[table])
        return int(r["bytes_per_s"]), f"{what}, {_size(r['bytes'])}; {_spread(r)}"

    return find


def _size(n: int) -> str:
    return f"{n >> 20} MiB" if n % (1 << 20) == 0 else f"{n / 1e6:.3g} MB"


def _largest(rows: list[Row]) -> Row:
    return max(rows, key=lambda r: r["bytes"])


def _fastest(rows: list[Row]) -> Row:
    return max(rows, key=lambda r: r["bytes_per_s"])


def _link(table: str) -> Any:
    def find(m: Measurements) -> tuple[int, str]:
        rows = [r for r in m.tables[table] if r["bytes"] >= LARGE]
        latency, rate, worst = fit_copies(rows)
        top = _largest(rows)
        return round(rate), (
            f"pinned copies queued back to back, {len(rows)} sizes from {_size(rows[0]['bytes'])} to "
            f"{_size(top['bytes'])}, as {format_ns(latency)} + bytes / {format_rate(rate)} "
            f"(worst size {worst:.1%} off); largest: {_spread(top)}"
        )

    return find


def _latency(m: Measurements) -> tuple[int, str]:
    rows = [r for r in m.tables["copies_h2d"] if r["bytes"] >= LARGE]
    latency, _, worst = fit_copies(rows)
    small = m.tables["copies_h2d"][0]
    return round(latency), (
        f"intercept of the host-to-device fit (worst size {worst:.1%} off); a copy of "
        f"{small['bytes']} bytes takes {format_ns(small['median_ns'])}"
    )


def _peer_rate(m: Measurements) -> tuple[int, str]:
    """The slower direction's, largest size."""
    rows = [r for r in m.tables["peers"] if r["what"] == "copies"]
    size = max(r["bytes"] for r in rows)
    slower = min((r for r in rows if r["bytes"] == size), key=lambda r: r["bytes_per_s"])
    return int(slower["bytes_per_s"]), (
        f"copies from another card, {_size(size)}, queued back to back, direction "
        f"{slower['direction']}; {_spread(slower)}"
    )


def _peer_latency(m: Measurements) -> tuple[int, str]:
    """A hop without the time that its bytes take."""
    r = next(r for r in m.tables["peers"] if r["what"] == HOP)
    rate, _ = _peer_rate(m)
    alone = max(round(r["median_ns"] - r["bytes"] / rate * 1e9), 0)
    return alone, (
        f"{HOP} ({r['bytes']:,} bytes, less their time), there and back, half of it; median of "
        f"{r['n']} ({format_ns(r['p10_ns'])} to {format_ns(r['p90_ns'])})"
    )


def _duplex_ratio(m: Measurements) -> float:
    """What a direction keeps of its speed while the other is busy: the mean over both, largest
    size."""
    size = max(r["bytes"] for r in m.tables["both_ways"])
    at = {(r["direction"], r["other"]): r["bytes_per_s"] for r in m.tables["both_ways"]
          if r["bytes"] == size}  # fmt: skip
    return sum(at[d, "busy"] / at[d, "idle"] for d in ("h2d", "d2h")) / 2


def _duplex(m: Measurements) -> tuple[bool, str]:
    ratio = _duplex_ratio(m)
    return ratio > 0.6, f"each direction keeps {ratio:.0%} of its speed while the other is busy"


def _duplex_factor(m: Measurements) -> tuple[float, str]:
    ratio = _duplex_ratio(m)
    return round(min(ratio, 1.0), 4), (
        "speed of a direction while the other is busy over its speed alone, mean of both directions"
    )


def _launch(what: str) -> Any:
    def find(m: Measurements) -> tuple[int, str]:
        r = next(r for r in m.tables["launches"] if r["what"] == what)
        return round(r["median_ns"]), (
            f"{what}, median of {r['n']} ({format_ns(r['p10_ns'])} to {format_ns(r['p90_ns'])})"
        )

    return find


def _fixed(key: str) -> Any:
    def find(m: Measurements) -> tuple[int, str]:
        return int(m.machine[key]), "as the machine reports it"

    return find


def _unknown(m: Measurements) -> tuple[int, str]:
    raise KeyError("")


FINDERS: dict[str, Callable[[Measurements], tuple[Any, str]]] = {
    "vram_bytes": _fixed("vram_bytes"),
    "memory_bytes_per_s": _rate_of("reads", "a kernel reading device memory", _largest),
    "dense_launch_ns": _launch("empty kernel"),
    "expert_launch_ns": _launch("empty kernel"),
    "h2d_bytes_per_s": _link("copies_h2d"),
    "d2h_bytes_per_s": _link("copies_d2h"),
    "copy_latency_ns": _latency,
    "pageable_h2d_bytes_per_s": _rate_of("pageable_h2d", "pageable copies, waited for", _largest),
    "pageable_d2h_bytes_per_s": _rate_of("pageable_d2h", "pageable copies, waited for", _largest),
    "duplex": _duplex,
    "duplex_factor": _duplex_factor,
    "zero_copy_bytes_per_s": _rate_of("zero_copy", "a kernel reading pinned host memory", _largest),
    "cpu_bytes_per_s": _rate_of("cpu", "matrix-vector products on the CPU, float32", _fastest),
    "cpu_sync_ns": _launch("copy and wait"),
    "decision_ns": _launch(HANDOVER),
    "pinned_alloc_bytes_per_s": _rate_of(
        "pinned_alloc", "allocating and page-locking fresh host memory", _largest
    ),
    "host_bytes": _fixed("host_bytes"),
    "peer_bytes_per_s": _peer_rate,
    "peer_latency_ns": _peer_latency,
}
"""How each quantity is found where the engine's own runs did not find it."""
