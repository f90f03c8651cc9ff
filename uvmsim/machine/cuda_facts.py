"""Run as a program: what the CUDA driver says of the first GPU, as one line of JSON.

A process of its own, since one that has called the driver cannot fork any more, and since a broken
driver hangs. Prints nothing and exits with 1 where there is no driver or no GPU. No context is made.
"""

from __future__ import annotations

import ctypes
import json
import sys

ATTRIBUTES = {
    "clock_khz": 13, "sm_count": 16, "memory_khz": 36, "bus_bits": 37, "threads_per_sm": 39,
    "copy_engines": 40, "major": 75, "minor": 76,
}  # fmt: skip
"""Name -> number of the attribute (cuda.h, CUdevice_attribute)."""


def facts(cuda: ctypes.CDLL) -> dict[str, int | str]:
    """Attributes, name and bytes of device 0. Raises `OSError` where a call fails."""

    def call(name: str, *arguments: object) -> None:
        code = getattr(cuda, name)(*arguments)
        if code:
            raise OSError(f"{name}: CUDA error {code}")

    device, name, total = ctypes.c_int(), ctypes.create_string_buffer(128), ctypes.c_size_t()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDeviceGetName", name, len(name), device)
    call("cuDeviceTotalMem_v2", ctypes.byref(total), device)
    found: dict[str, int | str] = {"name": name.value.decode(), "total_bytes": total.value}
    for key, number in ATTRIBUTES.items():
        value = ctypes.c_int()
        call("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        found[key] = value.value
    return found


if __name__ == "__main__":
    try:
        print(json.dumps(facts(ctypes.CDLL("libcuda.so.1"))))
    except (OSError, AttributeError, UnicodeDecodeError):
        sys.exit(1)
