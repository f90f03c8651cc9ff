"""Where a replay runs: NumPy memory on the host, or a CUDA card, behind one interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from traces.errors import InputError

if TYPE_CHECKING:
    from replay.backend.base import Backend

NAMES = ("cuda", "host")


def backend(name: str, **options: Any) -> Backend:
    """A new, closed backend: ``cuda`` or ``host``; open it with ``with``.

    Raises `InputError` where the name is unknown; opening ``cuda`` does where there is no card.
    """
    if name == "host":
        from replay.backend.host import HostBackend

        return HostBackend(**options)
    if name == "cuda":
        from replay.backend.cuda import CudaBackend

        return CudaBackend(**options)
    raise InputError(f"{name}: must be {' or '.join(NAMES)}", argument="backend")
