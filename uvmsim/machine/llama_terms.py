"""The constants of llama.cpp's time on a machine: what each is paid for, and in which unit.

A run of llama.cpp is a sum: every *term* is counted from the graph (`uvmsim.machine.llamacpp.work`),
its constant is found by calibration, and time is counts times constants. Terms of a tensor type carry
it behind a dot (``row.Q4_K``); those of the CPU begin with ``cpu.``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from traces.errors import InputError
from uvmsim.machine.model_spec import TYPES

MEMORY, COMPUTE, CPU, PINNED, PAGEABLE, REMOTE, FIXED = (
    "memory_bytes_per_s", "compute_flops", "cpu_bytes_per_s", "h2d_bytes_per_s",
    "pageable_h2d_bytes_per_s", "zero_copy_bytes_per_s", "",
)  # fmt: skip
"""The quantity of a machine that a constant is inversely proportional to; FIXED: to none."""
QUANTITIES = (MEMORY, COMPUTE, CPU, PINNED, PAGEABLE, REMOTE)
ROW, BATCH, CPU_ROW, CPU_BATCH = "row", "batch", "cpu_row", "cpu_batch"
LINK, MAPPED, ALONE = "link", "mapped", "alone"
"""Groups of terms that one factor can sharpen for a model: a token on the GPU, a prompt there, the same
on the CPU, copies from page-locked memory and from a mapped file; no run of a model's own tells of
those that stand alone."""
_ROWS = (
    "step",
    "kernel",
    "row",
    "row_experts",
    "attend",
    "managed_kernel",
    "row_depth",
    "output",
    "row_tile",
    "row_tiles",
    "argsort",
)


class Term(NamedTuple):
    """``unit``: what is counted, one constant a unit; ``with_``: what it scales with."""

    unit: str
    meaning: str
    with_: str = FIXED
    typed: bool = False

    def group(self, key: str) -> str:
        """Which of the groups a constant belongs to."""
        stem = key.removeprefix("cpu.").partition(".")[0]
        if key.startswith("cpu.") or stem in ("split", "batch_split"):
            return CPU_ROW if stem in (*_ROWS, "node", "split") else CPU_BATCH
        if stem == "pageable":
            return MAPPED
        if stem in ("copy", "upload", "pinned"):
            return LINK
        if stem.startswith("remote"):
            return ALONE
        return ROW if stem in _ROWS else BATCH


TERMS: dict[str, Term] = {
    "step": Term("micro-batch", "one of few tokens: inputs, launch of the graph, logits, wait"),
    "batch": Term("micro-batch", "one of many tokens: the same, and its graph is built anew"),
    "embed": Term("element", "rows of the embedding table looked up by the CPU and copied", CPU),
    "mask": Term("cell", "the attention mask of many tokens, filled on the host", CPU),
    "mask_window": Term("cell", "the same of blocks with a sliding window", CPU),
    "kernel": Term("kernel", "a kernel of few tokens inside a CUDA graph"),
    "argsort": Term("kernel", "more for a router's sort that is a kernel by itself, few tokens"),
    "batch_kernel": Term("kernel", "a kernel of many tokens"),
    "row_depth": Term("element", "a matrix-vector product by itself: its inner dimension, in turn"),
    "output": Term("output", "an output of a matrix-vector product: what is beside its bytes"),
    "row_tile": Term("kernel", "more for a product of float experts in tiles, few tokens"),
    "row_tiles": Term("tile", "tiles of its experts that are looked at, used or not"),
    "depth": Term("element", "a product of many tokens by itself: its inner dimension, in turn"),
    "sort": Term("token", "tokens sorted by expert before a product of chosen experts"),
    "launch": Term("kernel", "more for one outside a CUDA graph: micro-batches of a new shape"),
    "row": Term("byte", "weights read by matrix-vector kernels", MEMORY, True),
    "row_experts": Term("byte", "the same, chosen experts", MEMORY, True),
    "attend": Term("byte", "K and V read for one token", MEMORY),
    "dense": Term("operation", "matrix products of many tokens", COMPUTE, True),
    "dense_bytes": Term("byte", "weights read for many tokens, outside the experts", MEMORY,
                       True),
    "experts": Term("operation", "the same for chosen experts, in tiles of tokens", COMPUTE, True),
    "expert_bytes": Term("byte", "weights of the experts that many tokens use", MEMORY, True),
    "tiles": Term("tile", "tiles of float experts that are looked at, used or not", COMPUTE),
    "sorted": Term("operation", "the same where tokens are sorted on the host, one product an expert",
                   COMPUTE),
    "sorted_call": Term("product", "one of those products"),
    "activations": Term("byte", "what kernels of many tokens write", MEMORY),
    "scores": Term("score", "a token's attention to a position, one a head, many tokens", MEMORY),
    "flash": Term("operation", "the same in one kernel (flash attention)", COMPUTE),
    "flash_call": Term("kernel", "one of those kernels, and putting its parts together"),
    "tile_output": Term("output", "outputs of quantised products in tiles, used or not", COMPUTE),
    "fixup": Term("kernel", "a quantised product's parts put together (stream-k)"),
    "split": Term("change", "a change between GPU and CPU, or a wait for ids, few tokens"),
    "batch_split": Term("change", "the same with many tokens"),
    "copy": Term("copy", "a copy of experts to the GPU for many tokens"),
    "upload": Term("copy", "a copy of one matrix into the expert cache"),
    "pinned": Term("byte", "experts copied from page-locked memory", PINNED),
    "pageable": Term("byte", "experts copied from a mapped file", PAGEABLE),
    "remote_kernel": Term("kernel", "what memory on the host adds to a kernel of few tokens"),
    "remote": Term("byte", "weights read across the link by matrix-vector kernels", REMOTE, True),
    "remote_batch": Term("byte", "the same by kernels of many tokens", REMOTE, True),
    "managed_kernel": Term("kernel", "what managed memory adds to a kernel of few tokens"),
    "cpu.step": Term("micro-batch", "one of few tokens on the CPU"),
    "cpu.batch": Term("micro-batch", "one of many tokens on the CPU"),
    "cpu.node": Term("node", "an operation of few tokens: its barrier", FIXED),
    "cpu.row": Term("byte", "weights read for few tokens", CPU, True),
    "cpu.row_experts": Term("byte", "the same, chosen experts", CPU, True),
    "cpu.attend": Term("byte", "K and V read for one token", CPU),
    "cpu.batch_node": Term("node", "an operation of many tokens", FIXED),
    "cpu.dense": Term("operation", "matrix products of many tokens", CPU, True),
    "cpu.experts": Term("operation", "the same for chosen experts", CPU, True),
    "cpu.activations": Term("byte", "what operations of many tokens write", CPU),
    "cpu.scores": Term("score", "a token's attention to a position, one a head, many tokens", CPU),
}  # fmt: skip


_LIKE = {"row_experts": "row", "experts": "dense", "expert_bytes": "dense_bytes"}
"""Stem of a typed term -> one that stands in where no type of it was measured, and the other way."""


class Constants:
    """Nanoseconds a unit by term; a type that was not measured takes the nearest one's.

    Nearest: in bits a weight. ``borrowed``: what was taken for what.
    """

    def __init__(self, ns: Mapping[str, float], source: str = "") -> None:
        self._ns, self._source = dict(ns), source
        self.borrowed: dict[str, str] = {}

    def get(self, key: str) -> float:
        """Raises `InputError` where nothing of the kind was measured."""
        found = self._ns.get(key)
        if found is not None:
            return found
        stem, _, kind = key.rpartition(".")
        if not (stem in TERMS and TERMS[stem].typed):
            return 0.0  # what no run showed costs nothing that shows
        other = self._nearest(stem, kind)
        if other is None:
            raise InputError(
                f"{self._source or 'the engine profile'}: has no constant for {key} ("
                f"{TERMS[stem].meaning}), nor one for another type; calibrate again"
            )
        self.borrowed[key] = other
        self._ns[key] = self._ns[other]
        return self._ns[key]

    def _nearest(self, stem: str, kind: str) -> str | None:
        side = "cpu." if stem.startswith("cpu.") else ""
        plain = stem.removeprefix("cpu.")
        like = _LIKE.get(plain) or next((a for a, b in _LIKE.items() if b == plain), None)
        for name in (stem, f"{side}{like}" if like else None):
            if name is None:
                continue
            known = {
                k: _bits(k.rpartition(".")[2])
                for k in self._ns
                if k.rpartition(".")[0] == name and k not in self.borrowed
            }
            known = {k: b for k, b in known.items() if b < 32} or known
            if known:
                return min(known, key=lambda k: (abs(known[k] - _bits(kind)), k))
        return None


def _bits(kind: str) -> float:
    weights, size = TYPES.get(kind, (1, 2))
    return 8 * size / weights


def term_of(key: str) -> Term | None:
    """The term that a constant's key names (``row.Q4_K``); None where it names none."""
    found = TERMS.get(stem_of(key))
    return found if found is not None and found.typed == (key not in TERMS) else None


def stem_of(key: str) -> str:
    """A constant's key without its tensor type."""
    return key if key in TERMS else key.rpartition(".")[0]
