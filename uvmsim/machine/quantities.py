"""Quantities of a description: how they are read, and how people see them.

In a file each is ``{ value = "54.7 GB/s", source = "..." }``; a source that begins with ``estimate:``
marks a number nobody measured. Durations are whole nanoseconds, rounded to the nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from traces.errors import InputError
from uvmsim.core import units

T = TypeVar("T")


def _parsed(parse: Callable[[Any], int]) -> BeforeValidator:
    def run(value: Any) -> int:
        try:
            return parse(value)
        except InputError as e:  # so that the message gets the file and the key in front
            raise ValueError(str(e)) from None

    return BeforeValidator(run)


Bytes = Annotated[int, _parsed(units.parse_bytes), Field(gt=0)]
Room = Annotated[int, _parsed(units.parse_bytes)]
"""Bytes that may be none."""
Rate = Annotated[int, _parsed(units.parse_bandwidth)]
Time = Annotated[int, _parsed(units.parse_time)]
Flops = Annotated[int, _parsed(units.parse_flops)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(gt=0)]


class Sourced(BaseModel, Generic[T]):
    """A value and where it comes from."""

    model_config = ConfigDict(extra="forbid")
    value: T
    source: Annotated[str, Field(min_length=1)]


def parts(spec: BaseModel) -> tuple[dict[str, Any], dict[str, str]]:
    """The sourced quantities of ``spec``: field -> value, and field -> source."""
    given = {k: getattr(spec, k) for k in type(spec).model_fields}
    sourced = {k: v for k, v in given.items() if isinstance(v, Sourced)}
    return {k: v.value for k, v in sourced.items()}, {k: v.source for k, v in sourced.items()}


def shown(key: str, value: Any) -> str:
    """A quantity as people write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.endswith("_ns"):
        return units.format_ns(value)
    if key.endswith("_flops"):
        return units.format_flops(value)
    if key.endswith("_bytes_per_s"):
        return units.format_rate(value)
    if key.endswith("_bytes"):
        return units.format_bytes(value, binary=True)
    return f"{value:g}"


def duration_ns(amount: int, per_second: int) -> int:
    """Nanoseconds for ``amount`` (bytes or operations), to the nearest, ties to even: the same
    float64 expression as ``np.rint(amount / per_second * 1e9)``, hence the same nanosecond.
    """
    return round(amount / per_second * 1e9)
