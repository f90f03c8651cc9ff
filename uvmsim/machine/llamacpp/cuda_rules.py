"""What llama.cpp's CUDA back end asks of the allocator and the scheduler.

Sources, llama.cpp b11549: `ggml/src/ggml-cuda/ggml-cuda.cu`
(``ggml_backend_cuda_buffer_type_get_alloc_size``, ``..._device_supports_op``,
``..._device_offload_op``) and `fattn.cu` (``ggml_cuda_get_best_fattn_kernel``,
``ggml_cuda_flash_attn_ext_get_alloc_size``).
"""

from __future__ import annotations

from uvmsim.machine.llamacpp.ggml import Tensor, row_size

ALIGNMENT = 128
"""Of device buffers."""
HOST_ALIGNMENT = 32
"""Of host buffers, page-locked ones too."""
ROW_PADDING = 512
"""The last row of a quantised matrix is padded to whole tiles (MATRIX_ROW_PADDING)."""
OFFLOAD_BATCH = 32
"""From so many tokens on, work on weights in host memory is done on the GPU."""
NO_FLASH = 0
"""In place of a compute capability: a build without attention kernels (``-DGGML_CUDA_FA=OFF``)."""
_KV_TYPES = frozenset(("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"))
_EQUAL_HEADS = frozenset((40, 64, 72, 80, 96, 112, 128, 256))
_NO_ROWS = frozenset(("NVFP4", "TQ1_0", "TQ2_0", "Q8_K"))


def host_size(t: Tensor) -> int:
    """Bytes a tensor takes in a host buffer."""
    return t.n_bytes


def device_size(t: Tensor, cc: int) -> int:
    """Bytes a tensor takes in a device buffer, before alignment. ``cc``: compute capability x 100."""
    size = _attention_size(t, cc) if t.op == "FLASH_ATTN_EXT" else t.n_bytes
    return size + row_padding(t.type, t.ne[0]) if t.quantised else size


def row_padding(kind: str, n: int) -> int:
    """Bytes past the end of a quantised tensor with rows of ``n``."""
    rest = n % ROW_PADDING
    return row_size(kind, ROW_PADDING - rest) if rest else 0


def supports(op: Tensor, cc: int) -> bool:
    """Whether the device runs an operation; all others of these graphs it does."""
    if op.op in ("MUL_MAT", "MUL_MAT_ID"):
        a, b = op.src[0], op.src[1]
        assert a is not None and b is not None
        return not (b.type == "F16" and a.type != "F16")
    if op.op == "GET_ROWS":
        a = op.src[0]
        assert a is not None
        if a.type in ("IQ4_NL", "MXFP4"):
            return a.ne[0] % 256 == 0
        return a.type not in _NO_ROWS
    if op.op == "FLASH_ATTN_EXT":
        return attention_kernel(op, cc) is not None
    return True


def offloads(op: Tensor) -> bool:
    """Whether the device takes an operation although its weights lie in host memory."""
    if op.op == "GET_ROWS":
        return False
    if op.op == "MUL_MAT":
        n = op.ne[1]
    elif op.op in ("MUL_MAT_ID", "ROPE"):
        n = op.ne[2]
    else:
        n = op.ne[1] * op.ne[2] * op.ne[3]
    return n >= OFFLOAD_BATCH


def attention_kernel(op: Tensor, cc: int) -> str | None:
    """``"vector"``, ``"matrix"`` (tensor cores or tiles) or None: no flash attention for this shape."""
    if cc == NO_FLASH:
        return None
    q, k, v, mask = op.src[:4]
    assert q is not None and k is not None and v is not None
    ratio = q.ne[2] // k.ne[2]
    grouped = ratio >= 2 and mask is not None and k.ne[1] % 256 == 0
    for t in (q, k, v, mask):
        if t is not None and not t.quantised:
            grouped = grouped and not any(t.nb[i] % 16 for i in (1, 2, 3))
    if not _heads_fit(k.ne[0], v.ne[0], ratio, grouped) or not {k.type, v.type} <= _KV_TYPES:
        return None
    tokens, head = q.ne[1], q.ne[0]
    if not (head <= 256 and head % 64 == 0 and head != 192 and k.ne[1] % 256 == 0):
        return "matrix"
    if k.quantised or v.quantised:
        vector = tokens <= (2 if cc >= 890 else 1)
    else:
        long = ratio > 4 and (head >= 256 or k.ne[1] >= 8192)
        vector = cc >= 890 and tokens == 1 and q.ne[3] == 1 and not long
    return "vector" if vector or (not grouped and tokens == 1) else "matrix"


def _heads_fit(k: int, v: int, ratio: int, grouped: bool) -> bool:
    if k in _EQUAL_HEADS:
        return v == k
    wanted = {192: (128, 8), 320: (256, 32), 512: (512, 1), 576: (512, 1)}.get(k)
    return wanted is not None and v == wanted[0] and grouped and ratio % wanted[1] == 0


def _attention_size(op: Tensor, cc: int) -> int:
    """The result, and copies of a cache that is not F16 as F16 behind it."""
    kernel, end = attention_kernel(op, cc), op.n_bytes
    k, v = op.src[1], op.src[2]
    assert k is not None and v is not None
    same = v.view_src is not None and v.view_src is k.view_src and v.view_offset == k.view_offset
    for t, shared in ((k, False), (v, same)):
        needed = kernel == "matrix" or (kernel == "vector" and t.type == "F32")
        if needed and t.type != "F16" and not shared:
            end = -(-end // ALIGNMENT) * ALIGNMENT + 2 * t.n_elements
    return end
