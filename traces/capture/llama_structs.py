"""Fields of llama.cpp's parameter structs, found by the defaults around them.

The structs change with almost every release, so no layout is written down here: llama.cpp fills them
with its defaults, and a build whose defaults do not show where a field is, is refused.
"""

from __future__ import annotations

import ctypes as C
from typing import Any

from traces.errors import InputError

_OWN = "use the one of the capture extra: pip install 'uvmsim[capture]'"
_EXPERTS = r"blk\.%d\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""The tensors llama.cpp's own ``--n-cpu-moe`` keeps in host memory."""


class Parameters(C.Structure):
    """More room than any parameter struct needs. Structs of this size are passed in memory, so the
    callee sees its own shorter struct at the start."""

    _fields_ = (("words", C.c_uint64 * 64),)

    def int32(self, offset: int) -> Any:
        return C.c_int32.from_address(C.addressof(self) + offset)

    def boolean(self, offset: int) -> Any:
        return C.c_bool.from_address(C.addressof(self) + offset)

    def float32(self, offset: int) -> Any:
        return C.c_float.from_address(C.addressof(self) + offset)


def find_cb_eval(p: Parameters) -> int:
    """Offset of ``cb_eval``: a null pointer pair after a float that is -1 or 0 by default
    (``defrag_thold``), before the types of the K and V cache, F16 (1) both."""
    found = [
        at
        for at in range(32, 200, 8)
        if p.words[at // 8] == 0
        and p.words[at // 8 + 1] == 0
        and p.int32(at + 16).value == 1
        and p.int32(at + 20).value == 1
        and p.float32(at - 4).value in (-1.0, 0.0)
    ]
    sizes = tuple(p.int32(4 * i).value for i in range(4))
    if len(found) != 1 or sizes != (512, 2048, 512, 1):
        raise InputError(
            "this libllama lays out llama_context_params differently from what capture knows; use "
            "the one of the capture extra: pip install 'uvmsim[capture]'"
        )
    return found[0]


def find_n_gpu_layers(p: Parameters) -> int:
    """Offset of ``n_gpu_layers``: before ``split_mode``, which is 1 (by layer) by default."""
    for at in range(0, 32, 4):
        if p.int32(at + 4).value == 1 and p.int32(at).value in (-1, 0, 99, 999):
            return at
    raise InputError(
        "this libllama lays out llama_model_params differently from what capture knows; use the "
        "one of the capture extra: pip install 'uvmsim[capture]'"
    )


class _Override(C.Structure):
    """`struct llama_model_tensor_buft_override`"""

    _fields_ = (("pattern", C.c_char_p), ("buft", C.c_void_p))


def expert_overrides(library: Any, n_blocks: int) -> Any:
    """An array that keeps the experts of the first ``n_blocks`` blocks in host memory; to be kept
    alive as long as the model."""
    host = library.c.ggml_backend_cpu_buffer_type
    host.restype, host.argtypes = C.c_void_p, ()
    entries = [_Override((_EXPERTS % i).encode(), host()) for i in range(n_blocks)]
    return (_Override * (n_blocks + 1))(*entries)  # the last one is zero: the end


def set_overrides(p: Parameters, n_gpu_layers_at: int, overrides: Any) -> None:
    """``tensor_buft_overrides`` is the second of two pointers before ``n_gpu_layers``."""
    if n_gpu_layers_at != 16 or p.words[0] or p.words[1]:
        raise InputError(f"--n-cpu-moe: this libllama cannot place tensors one by one; {_OWN}")
    p.words[1] = C.addressof(overrides)


def set_no_mmap(p: Parameters, n_gpu_layers_at: int) -> None:
    """``load_mode`` comes after ``split_mode`` and is -1 (auto) by default; 0 reads the file."""
    mode = p.int32(n_gpu_layers_at + 8)
    if mode.value != -1:
        raise InputError(f"--no-mmap: this libllama has no load mode; {_OWN}")
    mode.value = 0


def set_vocab_only(p: Parameters, n_gpu_layers_at: int) -> bool:
    """Load no weights; False where the library does not show how. ``vocab_only`` is the first of the
    booleans at the end, of which only later ones are set by default."""
    for at in range(n_gpu_layers_at + 24, n_gpu_layers_at + 72, 8):
        # Four are in every build; behind the last there is whatever was on the stack.
        booleans = [(p.words[at // 8] >> (8 * i)) & 255 for i in range(4)]
        if any(booleans) and max(booleans) == 1 and booleans[0] == 0:
            p.boolean(at).value = True
            return True
    return False


def find_moe_cache(library: Any, p: Parameters, cb_eval_at: int) -> int:
    """Offset of ``moe_cache_size``: after the types of K and V, before the abort callback's two
    pointers and the booleans. Builds without it have the pointers there."""
    at = cb_eval_at + 24
    zeros = all(p.words[at // 8 + i] == 0 for i in range(3))
    booleans = [(p.words[at // 8 + 3] >> (8 * i)) & 255 for i in range(6)]
    here = zeros and any(booleans) and max(booleans) == 1
    if not here or not library.file.mentions(b"llama_moe_cache"):
        raise InputError(
            "--moe-cache-mib: this libllama has no expert cache (llama.cpp b11549 has)"
        )
    return at


def find_swa_full(p: Parameters, cb_eval_at: int) -> int:
    """Offset of ``swa_full``, the fifth boolean; they are 0 1 1 1 1 0 by default, behind the abort
    callback's two pointers."""
    for at in (cb_eval_at + 40, cb_eval_at + 48):  # without and with moe_cache_size
        booleans = [(p.words[at // 8] >> (8 * i)) & 255 for i in range(6)]
        if p.words[at // 8 - 2] == p.words[at // 8 - 1] == 0 and booleans == [0, 1, 1, 1, 1, 0]:
            return at + 4
    raise InputError(
        "this libllama does not show how a sliding window's cache is made as small as the window; "
        f"{_OWN}"
    )
