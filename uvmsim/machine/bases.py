"""A machine written out in full, and what a file with a ``base`` makes of one.

``base = "rtx4090"`` takes everything that a file does not say from another description. That is the
other one written out (`written`), with what the file says put over it table by table (`in_full`);
`uvmsim hardware NAME --toml` prints the same tables (`as_toml`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from uvmsim.core import units
from uvmsim.machine.policy_times import plain

Hardware = Any
"""`uvmsim.machine.hardware.Hardware`, which is made with this file's help."""

_UNITS: dict[str, dict[str, int]] = {
    "_ns": {"ms": 10**6, "us": 10**3, "ns": 1},
    "_flops": {"TFLOPS": 10**12, "GFLOPS": 10**9},
    "_bytes_per_s": {"GB/s": 10**9, "MB/s": 10**6},
    "_bytes": units.BINARY | {"GB": 10**9},
}
"""What a quantity is written in, by the ending of its key, the best unit first."""


def written(hw: Hardware) -> dict[str, Any]:
    """A machine as the tables of its TOML file, engine included; exact numbers, each with its source.

    Quantities that it does not have are left out.
    """
    e = hw.engine
    engine: dict[str, Any] = {"name": e.name, "summary": e.summary}
    if e.machine is not None:
        engine["machine"] = _lasting(e.machine)
    engine |= {
        k: _quantity(getattr(e, k), source)
        for k, _, source in e.quantities()
        if not k.startswith(("terms.", "cpu_experts."))
    }
    if e.cpu_experts is not None:
        engine["cpu_experts"] = {kind: x.model_dump() for kind, x in e.cpu_experts.items()}
    if e.terms is not None:
        engine["terms"] = e.terms.to_spec()
    made: dict[str, Any] = {"name": hw.name, "gpu": hw.gpu, "summary": hw.summary}
    uvm = {}
    for key, _, source in hw.quantities():
        if key.startswith("uvm."):
            name = key.removeprefix("uvm.")
            uvm[name] = _quantity(getattr(hw.uvm, name), source)
        elif not key.startswith("policy_ns."):
            made[key] = _quantity(getattr(hw, key), source)
    made |= {"engine": engine} | ({"uvm": uvm} if uvm else {})
    return made | ({"policy_ns": plain(hw.policy_ns)} if hw.policy_ns else {})


def _quantity(value: Any, source: str) -> dict[str, Any]:
    return {"value": value, "source": source or "not said"}


def _lasting(machine: str) -> str:
    """A path that means the same file wherever it is read."""
    return str(Path(machine).resolve()) if machine.lower().endswith(".toml") else machine


def in_full(own: dict[str, Any], base: dict[str, Any], name: str | None = None) -> dict[str, Any]:
    """What a file says over what its base says.

    A quantity is replaced whole, value and source, and so is ``[policy_ns]``. ``[uvm]`` and
    ``[engine]`` take the base's for what they leave out; an engine that has a name is another one and
    takes nothing. ``name``: where the file does not give one.
    """
    over = dict(own)
    uvm, engine = own.get("uvm"), own.get("engine")
    if isinstance(uvm, dict) and isinstance(base.get("uvm"), dict):
        over["uvm"] = base["uvm"] | uvm
    if isinstance(engine, dict) and "name" not in engine:
        over["engine"] = base["engine"] | engine
    if name is not None:
        told = ", ".join(k for k in own if k not in ("name", "gpu", "summary"))
        over = {"name": name, "summary": f"{base['name']}, other {told}"} | over if told else over
        over = {"name": name} | over
    return base | over


# ---- as text ---------------------------------------------------------------------------------------


def as_toml(hw: Hardware) -> str:
    """The file that `uvmsim.machine.hardware.Hardware.load` reads back as the same numbers."""
    tables = written(hw)
    lines = [f"{k} = {_text(tables.pop(k))}" for k in ("name", "gpu", "summary")]
    uvm, engine = tables.pop("uvm", {}), tables.pop("engine")
    policies = tables.pop("policy_ns", {})
    terms, experts = engine.pop("terms", None), engine.pop("cpu_experts", {})
    for key, quantity in tables.items():
        lines += _table(key, key, quantity)
    lines += ["", "[engine]"]
    words = {k: v for k, v in engine.items() if isinstance(v, str)}
    lines += [f"{k} = {_text(v)}" for k, v in words.items()]
    for prefix, of in (("engine", engine), ("uvm", uvm)):
        for key, quantity in of.items():
            if key not in words or prefix == "uvm":
                lines += _table(f"{prefix}.{key}", key, quantity)
    for kind, measured in experts.items():
        lines += _nested(f"engine.cpu_experts.{_text(kind)}", measured)
    if terms is not None:
        lines += _nested("engine.terms", terms)
    for policy, measured in policies.items():
        lines += _nested(f"policy_ns.{_text(policy)}", measured)
    return "\n".join(lines) + "\n"


def _nested(head: str, table: dict[str, Any]) -> Iterator[str]:
    """A table of plain values, and the tables in it."""
    yield from ("", f"[{head}]")
    inner = {k: v for k, v in table.items() if isinstance(v, dict)}
    for key, value in table.items():
        if key not in inner:
            yield f"{_text(key)} = {json.dumps(value, ensure_ascii=False)}"
    for key, value in inner.items():
        yield from _nested(f"{head}.{_text(key)}", value)


def _table(head: str, key: str, quantity: dict[str, Any]) -> Iterator[str]:
    yield from ("", f"[{head}]", f"value = {_value(key, quantity['value'])}")
    yield f"source = {_text(quantity['source'])}"


def _value(key: str, value: Any) -> str:
    """As people write it where that is exact, else the whole number."""
    if isinstance(value, bool):
        return str(value).lower()
    for ending, factors in _UNITS.items():
        if key.endswith(ending) and isinstance(value, int):
            for unit, factor in sorted(factors.items(), key=lambda f: -f[1]):
                number = Decimal(value) / factor
                if number >= 1 and number == round(number, 3):
                    return _text(f"{number.normalize():f} {unit}")
            return f"{value:_}"
    return repr(value)


def _text(text: str) -> str:
    """A TOML basic string; JSON's escapes are a subset of TOML's."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
