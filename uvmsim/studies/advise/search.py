"""Configurations of a model on a machine, the best of each kind first.

Which fit is counted (`uvmsim.studies.advise.needs`), how fast they are is predicted
(`uvmsim.studies.advise.predict`). Numbers of layers are searched coarsely, then around the best:
between cache and resident layers the best is seldom at an end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from traces.errors import InputError
from uvmsim.machine.hardware import Hardware
from uvmsim.studies.advise.candidate import (
    CACHE,
    CPU,
    GPU,
    LARGE_CACHE_MIB,
    LAYERS,
    NCMOE,
    TENSORS,
    UNIFIED,
    Candidate,
    plain,
)
from uvmsim.studies.advise.needs import MIB, Needs, least_that_fits
from uvmsim.studies.advise.predict import Prediction, Predictor
from uvmsim.studies.advise.subject import Subject

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


@dataclass(frozen=True)
class Search:
    """One question: a model on a machine with a context and a KV type."""

    what: Subject
    hw: Hardware
    predict: Predictor
    ctx: int
    kv_type: str
    ubatches: Sequence[int]
    coarse: int = COARSE

    def choices(self, kinds: Sequence[str] | None = None) -> list[Choice]:
        """All that `configurations` finds, the fastest first."""
        return self._predicted(list(self.configurations(kinds)))

    def first(self, most: int, kinds: Sequence[str] | None = None) -> list[Choice]:
        """The first of `choices`, as the search sees them, the fastest first."""
        return self._predicted(self._by_guess(kinds)[:most])

    def distinct(self, most: int) -> list[Choice]:
        """The best of each kind, then others that are the best of all; the fastest first."""
        found = self._by_guess()
        by_kind: dict[str, Candidate] = {}
        for c in found:
            by_kind.setdefault(c.kind, c)
        kept = list(by_kind.values())[:most]
        return self._predicted(kept + [c for c in found if c not in kept][: most - len(kept)])

    def _by_guess(self, kinds: Sequence[str] | None = None) -> list[Candidate]:
        guess = self.predict.seconds
        return sorted(self.configurations(kinds), key=lambda c: _order(guess(c), c))

    def _predicted(self, found: Sequence[Candidate]) -> list[Choice]:
        needs = self.what.memory.needs
        made = [Choice(c, needs(c).on(self.hw), self.predict(c)) for c in found]
        return sorted(made, key=lambda x: _order(x.seconds, x.candidate))

    def configurations(self, kinds: Sequence[str] | None = None) -> Iterator[Candidate]:
        """Of each kind and micro-batch size the fastest that fits, and the same with the file mapped
        (page-locked memory is never slower, so that is not searched anew). ``kinds``: those asked for,
        all where None."""
        for ubatch in self.ubatches:
            base = plain(self.hw, self.ctx, ubatch, self.kv_type)
            if not base.config.gpu:
                if kinds is None or CPU in kinds:
                    yield from self._kept([base.all_away(self.what.llama)])
                continue
            whole = self.fits(base)
            for kind, found in _BY_KIND.items():
                if whole and kind in PARTS:
                    continue  # a part of what is there as a whole
                if kind == UNIFIED and ubatch != max(self.ubatches):
                    continue  # the fewer passes, the fewer bytes are paged
                if kinds is not None and kind not in kinds:
                    continue
                for made in found(self, base.loaded(mapped=kind in HOST_FREE)):
                    yield from self._kept([made, made.loaded(mapped=True)])

    def _kept(self, found: Sequence[Candidate]) -> Iterator[Candidate]:
        yield from (c for c in dict.fromkeys(found) if self.fits(c))

    def fits(self, c: Candidate) -> bool:
        """Whether the machine has what a configuration takes, exactly."""
        return self.what.memory.fits(c, self.hw)

    def lacking(self, c: Candidate, like: Candidate) -> int:
        """Bytes that the machine has too few of, on either side, compute buffers being ``like``'s."""
        return max(self.what.memory.estimate(c, like).lacks(self.hw))

    def best(self, found: dict[int, Candidate]) -> Iterator[Candidate]:
        """The fastest of several by number of layers that fits; what does not is left out."""
        while found:
            n = best_of(sorted(found), lambda n: self.predict.seconds(found[n]), self.coarse)
            if self.fits(found[n]):
                yield found[n]
                return
            del found[n]

    # ---- by kind ----------------------------------------------------------------------------------

    def gpu(self, c: Candidate) -> Iterator[Candidate]:
        if self.fits(c):
            yield c

    def ncmoe(self, c: Candidate) -> Iterator[Candidate]:
        yield from self.best({n: c.experts_away(n) for n in self._ncmoe_fit(c)})

    def _ncmoe_fit(self, c: Candidate) -> list[int]:
        if not self.what.ends:
            return []
        like = c.experts_away(self.what.ends[-1])
        return least_that_fits(
            self.what.ends,
            lambda n: self.lacking(c.experts_away(n), like),
            lambda n: self.fits(c.experts_away(n)),
        )

    def tensors(self, c: Candidate) -> Iterator[Candidate]:
        """One layer less than whole layers need, and of that layer the least that must leave."""
        ns = self._ncmoe_fit(c)
        if not ns or ns[0] - 1 not in self.what.model.moe_layers or ns[0] == self.what.ends[0]:
            return
        block = ns[0] - 1
        parts = sorted(self.what.projections, key=lambda p: self.what.share_of(block, p))
        like = c.experts_away(ns[0])
        for made in (c.part_away(block, p) for p in parts):
            if not self.lacking(made, like) and self.fits(made):
                yield made
                return

    def cache(self, c: Candidate) -> Iterator[Candidate]:
        made = {n: self._with_cache(c, n) for n in self.what.ends}
        yield from self.best({n: x for n, x in made.items() if x is not None})

    def _with_cache(self, c: Candidate, n: int) -> Candidate | None:
        """A cache in all memory that the resident layers leave, over the first ``n`` blocks'
        experts."""
        memory = self.what.memory
        like = c.with_(CACHE, n_cpu_moe=self.what.ends[-1], moe_cache_mib=LARGE_CACHE_MIB)
        bare = c.experts_away(n)
        need = memory.estimate(bare, like)
        if not need.fits(self.hw):
            return None
        mib = (self.hw.free_bytes - need.reserve - need.vram_bytes) // MIB
        while mib > 0:
            made = self._cached(bare, mib)
            if made is None:
                return None
            over, _ = memory.estimate(made, like).lacks(self.hw)
            if not over:
                return made
            mib -= -(-over // MIB)  # a bank's last row is padded, which the budget does not count
        return None

    def _cached(self, c: Candidate, mib: int) -> Candidate | None:
        """A cache of ``mib`` MiB, or less where that holds all; None where it is below one token's."""
        memory = self.what.memory
        made = c.with_(CACHE, moe_cache_mib=mib)
        try:
            groups = memory.cache(made.config).groups
        except InputError:
            return None
        if not groups:
            return None
        made = replace(made, slots=tuple(g.slots for g in groups))
        least = -(-sum(g.bank_bytes for g in groups) // MIB) + len(groups)
        if least < mib:
            fewer = c.with_(CACHE, moe_cache_mib=least)
            same = tuple(g.slots for g in memory.cache(fewer.config).groups)
            if same == made.slots:
                return replace(fewer, slots=same)
        return made

    def unified(self, c: Candidate) -> Iterator[Candidate]:
        made = c.with_(UNIFIED, unified_memory=True)
        if self.hw.uvm and self.what.model.moe_layers and self.fits(made):
            yield made

    def layers(self, c: Candidate) -> Iterator[Candidate]:
        """Where experts alone are not enough to move, or there are none: the first blocks as a
        whole."""
        llama, n_layers = self.what.llama, self.what.model.n_layers
        experts = n_layers if self.what.model.moe_layers else 0
        if experts and self.fits(c.experts_away(experts)):
            return
        made = {n: c.blocks_away(llama, n, experts) for n in range(1, n_layers)}
        if not made:
            return
        like = made[(n_layers + 1) // 2]
        ns = least_that_fits(
            list(made), lambda n: self.lacking(made[n], like), lambda n: self.fits(made[n])
        )
        yield from self.best({n: made[n] for n in ns})

    def cpu(self, c: Candidate) -> Iterator[Candidate]:
        yield c.all_away(self.what.llama)


def _order(seconds: float, c: Candidate) -> tuple[float, bool, int]:
    """Of equals llama.cpp's defaults come first."""
    return seconds, not c.mapped, c.ubatch


_BY_KIND: dict[str, Callable[[Search, Candidate], Iterator[Candidate]]] = {
    GPU: Search.gpu, NCMOE: Search.ncmoe, TENSORS: Search.tensors, CACHE: Search.cache,
    UNIFIED: Search.unified, LAYERS: Search.layers, CPU: Search.cpu,
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
