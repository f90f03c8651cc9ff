"""What both halves of the evaluation callback share: an array of words, and the heads of a tape.

The compiled half (`traces.capture.node_filter`) is given the array as its user data. All is int64.
"""

from __future__ import annotations

import ctypes as C

import numpy as np

from traces.capture.ggml_tensor import Tensor

TOKENS, POSITIONS, IDS, WEIGHTS, SCORES, GRAPH = range(6)
HEAD = 8
"""Words of a head. Of a copy: what it is (one of the above), layer, ne0, ne1, nb1, ggml type, place
in the graph's payload (bytes), block of kept memory plus 1 until it is read. Of a graph, before its
copies: GRAPH, number of copies, start and end (ns of CLOCK_MONOTONIC), place of its payload on the
tape, size of that, 0, 0."""

ADD_MEMORY, MAKE_ROOM, LOOK_AT = 1, 2, 3
"""What Python is asked for."""

(
    THOROUGH,  # Python does it all
    STOPS,  # stop at every tensor that is wanted
    WANT_SCORES,
    WANT_POSITIONS,
    SHOW_NODES,  # Python looks at every node too
    HEADS,  # address, number of heads that fit, heads there are
    HEADS_ROOM,
    HEADS_USED,
    PAYLOAD,  # address, bytes that fit, bytes there are
    PAYLOAD_ROOM,
    PAYLOAD_USED,
    OPEN,  # the current graph's head, plus 1; 0 where there is none
    LOOK,  # inputs of the graph that are still to be seen: 1 tokens, 2 positions
    LAYERS,  # copies of the current graph that belong to a layer
    LAST,  # the node asked about before
    ASKED,  # nodes asked about, and how many when memory was last exchanged
    EXCHANGED,
    LATE,  # a view was pointed to kept memory long after its root was
    REQUEST,
    NEED,
    NEED_TYPE,
    BLOCKS,  # blocks of kept memory
    SELF,  # the user data's own address
) = range(23)
TYPE, BUFFER, BASE, SIZE, TAKEN, WHOLE = range(6)
BLOCK = 8
"""Words of a block of kept memory: buffer type, buffer, address, bytes, bytes taken by the current
graph, a tensor that is the whole of it."""
MOST_BLOCKS = 32
BLOCKS_AT = 24
WORD = BLOCKS_AT + BLOCK * MOST_BLOCKS
STRUCT_AT = WORD + 8
STRUCT = C.sizeof(Tensor) // 8
WORDS = STRUCT_AT + 2 * STRUCT
"""A place to put single words, two structs of tensors, and the length of it all."""


def user_data() -> np.ndarray:
    """The callback's user data, int64, without a tape."""
    words = np.zeros(WORDS, np.int64)
    words[SELF], words[WANT_POSITIONS] = words.ctypes.data, 1
    return words
