"""Sizes, rates and times as people write them, and back.

Inside uvmsim bytes and nanoseconds are integers and rates are whole bytes a second. In text GB is
10^9 bytes and GiB is 2^30. A unit that could mean either ("24g") is refused with a suggestion.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from traces.errors import InputError

DECIMAL = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
BINARY = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_BYTES = {k.lower(): v for k, v in (DECIMAL | BINARY).items()}
_TIMES = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9}
_FLOPS = {"flops": 1, "gflops": 10**9, "tflops": 10**12, "pflops": 10**15}
_NUMBER = re.compile(r"\s*([-+]?[0-9][0-9_]*(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)\s*(.*?)\s*$")
_LIMIT = 2**63


def _split(text: str, what: str, example: str) -> tuple[Decimal, str]:
    m = _NUMBER.match(text)
    try:
        number = Decimal(m.group(1).replace("_", "")) if m else None
    except InvalidOperation:  # pragma: no cover - the pattern admits only numbers
        number = None
    if m is None or number is None:
        raise InputError(f"{text!r} is not {what}; write it like {example}")
    return number, m.group(2)


def _whole(number: Decimal, factor: int, text: object, what: str) -> int:
    value = number * factor
    if value < 0:
        raise InputError(f"{text!r}: {what} cannot be negative")
    if value >= _LIMIT:
        raise InputError(f"{text!r}: {what} is too large (2^63 or more)")
    return int(value.to_integral_value())


def _plain(value: int | float, what: str) -> int:
    if isinstance(value, bool) or value != value or value in (float("inf"), float("-inf")):
        raise InputError(f"{value!r} is not {what}")
    return _whole(Decimal(value), 1, value, what)


def parse_bytes(value: str | int | float) -> int:
    """Bytes from ``"24GiB"``, ``"24 GB"``, ``"13.2MB"``, ``"1234"`` or a number of bytes.

    Raises `InputError` where the unit is missing its base ("24g", "24K": GB or GiB?) or counts
    bits ("24Gb").
    """
    if not isinstance(value, str):
        return _plain(value, "a size")
    number, unit = _split(value, "a size", "24GiB or 13.2MB")
    if unit == "":
        if number != number.to_integral_value():
            raise InputError(f"{value!r} has no unit; write it like {number}GB or {number}GiB")
        return _whole(number, 1, value, "a size")
    if re.fullmatch(r"[KMGT]i?b", unit) or unit.lower().endswith(("bit", "bits")):
        fixed = unit[0].upper() + unit[1:-1] + "B" if unit.endswith("b") else unit[0].upper() + "B"
        raise InputError(f"{value!r} counts bits; sizes are in bytes, e.g. {number}{fixed}")
    if re.fullmatch(r"[kKmMgGtT]i?", unit):
        big = unit[0].upper()
        raise InputError(
            f"{value!r} is ambiguous; write {number}{big if big != 'K' else 'k'}B (powers of 1000) "
            f"or {number}{big}iB (powers of 1024)"
        )
    factor = _BYTES.get(unit.lower())
    if factor is None:
        raise InputError(f"{value!r}: unknown unit {unit!r}; use one of B kB MB GB TB KiB MiB GiB")
    return _whole(number, factor, value, "a size")


def parse_bandwidth(value: str | int | float) -> int:
    """Bytes a second from ``"28 GB/s"``, ``"1.79TB/s"``, or a number of bytes a second."""
    if not isinstance(value, str):
        rate = _plain(value, "a bandwidth")
    else:
        size, slash, per = value.partition("/")
        if slash == "" and value.strip().lower().endswith("bps"):
            raise InputError(f"{value!r}: bandwidths are in bytes a second, e.g. 28GB/s")
        if slash == "" or per.strip() not in ("s", "sec", "second"):
            hint = value.strip() if slash == "" and not value.strip()[-1:].isdigit() else "28GB"
            raise InputError(f"{value!r} is not a bandwidth; write it like {hint}/s")
        rate = parse_bytes(size.strip())
    if rate == 0:
        raise InputError(f"{value!r}: a bandwidth must be above zero")
    return rate


def parse_time(value: str | int | float) -> int:
    """Nanoseconds from ``"2.3us"``, ``"160 µs"``, ``"1.5 ms"``, or a number of nanoseconds."""
    if not isinstance(value, str):
        return _plain(value, "a time")
    number, unit = _split(value, "a time", "2.3us")
    if unit not in _TIMES:
        why = "has no unit" if unit == "" else f"has an unknown unit {unit!r}"
        raise InputError(f"{value!r} {why}; write a time like {number}us (ns, us, ms or s)")
    return _whole(number, _TIMES[unit], value, "a time")


def parse_flops(value: str | int | float) -> int:
    """Floating-point operations a second from ``"209.5 TFLOPS"`` or a number of them."""
    if not isinstance(value, str):
        rate = _plain(value, "a compute rate")
    else:
        number, unit = _split(value, "a compute rate", "209.5 TFLOPS")
        factor = _FLOPS.get(unit.lower().replace("flop/s", "flops"))
        if factor is None:
            raise InputError(f"{value!r} is not a compute rate; write it like {number} TFLOPS")
        rate = _whole(number, factor, value, "a compute rate")
    if rate == 0:
        raise InputError(f"{value!r}: a compute rate must be above zero")
    return rate


def _scaled(n: float, steps: list[tuple[int, str]]) -> str:
    """``n`` in the largest step that leaves at least 1, three significant digits and no less."""
    for i, (factor, unit) in enumerate(steps):
        x = n / factor
        digits = 0 if abs(x) >= 100 else 1 if abs(x) >= 10 else 2
        # 999.9996 kB must read 1.00 MB, not 1000 kB.
        if abs(round(x, digits)) >= 1000 and i + 1 < len(steps):
            continue
        if factor == 1 and float(n).is_integer():
            digits = 0
        return f"{x:.{digits}f} {unit}"
    raise AssertionError("no units given")


def format_bytes(n: int | float, *, binary: bool = False) -> str:
    """``13219200`` -> ``"13.2 MB"``; with ``binary`` -> ``"12.6 MiB"``."""
    units = [(1, "B"), *((v, k) for k, v in BINARY.items())] if binary else None
    return _scaled(n, units or [(v, k) for k, v in DECIMAL.items()])


def format_rate(bytes_per_s: int | float) -> str:
    """``54700000000`` -> ``"54.7 GB/s"``."""
    return format_bytes(bytes_per_s) + "/s"


def format_flops(flops_per_s: int | float) -> str:
    """``58000000000000`` -> ``"58.0 TFLOPS"``."""
    steps = [(1, "FLOPS"), (10**9, "GFLOPS"), (10**12, "TFLOPS"), (10**15, "PFLOPS")]
    return _scaled(flops_per_s, steps)


def format_ns(ns: int | float) -> str:
    """``2500`` -> ``"2.50 µs"``."""
    return _scaled(ns, [(1, "ns"), (10**3, "µs"), (10**6, "ms"), (10**9, "s")])
