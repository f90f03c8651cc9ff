"""Configurations of a model on a machine, the best of each kind first.

Which fit is counted (`uvmsim.studies.advise.needs`), how fast they are is predicted
(`uvmsim.studies.advise.predict`). Numbers of layers are searched coarsely, then around the best:
between cache and resident layers the best is seldom at an end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.studies.advise.candidate import (
    CACHE,
    CPU,
    GPU,
    LAYERS,
    NCMOE,
    PROJECTIONS,
    TENSORS,
    UNIFIED,
    Candidate,
)
from uvmsim.studies.advise.needs import MIB, Needs, cache_bytes, cache_slots, fused, needed
from uvmsim.studies.advise.predict import Prediction, Predictor

HOST_FREE = (GPU, UNIFIED)
"""Nothing lies in a mapped file when it runs: how it is loaded does not matter, the default stays."""
PARTS = (NCMOE, TENSORS, CACHE, UNIFIED, LAYERS)
COARSE = 8
"""Steps of the first look at a range of layers."""


@dataclass(frozen=True)
class Choice:
    """A configuration that fits, with what it takes and how fast it is."""

    candidate: Candidate
    needs: Needs
    prediction: Prediction

    @property
    def seconds(self) -> float:
        return self.prediction.seconds


Score = Callable[[Candidate], float]


def configurations(
    model: Model, hw: Hardware, ctx: int, kv_type: str, ubatches: Sequence[int], score: Score,
    kinds: Sequence[str] | None = None, coarse: int = COARSE,
) -> Iterator[Candidate]:  # fmt: skip
    """Of each kind and micro-batch size the best that fits, by ``score`` (seconds, less is better), and
    the same with the file mapped (page-locked memory is never slower, so that is not searched anew).
    ``kinds``: those asked for, all where None."""
    for ubatch in ubatches:
        base = Candidate(GPU, ctx, ubatch, kv_type)
        whole = fits(model, hw, base)
        for kind, found in _BY_KIND.items():
            if whole and kind in PARTS:
                continue  # a part of what is there as a whole
            if kind == UNIFIED and ubatch != max(ubatches):
                continue  # the fewer passes, the fewer bytes are paged
            if kinds is None or kind in kinds:
                for made in found(model, hw, base, score, coarse):
                    if kind not in HOST_FREE:
                        yield made
                    yield replace(made, mapped=True)


def fits(model: Model, hw: Hardware, c: Candidate) -> bool:
    return needed(model, c, hw).fits(hw)


def _gpu(model: Model, hw: Hardware, c: Candidate, score: Score, coarse: int):
    if fits(model, hw, c):
        yield c


def _ncmoe(model: Model, hw: Hardware, c: Candidate, score: Score, coarse: int):
    ns = [n for n in _useful(model) if fits(model, hw, _on_cpu(c, n))]
    if ns:
        yield _on_cpu(c, best_of(ns, lambda n: score(_on_cpu(c, n)), coarse))


def _on_cpu(c: Candidate, n: int) -> Candidate:
    return replace(c, kind=NCMOE, cpu_experts=n)


def _tensors(model: Model, hw: Hardware, c: Candidate, score: Score, coarse: int):
    """One layer less than whole layers allow, and of that layer what still fits."""
    ns = [n for n in _useful(model) if fits(model, hw, _on_cpu(c, n))]
    below = [b for b in model.moe_layers if ns and b < ns[0]]
    if not below or ns[0] - 1 not in model.moe_layers:
        return
    found = [replace(c, kind=TENSORS, cpu_experts=ns[0] - 1, projections=p) for p in PROJECTIONS]
    if fused(model):
        return  # one matrix for both: there is nothing to take apart that way
    found = [x for x in found if fits(model, hw, x)]
    if found:
        yield min(found, key=score)


def _cache(model: Model, hw: Hardware, c: Candidate, score: Score, coarse: int):
    made = {n: x for n in _useful(model) if (x := _with_cache(model, hw, c, n)) is not None}
    if made:
        yield made[best_of(sorted(made), lambda n: score(made[n]), coarse)]


def _with_cache(model: Model, hw: Hardware, c: Candidate, n: int) -> Candidate | None:
    """A cache in all memory that the resident layers leave, over the first ``n`` blocks' experts."""
    bare = replace(c, kind=CACHE, cpu_experts=n)
    need = needed(model, bare, hw)
    if not need.fits(hw):
        return None
    mib = (hw.vram_bytes - need.vram_bytes) // MIB
    slots = cache_slots(model, mib, n)
    if not slots:
        return None
    mib = min(mib, -(-cache_bytes(model, slots) // MIB))
    made = replace(bare, cache_mib=mib, slots=slots)
    return made if fits(model, hw, made) else None


def _unified(model: Model, hw: Hardware, c: Candidate, score: Score, coarse: int):
    made = replace(c, kind=UNIFIED)
    if hw.uvm and model.moe_layers and fits(model, hw, made):
        yield made


def _layers(model: Model, hw: Hardware, c: Candidate, score: Score, coarse: int):
    """Where experts alone are not enough to move, or there are none: the first blocks as a whole."""
    experts = model.n_layers if model.moe_layers else 0
    made = replace(c, kind=LAYERS, cpu_experts=experts)
    if fits(model, hw, made):
        return
    ns = [n for n in range(1, model.n_layers) if fits(model, hw, replace(made, cpu_blocks=n))]
    if ns:
        least = best_of(ns, lambda n: score(replace(made, cpu_blocks=n)), coarse)
        yield replace(made, cpu_blocks=least)


def _cpu(model: Model, hw: Hardware, c: Candidate, score: Score, coarse: int):
    made = replace(c, kind=CPU, cpu_blocks=model.n_layers + 1)
    if fits(model, hw, made):
        yield made


def _useful(model: Model) -> list[int]:
    """Numbers for ``-ncmoe`` that differ in what they do: each ends behind a MoE layer."""
    return [b + 1 for b in model.moe_layers]


_BY_KIND = {
    GPU: _gpu, NCMOE: _ncmoe, TENSORS: _tensors, CACHE: _cache,
    UNIFIED: _unified, LAYERS: _layers, CPU: _cpu,
}  # fmt: skip


def best_of(ns: Sequence[int], score: Callable[[int], float], coarse: int = COARSE) -> int:
    """The number of least score; the smallest of several. Looks at ``coarse`` + 1 of ``ns``, then
    around the two best with ever smaller steps; ``coarse`` 0 looks at all."""
    known: dict[int, float] = {}

    def at(i: int) -> float:
        if i not in known:
            known[i] = score(ns[i])
        return known[i]

    last = len(ns) - 1
    step = 1 if coarse <= 0 else max(1, -(-last // coarse))
    for i in [*range(0, last, step), last]:
        at(i)
    while step > 1:
        step = -(-step // 2)
        for i in sorted(known, key=lambda i: (known[i], i))[:2]:
            for j in (i - step, i + step):
                if 0 <= j <= last:
                    at(j)
    return ns[min(known, key=lambda i: (known[i], i))]


def choices(
    model: Model, hw: Hardware, predict: Predictor, ctx: int, kv_type: str, ubatches: Sequence[int],
    kinds: Sequence[str] | None = None, coarse: int = COARSE,
) -> list[Choice]:  # fmt: skip
    """All that `configurations` finds, the fastest first."""

    def seconds(c: Candidate) -> float:
        return predict(c).seconds

    found = configurations(model, hw, ctx, kv_type, ubatches, seconds, kinds, coarse)
    made = [Choice(c, needed(model, c, hw), predict(c)) for c in found]
    # Of equals llama.cpp's defaults come first.
    return sorted(made, key=lambda x: (x.seconds, not x.candidate.mapped, x.candidate.ubatch))


def distinct(found: Sequence[Choice], most: int) -> list[Choice]:
    """The best of each kind, then others of the best kind that differ in how they are run."""
    by_kind: dict[str, Choice] = {}
    for choice in found:
        by_kind.setdefault(choice.candidate.kind, choice)
    first = list(by_kind.values())[:most]
    rest = [c for c in found if c not in first][: most - len(first)]
    return sorted([*first, *rest], key=lambda x: x.seconds)
