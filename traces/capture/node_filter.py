"""The compiled half of the evaluation callback.

A decode graph has over a thousand nodes, and Python takes about 0.7 µs to be asked about one. So
the questions are answered, and what is wanted is copied, by a few compiled instructions; Python
reads the copies after the graph has run (`traces.capture.tape`).

**No stop in the middle.** The scheduler computes all nodes up to a wanted one together
(ggml-backend.cpp, `ggml_backend_sched_compute_splits`), and on a GPU every such stop ends a CUDA
graph, waits for the device and takes fused kernels apart. But it asks about a whole range of nodes
before it computes any of them. So where a tensor is wanted, its memory is exchanged in the asking
phase for some that is kept for it (`traces.capture.kept_memory`): no later node can use that again,
and all of it is read at once when the graph has run. What the graph computes stays the same: its
operations find their operands through the tensors. Rules that follow from ggml:

- Views point into their root's memory, so they are pointed there anew when they are asked about;
  a view belongs to its root's back end and starts no split, so that is before anything reads it.
- A graph that llama.cpp uses again (llama-graph.cpp, `can_reuse`) asks again, and its tensors are
  where they were put before; the same goes for CUDA's graphs, which are recorded anew when a
  pointer in them changes (ggml-cuda.cu, `ggml_cuda_graph_update_required`). Memory is handed out in
  the order of the nodes, so a graph that is built anew gets the same addresses too.
- CUDA's fused top-k kernel (topk-moe.cu) writes ids and final weights, nothing in between.

What cannot be kept so (no memory left, a tensor of an unknown form, the scores of all experts) is a
stop, and copied there.
"""

from __future__ import annotations

import ctypes as C
from functools import lru_cache
from typing import Any

import numpy as np

from traces.capture.filter_state import (
    ADD_MEMORY,
    ASKED,
    BASE,
    BLOCK,
    BLOCKS,
    BLOCKS_AT,
    BUFFER,
    EXCHANGED,
    GRAPH,
    HEAD,
    HEADS,
    HEADS_ROOM,
    HEADS_USED,
    IDS,
    LAST,
    LATE,
    LAYERS,
    LOOK,
    LOOK_AT,
    MAKE_ROOM,
    NEED,
    NEED_TYPE,
    OPEN,
    PAYLOAD,
    PAYLOAD_ROOM,
    PAYLOAD_USED,
    POSITIONS,
    REQUEST,
    SCORES,
    SELF,
    SHOW_NODES,
    SIZE,
    STOPS,
    STRUCT,
    STRUCT_AT,
    TAKEN,
    THOROUGH,
    TOKENS,
    TYPE,
    WANT_POSITIONS,
    WANT_SCORES,
    WEIGHTS,
    WHOLE,
    WORD,
    WORDS,
)
from traces.capture.ggml_tensor import NAME, SOURCES, VIEWED, Tensor

ALIGNED = 256
"""Kept memory is handed out in multiples of this; CUDA wants 128."""
_FAR = 256
"""Nodes after an exchange within which all views of the tensor are asked about."""
_CLOCK_MONOTONIC = 1


@lru_cache
def compile_filter(decide: int, tensor_get: int, buffer_type: int) -> Any:
    """A C function with the signature of the evaluation callback.

    ``decide`` is the address of a function of that signature, called where Python has to do
    something; the others are those of `ggml_backend_tensor_get` and `ggml_backend_buffer_get_type`.
    Called without a tensor it closes the current graph: what was kept is read.
    """
    from numba import carray, cfunc, njit, types

    python = C.CFUNCTYPE(C.c_bool, C.c_void_p, C.c_bool, C.c_void_p)(decide)
    # Addresses are plain numbers here, which compiled code can compute with.
    get = C.CFUNCTYPE(None, C.c_int64, C.c_int64, C.c_int64, C.c_int64)(tensor_get)
    type_of = C.CFUNCTYPE(C.c_int64, C.c_int64)(buffer_type)
    libc = C.CDLL(None)
    copy = C.CFUNCTYPE(C.c_int64, C.c_int64, C.c_int64, C.c_int64)(_address(libc.memcpy))
    # memcpy returns its target: of no byte, that is a pointer as a number.
    address_of = C.CFUNCTYPE(C.c_int64, C.c_void_p, C.c_int64, C.c_int64)(_address(libc.memcpy))
    clock = C.CFUNCTYPE(C.c_int32, C.c_int32, C.c_int64)(_address(libc.clock_gettime))
    # The struct is looked at as words of eight bytes; names are compared a word at a time.
    name, view, source = NAME // 8, VIEWED // 8, SOURCES // 8
    offset, place = Tensor.view_offs.offset // 8, Tensor.data.offset // 8
    buffer, op = Tensor.buffer.offset // 8, Tensor.op.offset // 8
    ne, nb = Tensor.ne.offset // 8, Tensor.nb.offset // 8
    ffn_moe, inp_embd, embd, topk, weights, staged, norm, softmax, scaled = (
        int.from_bytes(s, "little")
        for s in (
            *(b"ffn_moe_", b"inp_embd", b"embd\0", b"topk-"),
            *(b"weights-", b"weights_", b"norm-", b"softmax-", b"scaled-"),
        )
    )
    five, seven = (1 << 40) - 1, (1 << 56) - 1
    inp_toke, inp_pos = (int.from_bytes(s, "little") for s in (b"inp_toke", b"inp_pos"))

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
    def wanted(words):  # type: ignore[no-untyped-def]
        """IDS or WEIGHTS and the layer; -1 twice for any other node."""
        if words[name] != ffn_moe:
            return -1, -1
        second = words[name + 1]
        if second & five == topk:
            return IDS, number(words, 13)
        if second == weights:
            return WEIGHTS, number(words, 16)
        if second == staged:
            third = words[name + 2]
            if third & five == norm:
                return WEIGHTS, number(words, 21)
            if third & seven == scaled:
                return WEIGHTS, number(words, 23)
            if third == softmax:
                return WEIGHTS, number(words, 24)
        return -1, -1

    @njit
    def has_name(words, text, mask):  # type: ignore[no-untyped-def]
        """Whether up to eight letters occur in the name: copies are called "CUDA0#inp_pos#0"."""
        for at in range(48):
            word, shift = name + at // 8, 8 * (at % 8)
            letters = (words[word] >> shift) & ((1 << (64 - shift)) - 1) if shift else words[word]
            if shift:
                letters |= words[word + 1] << (64 - shift)
            if letters & mask == text:
                return True
        return False

    @njit
    def load(data, half, address):  # type: ignore[no-untyped-def]
        """The struct at an address, as words."""
        at = STRUCT_AT + half * STRUCT
        copy(data[SELF] + 8 * at, address, 8 * STRUCT)
        return data[at : at + STRUCT]

    @njit
    def peek(data, address):  # type: ignore[no-untyped-def]
        copy(data[SELF] + 8 * WORD, address, 8)
        return data[WORD]

    @njit
    def poke(data, address, value):  # type: ignore[no-untyped-def]
        data[WORD] = value
        copy(address, data[SELF] + 8 * WORD, 8)

    @njit
    def now(data):  # type: ignore[no-untyped-def]
        clock(_CLOCK_MONOTONIC, data[SELF] + 8 * WORD)
        return data[WORD] * 1_000_000_000 + data[WORD + 1]

    @njit
    def write_head(data, at, a, b, c, d, e, f, g, h):  # type: ignore[no-untyped-def]
        data[WORD], data[WORD + 1], data[WORD + 2], data[WORD + 3] = a, b, c, d
        data[WORD + 4], data[WORD + 5], data[WORD + 6], data[WORD + 7] = e, f, g, h
        copy(data[HEADS] + 8 * HEAD * at, data[SELF] + 8 * WORD, 8 * HEAD)

    @njit
    def head_word(data, at, i):  # type: ignore[no-untyped-def]
        return data[HEADS] + 8 * (HEAD * at + i)

    @njit
    def room(data, n, tensor, user):  # type: ignore[no-untyped-def]
        """Address of ``n`` free bytes at the end of the payload; 0 where there are none."""
        padded = (n + 7) // 8 * 8
        if data[PAYLOAD_USED] + padded > data[PAYLOAD_ROOM]:
            data[REQUEST], data[NEED] = MAKE_ROOM, padded
            python(tensor, False, user)
            data[REQUEST] = 0
            if data[PAYLOAD_USED] + padded > data[PAYLOAD_ROOM]:
                return 0
        at = data[PAYLOAD] + data[PAYLOAD_USED]
        data[PAYLOAD_USED] += padded
        return at

    @njit
    def announce(data, kind, layer, words, at, block):  # type: ignore[no-untyped-def]
        """Write the head of a copy; False where none fits or the tensor has another form."""
        if data[HEADS_USED] >= data[HEADS_ROOM]:
            return False
        n0, n1, stride = words[ne], words[ne + 1], words[nb + 1]
        if kind == WEIGHTS:  # [k, n] or [1, k, n]; contiguous, and shaped like the ids
            n0, n1 = words[ne] * words[ne + 1] * words[ne + 2], 1
            stride = 4 * n0
            if words[nb + 3] != stride:
                return False
        elif words[ne + 2] != 1:
            return False
        if words[nb] != 4 or words[ne + 3] != 1:
            return False
        type_ = words[0] & 0xFFFFFFFF
        write_head(data, data[HEADS_USED], kind, layer, n0, n1, stride, type_, at, block)
        data[HEADS_USED] += 1
        if kind >= IDS:
            data[LAYERS] += 1
        return True

    @njit
    def span(words):  # type: ignore[no-untyped-def]
        """Bytes from a tensor's first to its last element; 0 for an empty one."""
        n = 4
        for i in range(4):
            if words[ne + i] <= 0:
                return 0
            n += (words[ne + i] - 1) * words[nb + i]
        return n

    @njit
    def record(data, kind, layer, address, words, tensor, user):  # type: ignore[no-untyped-def]
        """Copy a tensor that has been computed to the tape."""
        begin = peek(data, head_word(data, data[OPEN] - 1, 4))
        n = span(words)
        at = room(data, n, tensor, user)
        if at == 0:
            return False
        if n:
            get(address, at, 0, n)
        return announce(data, kind, layer, words, at - data[PAYLOAD] - begin, 0)

    @njit
    def block_for(data, buft, n, tensor, user):  # type: ignore[no-untyped-def]
        """A block of kept memory with room for ``n`` bytes; -1 where there is none."""
        for attempt in range(2):
            for i in range(data[BLOCKS]):
                b = BLOCKS_AT + BLOCK * i
                if data[b + TYPE] == buft and data[b + TAKEN] + n <= data[b + SIZE]:
                    return i
            if attempt == 0:
                data[REQUEST], data[NEED], data[NEED_TYPE] = ADD_MEMORY, n, buft
                python(tensor, True, user)
                data[REQUEST] = 0
        return -1

    @njit
    def keep(data, kind, layer, tensor, words, user):  # type: ignore[no-untyped-def]
        """Exchange the memory of a tensor not yet computed; False where that cannot be."""
        address = data[LAST]
        root_address = words[view] if words[view] != 0 else address
        root = load(data, 1, root_address)
        if root[op] & 0xFFFFFFFF == 0 or root[view] != 0 or root[buffer] == 0:
            return False
        size = span(words)
        if size == 0:
            return announce(data, kind, layer, words, 0, 0)
        n = 4
        for i in range(4):  # contiguous
            if root[nb + i] != n:
                return False
            n *= root[ne + i]
        padded = (n + ALIGNED - 1) // ALIGNED * ALIGNED
        found = -1
        for i in range(data[BLOCKS]):
            if data[BLOCKS_AT + BLOCK * i + BUFFER] == root[buffer]:
                found = i
        if found >= 0:  # a graph that is used again
            at = root[place] - data[BLOCKS_AT + BLOCK * found + BASE]
        else:
            found = block_for(data, type_of(root[buffer]), padded, tensor, user)
            if found < 0:
                return False
            at = data[BLOCKS_AT + BLOCK * found + TAKEN]
        b = BLOCKS_AT + BLOCK * found
        # In a view's place the head says where its first element is.
        if not announce(data, kind, layer, words, at + words[offset], found + 1):
            return False
        data[b + TAKEN] = max(data[b + TAKEN], at + padded)
        new = data[b + BASE] + at
        poke(data, root_address + 8 * place, new)
        poke(data, root_address + 8 * buffer, data[b + BUFFER])
        if words[view] != 0:
            poke(data, address + 8 * place, new + words[offset])
            poke(data, address + 8 * buffer, data[b + BUFFER])
        data[EXCHANGED] = data[ASKED]
        return True

    @njit
    def follow(data, words):  # type: ignore[no-untyped-def]
        """Point a view to where its root is now, where that is kept memory."""
        base, held = peek(data, words[view] + 8 * place), 0
        if words[place] == base + words[offset]:
            return
        held = peek(data, words[view] + 8 * buffer)
        for i in range(data[BLOCKS]):
            if data[BLOCKS_AT + BLOCK * i + BUFFER] == held:
                poke(data, data[LAST] + 8 * place, base + words[offset])
                poke(data, data[LAST] + 8 * buffer, held)
                if data[ASKED] - data[EXCHANGED] > _FAR:
                    data[LATE] = 1
                return

    @njit
    def close(data, tensor, user):  # type: ignore[no-untyped-def]
        """Read what was kept for the current graph, which has run."""
        if data[OPEN] == 0:
            return
        at = data[OPEN] - 1
        poke(data, head_word(data, at, 3), now(data))
        begin = peek(data, head_word(data, at, 4))
        for i in range(data[BLOCKS]):
            b = BLOCKS_AT + BLOCK * i
            n = data[b + TAKEN]
            data[b + TAKEN] = 0
            if n == 0:
                continue
            to = room(data, n, tensor, user)
            if to == 0:
                return
            get(data[b + WHOLE], to, 0, n)
            for h in range(at + 1, data[HEADS_USED]):
                if peek(data, head_word(data, h, 7)) == i + 1:
                    where = peek(data, head_word(data, h, 6)) + to - data[PAYLOAD] - begin
                    poke(data, head_word(data, h, 6), where)
                    poke(data, head_word(data, h, 7), 0)
        poke(data, head_word(data, at, 1), data[HEADS_USED] - at - 1)
        poke(data, head_word(data, at, 5), data[PAYLOAD_USED] - begin)
        data[OPEN] = 0

    @njit
    def start(data, tensor, user):  # type: ignore[no-untyped-def]
        """A graph begins; both names of the first node may occur in one."""
        if data[OPEN] != 0 and data[LAYERS] == 0:
            return
        close(data, tensor, user)
        if data[HEADS_USED] + 4096 > data[HEADS_ROOM]:
            data[REQUEST], data[NEED] = MAKE_ROOM, 0
            python(tensor, False, user)
            data[REQUEST] = 0
        time = now(data)
        write_head(data, data[HEADS_USED], GRAPH, 0, time, time, data[PAYLOAD_USED], 0, 0, 0)
        data[HEADS_USED] += 1
        data[OPEN], data[LAYERS], data[ASKED] = data[HEADS_USED], 0, 0
        data[LOOK] = 3 if data[WANT_POSITIONS] else 1

    @njit
    def look(data, words, tensor, user):  # type: ignore[no-untyped-def]
        """Inputs of the graph are second operands of its first nodes, and filled already."""
        found = load(data, 0, words[source + 1])
        address = words[source + 1]
        if data[LOOK] & 1 and has_name(found, inp_toke, -1):
            data[LOOK] &= 2
            record(data, TOKENS, 0, address, found, tensor, user)
        elif data[LOOK] & 2 and has_name(found, inp_pos, seven):
            data[LOOK] &= 1
            record(data, POSITIONS, 0, address, found, tensor, user)

    @njit
    def on_stop(data, tensor, words, user):  # type: ignore[no-untyped-def]
        kind, layer = wanted(words)
        if kind < 0 or data[OPEN] == 0:
            return
        address = data[LAST]
        found = record(data, kind, layer, address, words, tensor, user)
        if not found or kind != IDS or not data[WANT_SCORES] or words[view] == 0:
            return
        chosen_by = peek(data, words[view] + 8 * source)
        if chosen_by:
            scores = load(data, 0, chosen_by)
            record(data, SCORES, layer, chosen_by, scores, tensor, user)

    @cfunc(types.boolean(types.voidptr, types.boolean, types.voidptr))
    def on_node(tensor, ask, user):  # type: ignore[no-untyped-def]
        data = carray(user, (WORDS,), np.int64)
        address = address_of(tensor, 0, 0)
        if address == 0:
            close(data, tensor, user)
            return True
        if data[THOROUGH]:
            return python(tensor, ask, user)
        words = carray(tensor, (STRUCT,), np.int64)
        if not ask:
            data[LAST] = address
            on_stop(data, tensor, words, user)
            return True
        before, data[LAST] = data[LAST], address
        data[ASKED] += 1
        if words[name] & five == embd or words[name] == inp_embd:
            start(data, tensor, user)
        if data[OPEN] == 0:
            return False
        if data[SHOW_NODES]:
            data[REQUEST] = LOOK_AT
            python(tensor, True, user)
            data[REQUEST] = 0
        if data[LOOK] and words[source + 1] != 0:
            look(data, words, tensor, user)
        kind, layer = wanted(words)
        if layer >= 0:
            stop = data[STOPS] or (kind == IDS and data[WANT_SCORES])
            # A root that was asked about just now has not been computed yet.
            fresh = words[view] == 0 or words[view] == before
            return stop or not fresh or not keep(data, kind, layer, tensor, words, user)
        if words[view] != 0:
            follow(data, words)
        return False

    return on_node


def _address(function: Any) -> int:
    return C.cast(function, C.c_void_p).value or 0
