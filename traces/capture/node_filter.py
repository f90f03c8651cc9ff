"""The compiled half of the evaluation callback.

A decode graph has over a thousand nodes. Being asked about each costs Python about 0.7 µs, and the
stops cost it more: between two of them the model's weights went through every cache, so that the
interpreter runs cold (0.13 ms a stop instead of 0.01). So both the question and the copying are
done by a few compiled instructions, and Python reads the copies after the graph has run. It is
called for the first nodes of a graph, which show its inputs, and for what does not fit this path.
"""

from __future__ import annotations

import ctypes as C
from functools import lru_cache
from typing import Any

import numpy as np

from traces.capture.ggml_tensor import NAME, SOURCES, VIEWED, Tensor

NOTHING_MORE, INPUTS, ALL_NODES = 0, 1, 2
"""What Python wants to be asked about besides the first node of a graph: nothing, nodes that may
have the graph's inputs as second operand, every node (then it also does the copying)."""

IDS, SCORES, PROBS = range(3)
HEADER = 8
"""Words of eight bytes before each copy on the tape: layer, IDS/SCORES/PROBS, ne0, ne1, nb1, type,
bytes of the copy (a multiple of 8), 0."""

WANTED, TAPE, ROOM, USED, _SELF = range(5)
"""Words of the user data: one of NOTHING_MORE ..; address, size and used bytes of the tape; the
user data's own address. Behind them is room for a header and for a copy of a tensor's struct."""
_HEADER_AT = 5
_STRUCT_AT = _HEADER_AT + HEADER
_STRUCT = C.sizeof(Tensor) // 8
_HOPS = 8
"""Operations between the unbiased router probabilities and the argsort, at most (group masks)."""


def user_data() -> np.ndarray:
    """The callback's user data, int64; wants all nodes, has no tape."""
    words = np.zeros(_STRUCT_AT + _STRUCT, np.int64)
    words[WANTED], words[_SELF] = ALL_NODES, words.ctypes.data
    return words


@lru_cache
def compile_filter(decide: int, tensor_get: int) -> Any:
    """A C function with the signature of the evaluation callback.

    ``decide`` is the address of a function of that signature, called with the same arguments where
    Python has to decide; ``tensor_get`` that of `ggml_backend_tensor_get`.
    """
    from numba import carray, cfunc, njit, types

    python = C.CFUNCTYPE(C.c_bool, C.c_void_p, C.c_bool, C.c_void_p)(decide)
    # Addresses are plain numbers here, which compiled code can compute with.
    get = C.CFUNCTYPE(None, C.c_int64, C.c_int64, C.c_int64, C.c_int64)(tensor_get)
    get_of = C.CFUNCTYPE(None, C.c_void_p, C.c_int64, C.c_int64, C.c_int64)(tensor_get)
    memcpy = C.cast(C.CDLL(None).memcpy, C.c_void_p).value or 0
    copy = C.CFUNCTYPE(C.c_int64, C.c_int64, C.c_int64, C.c_int64)(memcpy)
    # The struct is looked at as words of eight bytes; names are compared a word at a time.
    name, view, source = NAME // 8, VIEWED // 8, SOURCES // 8
    ne, nb = Tensor.ne.offset // 8, Tensor.nb.offset // 8
    ffn_moe, argsort, inp_embd, topk, probs, embd = (
        int.from_bytes(s, "little")
        for s in (b"ffn_moe_", b"argsort-", b"inp_embd", b"topk-", b"probs-", b"embd\0")
    )
    five, six = (1 << 40) - 1, (1 << 48) - 1

    @njit
    def number(words, at):  # type: ignore[no-untyped-def]
        """The number that ends the name at letter ``at``; -1 where anything else is there."""
        value, i = 0, at
        while i < at + 6:
            letter = (words[name + i // 8] >> (8 * (i % 8))) & 255
            if letter == 0:
                return value if i > at else -1
            if letter < 48 or letter > 57:  # a view made from a tensor is called "... (view)"
                return -1
            value, i = 10 * value + letter - 48, i + 1
        return -1

    @njit
    def announce(words, layer, kind, data):  # type: ignore[no-untyped-def]
        """Write a copy's header to the tape; returns the copy's size, -1 where it cannot be."""
        n0, n1, b1 = words[ne], words[ne + 1], words[nb + 1]
        if words[ne + 2] != 1 or words[ne + 3] != 1 or words[nb] != 4:
            return -1
        n = b1 * (n1 - 1) + 4 * n0 if n0 > 0 and n1 > 0 else 0
        padded = (n + 7) // 8 * 8
        if data[USED] + 8 * HEADER + padded > data[ROOM]:
            return -1
        header = data[_HEADER_AT:_STRUCT_AT]
        header[0], header[1], header[2], header[3] = layer, kind, n0, n1
        header[4], header[5], header[6] = b1, words[0] & 0xFFFFFFFF, padded
        copy(data[TAPE] + data[USED], data[_SELF] + 8 * _HEADER_AT, 8 * HEADER)
        data[USED] += 8 * HEADER + padded
        return n

    @njit
    def record(tensor, words, layer, data):  # type: ignore[no-untyped-def]
        """Copy ids, scores and, where they are others, probabilities; False where it cannot be."""
        n = announce(words, layer, IDS, data)
        if n < 0 or words[view] == 0:
            return False
        if n:
            get_of(tensor, data[TAPE] + data[USED] - (n + 7) // 8 * 8, 0, n)
        found = data[_STRUCT_AT : _STRUCT_AT + _STRUCT]
        at = data[_SELF] + 8 * _STRUCT_AT
        copy(at, words[view], 8 * _STRUCT)
        if found[name] != ffn_moe or found[name + 1] != argsort:
            return False
        kind, address = SCORES, found[source]
        for _ in range(_HOPS):
            if address == 0:
                return False
            copy(at, address, 8 * _STRUCT)
            is_probs = found[name] == ffn_moe and found[name + 1] & six == probs
            is_probs = is_probs and number(found, 14) == layer
            if kind == SCORES or is_probs:
                n = announce(found, layer, kind, data)
                if n < 0:
                    return False
                if n:
                    get(address, data[TAPE] + data[USED] - (n + 7) // 8 * 8, 0, n)
                kind = PROBS
            if is_probs:
                return True
            address = found[source]
        return False

    @cfunc(types.boolean(types.voidptr, types.boolean, types.voidptr))
    def on_node(tensor, ask, user):  # type: ignore[no-untyped-def]
        words = carray(tensor, (_STRUCT,), np.int64)
        data = carray(user, (_STRUCT_AT + _STRUCT,), np.int64)
        if data[WANTED] == ALL_NODES:
            return python(tensor, ask, user)
        if words[name] == ffn_moe and words[name + 1] & five == topk:
            layer = number(words, 13)
            if ask:
                return layer >= 0
            used = data[USED]
            if not record(tensor, words, layer, data):
                data[USED] = used
                return python(tensor, ask, user)
            return True
        if not ask:
            return True
        if words[name] & five == embd or words[name] == inp_embd:
            return python(tensor, ask, user)
        if data[WANTED] == INPUTS and words[source + 1] != 0:
            return python(tensor, ask, user)
        return False

    return on_node
