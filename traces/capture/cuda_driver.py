"""The few calls of the CUDA driver that a recording needs, through ctypes."""

from __future__ import annotations

import ctypes
from typing import Any

from traces.errors import InputError

SUCCESS, NO_DEVICE = 0, 100


def start() -> int:
    """Initialise the driver; the number of GPUs. Raises `InputError` where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise InputError(
            "no NVIDIA driver here (libcuda.so.1 is missing): record on the machine with the GPU"
        ) from None
    count = ctypes.c_int(0)
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code == NO_DEVICE or (code == SUCCESS and count.value == 0):
        raise InputError(
            "the NVIDIA driver sees no GPU here (CUDA_VISIBLE_DEVICES?): record where there is one"
        )
    if code != SUCCESS:
        raise InputError(
            f"the NVIDIA driver does not start ({_name(driver, code)}); does nvidia-smi work?"
        )
    return count.value


def retain() -> None:
    """Make the first GPU's context current, as the runtime does at its first call."""
    driver = ctypes.CDLL("libcuda.so.1")
    context, device = ctypes.c_void_p(), ctypes.c_int(0)
    code = (
        driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
        or driver.cuCtxSetCurrent(context)
    )
    if code != SUCCESS:
        raise InputError(f"the GPU's context cannot be made ({_name(driver, code)})")


def names() -> list[str]:
    """What the driver calls each GPU; empty where it does not say."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count, found = ctypes.c_int(0), []
    driver.cuDeviceGetCount(ctypes.byref(count))
    for i in range(count.value):
        device, text = ctypes.c_int(0), ctypes.create_string_buffer(256)
        if driver.cuDeviceGet(ctypes.byref(device), i) == SUCCESS and (
            driver.cuDeviceGetName(text, len(text), device) == SUCCESS
        ):
            found.append(text.value.decode())
    return found


def synchronize() -> None:
    """Wait for the GPU to finish what the current context gave it, if there is one."""
    ctypes.CDLL("libcuda.so.1").cuCtxSynchronize()


def managed(size: int) -> int:
    """Address of fresh managed memory, freed with the process; 0 where the driver gives none."""
    driver = ctypes.CDLL("libcuda.so.1")
    address = ctypes.c_uint64(0)
    attach_global = 1
    code = driver.cuMemAllocManaged(ctypes.byref(address), ctypes.c_size_t(size), attach_global)
    return address.value if code == SUCCESS else 0


def there_and_back(address: int, size: int) -> None:
    """Have managed memory moved to the first GPU and to the host again, and wait for it."""
    driver = ctypes.CDLL("libcuda.so.1")
    for device in (0, -1):
        driver.cuMemPrefetchAsync(
            ctypes.c_uint64(address), ctypes.c_size_t(size), ctypes.c_int(device), None
        )
        driver.cuCtxSynchronize()


def occupy(leave_bytes: int) -> int:
    """Take GPU memory until ``leave_bytes`` are free, and keep it until the process ends: the first
    GPU is as good as a smaller one. Returns the bytes taken.

    Raises `InputError` where there is less free to begin with.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(0), ctypes.c_size_t(0)
    taken, device = ctypes.c_uint64(0), ctypes.c_int(0)
    code = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
        or driver.cuCtxSetCurrent(context)
        or driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    )
    if code == SUCCESS and free.value <= leave_bytes:
        raise InputError(
            f"--vram-left-mib {leave_bytes >> 20}: the GPU has {free.value >> 20} MiB free"
        )
    size = free.value - leave_bytes
    code = code or driver.cuMemAlloc_v2(ctypes.byref(taken), ctypes.c_size_t(size))
    if code != SUCCESS:
        raise InputError(
            f"--vram-left-mib {leave_bytes >> 20}: the memory cannot be taken "
            f"({_name(driver, code)})"
        )
    return int(size)


def _name(driver: Any, code: int) -> str:
    text = ctypes.c_char_p()
    driver.cuGetErrorName(code, ctypes.byref(text))
    return text.value.decode() if text.value else f"error {code}"
