"""Small random routing traces, as rows for `naive` and as `RoutingTrace` for the product."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import naive
import naive_online  # noqa: F401 - its policies stand in naive.EVICT and naive.FETCH from here on
import numpy as np
from hypothesis import strategies as st

from traces.files.schema import RoutingMeta, guess_width
from traces.models.info import ModelInfo
from traces.routing import RoutingTrace
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.mechanisms import mechanism
from uvmsim.policies.registry import parse
from uvmsim.runs.job import Job
from uvmsim.runs.plan import DEMAND, PREFETCH, WRITEBACK, Plan
from uvmsim.workload import Workload, build_workload

_link = Hardware.load("rtx5090")
naive.LINK.update(bytes_per_s=_link.h2d_bytes_per_s, latency_ns=_link.copy_latency_ns)

KINDS = {DEMAND: "demand", PREFETCH: "prefetch", WRITEBACK: "writeback"}


@dataclasses.dataclass(frozen=True)
class Case:
    """A trace in both forms."""

    rows: list[naive.Row]
    layers: tuple[int, ...]
    n_experts: int
    top_k: int
    scores: bool = False
    guesses: bool = False

    @property
    def expert_bytes(self) -> tuple[int, ...]:
        """Layers of different sizes, so that a byte counted for the wrong layer shows."""
        return tuple(1000 + 100 * i for i in range(len(self.layers)))

    @property
    def info(self) -> ModelInfo:
        blocks = max(self.layers) + 1
        return ModelInfo(
            name="test-model", n_layers=blocks, moe_layers=self.layers, n_experts=self.n_experts,
            top_k=self.top_k, expert_bytes=self.expert_bytes, dense_bytes=(700,) * blocks,
            output_bytes=300, embedding_bytes=300, n_embd=4, n_ff_expert=8, n_vocab=16,
            kv_bytes_per_token=64,
        )  # fmt: skip

    @property
    def trace(self) -> RoutingTrace:
        rows, k = self.rows, self.top_k
        none = [-1] * k
        columns = {
            "seq": np.array([r.seq for r in rows], np.int32),
            "pos": np.array([r.pos for r in rows], np.int32),
            "step": np.array([r.step for r in rows], np.int32),
            "phase": np.array([r.phase for r in rows], np.uint8),
            "layer": np.array([r.layer for r in rows], np.int16),
            "experts": np.array(
                [none if r.experts is None else r.experts for r in rows], np.int16
            ).reshape(len(rows), k),
        }
        if self.scores:
            unknown = [float("nan")] * self.n_experts
            columns["scores"] = np.array(
                [unknown if r.scores is None else r.scores for r in rows], np.float32
            )
        width = guess_width(k, self.n_experts)
        empty = ([-1] * width, [float("nan")] * width)
        for i in range(2 if self.guesses else 0):
            made = [r.guesses[i] or empty for r in rows]
            columns[f"next{i + 1}_ids"] = np.array([g[0] for g in made], np.int16)
            columns[f"next{i + 1}_scores"] = np.array([g[1] for g in made], np.float16)
        meta = RoutingMeta(model=self.info, ids_order="ranked", tool="tests")
        return RoutingTrace(columns, meta, path=Path("random.arrow"))

    def workload(self, unit: str = "event") -> Workload:
        return build_workload(self.trace, unit)

    @property
    def model(self) -> Model:
        return Model.from_info(self.info)

    def job(self, policy: str | None = None, unit: str = "event", **more) -> Job:
        more.setdefault("hardware", Hardware.load("rtx5090"))
        return Job(
            self.workload(unit), self.model, policy=parse(policy) if policy else None, **more
        )


def generate(
    seed: int,
    layers: int = 3,
    experts: int = 8,
    top_k: int = 2,
    sequences: int = 2,
    decode: int = 8,
    prefill: int = 4,
    missing: float = 0.0,
    scores: bool = False,
    first_block: int = 0,
    together: bool = False,
    guesses: bool = False,
) -> Case:
    """A trace with favourites and repetition; ``together`` decodes all sequences in one batch."""
    r = random.Random(seed)
    blocks = tuple(first_block + i for i in range(layers))
    favour = {b: [r.random() ** 2 + 0.01 for _ in range(experts)] for b in blocks}
    last: dict[tuple[int, int], list[int]] = {}
    rows: list[naive.Row] = []

    def choose(seq: int, block: int) -> list[int]:
        # A permutation by weight, where what the token before used often stays in front.
        old = last.get((seq, block), [])
        key = {e: r.random() ** (1 / favour[block][e]) for e in range(experts)}
        kept = [e for e in old if r.random() < 0.4]
        rest = sorted((e for e in range(experts) if e not in kept), key=lambda e: -key[e])
        chosen = (kept + rest)[:top_k]
        r.shuffle(chosen)
        last[seq, block] = chosen
        return chosen

    def is_known() -> bool:
        # A trace without any known row is refused; the first one is always known.
        return not rows or r.random() >= missing

    def forward(step: int, phase: int, tokens: list[tuple[int, int]]) -> None:
        for block in blocks:
            for seq, pos in tokens:
                known = is_known()
                ids = choose(seq, block)
                # Few distinct values, so that ranking by score meets ties.
                s = [float(np.float32(r.choice((0.1, 0.25, 0.3, 0.7)))) for _ in range(experts)]
                rows.append(
                    naive.Row(
                        seq,
                        pos,
                        step,
                        phase,
                        block,
                        ids if known else None,
                        s if known and scores else None,
                    )
                )

    step = 0
    for batch in [list(range(sequences))] if together else [[s] for s in range(sequences)]:
        pos = 0
        while pos < prefill:
            n = r.randint(1, prefill - pos)
            for seq in batch:
                forward(step, 0, [(seq, pos + i) for i in range(n)])
                step += r.randint(1, 3)
            pos += n
        for i in range(decode):
            forward(step, 1, [(seq, pos + i) for seq in batch])
            step += 1
    if guesses:
        rows = with_guesses(rows, experts, top_k, random.Random(seed + 1))
    return Case(rows, blocks, experts, top_k, scores, guesses)


def with_guesses(rows, experts: int, k: int, r: random.Random) -> list[naive.Row]:
    """The same with guesses of the next two layers: often the choice itself, sometimes none; few
    distinct scores, and a last few that were ruled out."""
    blocks = sorted({x.layer for x in rows})
    chose = {(x.seq, x.pos, x.layer): x.experts for x in rows}

    def guess(x: naive.Row, ahead: int):
        at = blocks.index(x.layer) + ahead
        if at >= len(blocks) or r.random() < 0.1:
            return None
        likely = [e for e in chose.get((x.seq, x.pos, blocks[at])) or [] if r.random() < 0.8]
        others = [e for e in range(experts) if e not in likely]
        r.shuffle(others)
        width = guess_width(k, experts)
        scores = sorted((r.choice((-1.5, 0.25, 0.5, 2.0)) for _ in range(width)), reverse=True)
        if r.random() < 0.2:
            scores[1:] = [*scores[1:-1], float("-inf")][: width - 1]
        return (likely + others)[:width], scores

    return [dataclasses.replace(x, guesses=[guess(x, 1), guess(x, 2)]) for x in rows]


@st.composite
def cases(draw, scores: bool = False, max_decode: int = 14, guesses: bool = False) -> Case:
    """Random shapes; the content comes from a drawn seed, which keeps drawing cheap."""
    experts = draw(st.integers(2, 9))
    prefill = draw(st.integers(0, 6))
    return generate(
        draw(st.integers(0, 2**32)),
        layers=draw(st.integers(1, 4)),
        experts=experts,
        top_k=draw(st.integers(1, min(4, experts))),
        sequences=draw(st.integers(1, 3)),
        decode=draw(st.integers(0 if prefill else 1, max_decode)),
        prefill=prefill,
        missing=draw(st.sampled_from((0.0, 0.0, 0.15))),
        scores=scores,
        guesses=guesses,
        first_block=draw(st.integers(0, 2)),
        together=draw(st.booleans()),
    )


@st.composite
def settings_for(draw, case: Case, units=("event", "access")) -> dict:
    """Pool kind, unit, reset and a capacity that the rules allow."""
    pool = draw(st.sampled_from(("global", "per-layer")))
    unit = draw(st.sampled_from(units))
    least = case.top_k if unit == "event" else 1
    if pool == "per-layer":
        slots = len(case.layers) * draw(st.integers(least, case.n_experts))
    else:
        slots = draw(st.integers(least, len(case.layers) * case.n_experts))
    return {
        "pool": pool,
        "unit": unit,
        "slots": slots,
        "reset": draw(st.sampled_from(("never", "sequence"))),
        "write_back": draw(st.booleans()),
        "seed": draw(st.integers(0, 3)),
    }


def plan_of(case: Case, policy: str, profile: Case | None = None, **how) -> Plan:
    """The product's decisions."""
    if profile is not None:
        how["profile"] = profile.workload()
    return mechanism("expert-cache").plan(case.job(policy, **how))


def naive_of(case: Case, policy: str, profile: Case | None = None, **how) -> naive.Outcome:
    """The reference's decisions; ``policy`` as on the command line."""
    evict, _, fetch = policy.partition("+")
    evict, options = _options(evict)
    fetch, prefetch_options = _options(fetch)
    return naive.simulate(
        case.rows, evict, fetch or None, n_experts=case.n_experts, top_k=case.top_k,
        options=options, prefetch_options=prefetch_options,
        profile=profile.rows if profile else None, bytes_of=list(case.expert_bytes), **how,
    )  # fmt: skip


def _options(text: str) -> tuple[str, dict]:
    name, *settings = text.split(":")
    pairs = (s.split("=") for s in settings)
    return name, {k: {"true": True, "false": False}.get(v) if v in ("true", "false") else
                  float(v) if "." in v else int(v) for k, v in pairs}  # fmt: skip


def assert_same(case: Case, plan: Plan, want: naive.Outcome) -> None:
    """Every hit, every counter, every copy, every wave."""
    c = plan.counters
    assert plan.hit.tolist() == want.hit
    assert (c.accesses, c.hits) == (len(want.hit), sum(want.hit))
    assert c.misses == len(want.hit) - sum(want.hit)
    assert (c.evictions, c.resident_at_end) == (want.evictions, want.resident)
    got = (c.prefetch_issued, c.prefetch_used, c.prefetch_wasted)
    assert got == (want.issued, want.used, want.wasted)
    # copy_bytes says which layer a copy is for; kinds and dependencies are compared one by one.
    assert [KINDS[k] for k in plan.copy_kind.tolist()] == [kind for kind, _, _ in want.copies]
    assert plan.copy_after.tolist() == [after for _, _, after in want.copies]
    assert plan.copy_bytes.tolist() == [case.expert_bytes[e[0]] for _, e, _ in want.copies]
    assert plan.wave_hi.tolist() == [hi for hi, _, _ in want.waves]
    assert plan.wave_copy_hi.tolist() == [hi for _, hi, _ in want.waves]
    assert plan.waits.tolist() == [x for _, _, xs in want.waves for x in xs]
