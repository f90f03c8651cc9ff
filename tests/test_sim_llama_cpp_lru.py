"""`llama-cpp-lru` against llama.cpp's own code, written out again in Python line by line."""

from __future__ import annotations

import naive
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing import Case, generate, naive_of, plan_of

from traces.capture.moe_cache_log import read_counts

QUICK = settings(max_examples=40, deadline=None)


class MoeCache:
    """`moe_cache_lru` and the counting of `llama_moe_cache::impl` (b11549), names as there."""

    def __init__(self, n_expert: int, n_expert_used: int, n_slots: int) -> None:
        self.n_expert, self.n_expert_used, self.n_slots = n_expert, n_expert_used, n_slots
        self.slot_map: dict[int, list[int]] = {}
        self.key_of = [-1] * n_slots
        self.prev = [s - 1 for s in range(n_slots)]
        self.next = [s + 1 if s + 1 < n_slots else -1 for s in range(n_slots)]
        self.head, self.tail = 0, n_slots - 1
        self.small, self.large, self.copied = [0, 0], [0, 0], 0

    def touch(self, s: int) -> None:
        if s == self.tail:
            return
        if self.prev[s] >= 0:
            self.next[self.prev[s]] = self.next[s]
        else:
            self.head = self.next[s]
        self.prev[self.next[s]] = self.prev[s]
        self.prev[s], self.next[s] = self.tail, -1
        self.next[self.tail] = s
        self.tail = s

    def plan(self, il: int, ids: list[int]) -> tuple[int, int]:
        uniq = list(dict.fromkeys(ids))
        assert len(uniq) <= self.n_slots
        slots = self.slot_map.setdefault(il, [-1] * self.n_expert)
        n_hit = fills = 0
        for e in uniq:
            if slots[e] >= 0:
                self.touch(slots[e])
                n_hit += 1
        for e in sorted(uniq):
            if slots[e] >= 0:
                continue
            s = self.head
            if self.key_of[s] >= 0:
                self.slot_map[self.key_of[s] // self.n_expert][self.key_of[s] % self.n_expert] = -1
            self.key_of[s] = il * self.n_expert + e
            slots[e] = s
            self.touch(s)
            fills += 1
        return n_hit, fills

    def layer(self, il: int, rows: list[list[int]]) -> None:
        """One layer of one micro-batch: `get_slot_map`, then `copy` or `copy_experts`."""
        n_tokens = len(rows)
        if n_tokens == 0:
            return
        ids = [e for row in rows for e in row]
        if n_tokens > 32 or min(n_tokens * self.n_expert_used, self.n_expert) > self.n_slots:
            slots = self.slot_map.setdefault(il, [-1] * self.n_expert)
            self.copied += 3 * sum(slots[e] >= 0 for e in set(ids))
            return
        stats = self.small if len(ids) <= 8 * self.n_expert_used else self.large
        for i, n in enumerate(self.plan(il, ids)):
            stats[i] += n

    def log(self, expert_mib: float) -> list[str]:
        """What the destructor prints, among lines of other parts."""
        lines = ["llama_context: n_ctx = 2048", "impl: 16 layers, f16:   132 slots (12.9%)\n"]
        for name, (hits, misses) in (("ubatch <= 8", self.small), ("ubatch  > 8", self.large)):
            if hits + misses:
                rate = 100 * hits / (hits + misses)
                lines.append(
                    f"llama_moe_cache: {name}: hits = {hits}, misses = {misses}, hit rate = "
                    f"{rate:.2f}%, uploaded = {misses * expert_mib:.2f} MiB\n"
                )
        if self.copied:
            lines.append(
                f"0.01.234.567 I llama_moe_cache: large batches: {self.copied} experts copied from "
                "the cache, 1.50 MiB"
            )
        return lines


def run_reference(case: Case, slots: int) -> MoeCache:
    cache = MoeCache(case.n_experts, case.top_k, slots)
    groups: dict[tuple[int, int], list[list[int]]] = {}
    for r in case.rows:
        rows = groups.setdefault((r.step, r.layer), [])
        if r.experts is not None:
            rows.append(r.experts)
    for (_, layer), rows in groups.items():
        cache.layer(layer, rows)
    return cache


@QUICK
@given(st.data())
def test_counts_equal_llama_cpp(data):
    """Hits, misses and what large batches read, over prompts on both sides of 32 tokens."""
    case = generate(
        data.draw(st.integers(0, 2**32)),
        layers=data.draw(st.integers(1, 4)),
        experts=data.draw(st.integers(4, 40)),
        top_k=data.draw(st.integers(1, 4)),
        sequences=data.draw(st.integers(1, 3)),
        decode=data.draw(st.integers(1, 25)),
        prefill=data.draw(st.integers(0, 70)),
        missing=data.draw(st.sampled_from((0.0, 0.2))),
        together=data.draw(st.booleans()),
    )
    slots = data.draw(st.integers(case.top_k, len(case.layers) * case.n_experts))
    c = plan_of(case, "llama-cpp-lru", slots=slots).counters
    counts = read_counts(run_reference(case, slots).log(4.5))
    assert counts is not None and counts.slots == (132,)
    assert (counts.hits, counts.misses) == (
        c.hits - c.bypassed_hits,
        c.misses - (c.bypassed - c.bypassed_hits),
    )
    assert counts.uploaded_mib == counts.misses * 4.5
    assert counts.large_batch_tensors == 3 * c.bypassed_hits
    assert c.resident_at_end == counts.misses - c.evictions


def rows_of(*batches: list[list[int]]) -> list[naive.Row]:
    return [
        naive.Row(0, 10 * step + i, step, 1, 0, ids)
        for step, batch in enumerate(batches)
        for i, ids in enumerate(batch)
    ]


def test_misses_queue_up_by_id():
    """Chosen as 3, 1 they stand as 1, 3: 1 is the older and leaves first. Plain LRU has it the other
    way round."""
    case = Case(rows_of([[3, 1]], [[2, 0]], [[3, 1]]), (0,), 4, 2)
    assert plan_of(case, "llama-cpp-lru", slots=3).hit.tolist() == [0, 0, 0, 0, 1, 0]
    assert plan_of(case, "lru", slots=3).hit.tolist() == [0, 0, 0, 0, 0, 1]


def test_a_batch_of_33_tokens_reads_and_changes_nothing():
    few, many = [[0, 1]], [[i % 6, (i + 1) % 6] for i in range(33)]
    for batch, kept in ((many[:32], False), (many, True)):
        case = Case(rows_of(few, batch, few), (0,), 8, 2)
        plan = plan_of(case, "llama-cpp-lru", slots=8)
        c = plan.counters
        assert c.bypassed == (6 if kept else 0)
        assert c.bypassed_hits == (2 if kept else 0)
        assert c.resident_at_end == (2 if kept else 6)
        assert plan.hit.tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 1, 1]
        # What is copied past the pool waits for no slot.
        assert plan.copy_after.tolist() == [-1] * 6
        assert plan.hit.tolist() == naive_of(case, "llama-cpp-lru", slots=8).hit


def test_logs_without_a_cache_give_no_counts():
    assert read_counts([]) is None
    assert (
        read_counts(["llama_context: n_ctx = 512", "error: MoE cache requires a GPU backend"])
        is None
    )


@pytest.mark.parametrize(
    ("line", "slots"),
    [
        ("impl: 16 layers, f16:   132 slots (12.9%)", (132,)),
        ("0.12 I impl:  3 layers, q4_K:     0 slots (0.0%)", (0,)),
    ],
)
def test_slots_are_read(line, slots):
    counts = read_counts([line, "noise"])
    assert counts is not None and counts.slots == slots
