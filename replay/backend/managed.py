"""Prefetch and advice for managed memory, through `cuda.bindings`.

CuPy's wrappers take a device number, and CUDA 13 refuses the host's (-1) there: the location is a
struct now. Both generations of the bindings are served.
"""

from __future__ import annotations

from typing import Any

from traces.errors import InputError


class ManagedCalls:
    """The two calls for one device."""

    def __init__(self, index: int):
        try:
            from cuda.bindings import runtime
        except ImportError:
            raise InputError(
                "mode managed needs cuda-bindings; pip install -e '.[gpu]' in the checkout"
            ) from None
        self._rt = runtime
        # CUDA 12 has the struct in the calls' second version, CUDA 13 in the only one.
        self._prefetch: Any = _newest(runtime, "cudaMemPrefetchAsync")
        self._advise: Any = _newest(runtime, "cudaMemAdvise")
        kinds = runtime.cudaMemLocationType
        self._device = self._location(kinds.cudaMemLocationTypeDevice, index)
        self._host = self._location(kinds.cudaMemLocationTypeHost, 0)
        advice = runtime.cudaMemoryAdvise
        self._advice: dict[str, tuple[Any, Any]] = {
            "read-mostly": (advice.cudaMemAdviseSetReadMostly, self._device),
            "preferred-host": (advice.cudaMemAdviseSetPreferredLocation, self._host),
            "preferred-device": (advice.cudaMemAdviseSetPreferredLocation, self._device),
            "accessed-by": (advice.cudaMemAdviseSetAccessedBy, self._device),
        }

    def _location(self, kind: Any, number: int) -> Any:
        location = self._rt.cudaMemLocation()
        location.type, location.id = kind, number
        return location

    def prefetch(self, ptr: int, nbytes: int, to_device: bool, stream: int) -> None:
        """Queue moving a range to the device or to the host."""
        where = self._device if to_device else self._host
        self._check(self._prefetch(ptr, nbytes, where, 0, stream), "prefetch")

    def advise(self, ptr: int, nbytes: int, advice: str) -> None:
        """One of `replay.backend.base.ADVICE`."""
        what, where = self._advice[advice]
        self._check(self._advise(ptr, nbytes, what, where), f"advice {advice}")

    def _check(self, answer: Any, what: str) -> None:
        if int(answer[0]):
            raise InputError(f"managed memory, {what}: the driver says {answer[0].name}")


def _newest(runtime: Any, name: str) -> Any:
    return getattr(runtime, f"{name}_v2", None) or getattr(runtime, name)
