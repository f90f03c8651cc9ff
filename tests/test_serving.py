"""A server under load: three simulators of it agree, and what they say follows from the rules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import uvmsim
from traces.errors import InputError
from traces.requests.arrivals import arrivals, fixed
from traces.routing import RoutingTrace
from uvmsim.policies.kinds import EXPERTS
from uvmsim.runs.job import Job
from uvmsim.serving.des import World
from uvmsim.serving.load import Load, check_load, load_of, prefix_tokens
from uvmsim.serving.machine import Run, serve_job
from uvmsim.serving.schedule import ADMITTED, DONE, SENT
from uvmsim.serving.server import Server, server_of
from uvmsim.serving.source import Source, source_of
from uvmsim.serving.streamed import Border, Streamed, serve_streamed
from uvmsim.studies.resolve import resolve
from uvmsim.studies.scenario import Scenario
from uvmsim.studies.serve.row import answered, costs_of_run, costs_of_stream
from uvmsim.studies.serve.study import serve

LAYERS, EXPERTS_A_LAYER, TOP_K = 3, 8, 2
CASES = 1000
POLICIES = ("lru", "layer-lru", "lru+previous-token", "lrfu")


def small_trace(seed: int = 0) -> RoutingTrace:
    """Three sequences of unequal length, each with a prompt."""
    rng = np.random.default_rng(seed)
    ids, seq, phase = [], [], []
    for q, (prompt, output) in enumerate(((7, 9), (3, 5), (12, 2))):
        for p, tokens in ((0, prompt), (1, output)):
            for _ in range(tokens):
                ids.append([rng.permutation(EXPERTS_A_LAYER)[:TOP_K] for _ in range(LAYERS)])
                seq.append(q)
                phase.append(p)
    return uvmsim.routing(
        np.array(ids), n_experts=EXPERTS_A_LAYER, seq=np.array(seq), phase=np.array(phase)
    )


TRACE = small_trace()
SOURCE = source_of([TRACE])
BASE = resolve(Scenario(TRACE, expert_size="2MB", hardware="h100")).base


def job_of(policy: str, slots: int = 9) -> Job:
    return replace(BASE, policy=EXPERTS.of(policy), slots=slots, ctx=256)


def draw_case(rng: np.random.Generator) -> tuple[Job, Load, Server]:
    """A random load on a random server; all numbers small, so that queues form."""
    n = int(rng.integers(1, 8))
    gaps = rng.exponential(3e6, n) * rng.integers(0, 2)
    prompt, output = rng.integers(1, 14, n), rng.integers(1, 7, n)
    load = load_of(
        np.cumsum(gaps).astype(np.int64), prompt, output, SOURCE, int(rng.integers(99)),
        cached=rng.integers(0, 4, n),
    )  # fmt: skip
    kind = ("llama-server", "vllm")[int(rng.integers(2))]
    slots = int(rng.integers(1, 5))
    batch = int(rng.integers(slots, 20))
    server = server_of(
        kind, slots, batch, None if kind == "vllm" else int(rng.integers(1, batch + 1)),
        kv_tokens=int(rng.choice([0, 20, 40])), max_concurrency=int(rng.integers(0, 4)),
        warmup=bool(rng.integers(2)), breaks=tuple(rng.integers(1, 9, int(rng.integers(0, 3)))),
    )  # fmt: skip
    return job_of(str(rng.choice(POLICIES)), int(rng.integers(2, 25))), load, server


def same(des: World, whole: Run, stream: Streamed) -> None:
    """All times of all requests, and all hits, to the last."""
    q, z = whole.schedule.queue, stream.queue
    for name in ("sent", "admitted", "token_ns"):
        np.testing.assert_array_equal(getattr(q, name), getattr(z, name))
    for i, r in enumerate(des.requests):
        assert (r.sent, r.admitted) == (q.sent[i], q.admitted[i])
        assert r.tokens == q.token_ns[q.token_lo[i] : q.token_lo[i + 1]].tolist()
    assert des.gpu.pass_ns == whole.pass_ns.tolist()
    assert whole.outcome.counters is not None
    assert des.gpu.counters().hits == whole.outcome.counters.hits == stream.hits


@pytest.mark.parametrize("part", range(4))
def test_three_servers_agree_to_the_nanosecond(part: int):
    """The SimPy server, whose scheduler is written apart, the compiled one, and whole runs of a
    mechanism that is asked until nothing changes."""
    rng = np.random.default_rng(part)
    for _ in range(CASES // 4):
        job, load, server = draw_case(rng)
        des = World(job, load, server, SOURCE)
        des.play()
        same(des, serve_job(job, "expert-cache", load, server, SOURCE),
             serve_streamed(job, load, server, SOURCE))  # fmt: skip


def test_a_moving_border_in_both_servers():
    rng = np.random.default_rng(77)
    for _ in range(100):
        job, load, server = draw_case(rng)
        border = Border(int(rng.integers(2, 12)), int(rng.integers(20, 90)))
        des = World(job, load, server, SOURCE, border)
        des.play()
        stream = serve_streamed(job, load, server, SOURCE, border=border)
        tokens = [x for r in des.requests for x in r.tokens]
        assert tokens == stream.queue.token_ns.tolist()
        assert des.gpu.counters().hits == stream.hits


def test_whole_runs_on_the_simpy_clock():
    rng = np.random.default_rng(5)
    for _ in range(20):
        job, load, server = draw_case(rng)
        fast = serve_job(job, "expert-cache", load, server, SOURCE)
        des = serve_job(job, "expert-cache", load, server, SOURCE, "des")
        np.testing.assert_array_equal(fast.schedule.queue.token_ns, des.schedule.queue.token_ns)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31))
def test_rules_hold(seed: int):
    """Order, limits and sums of a served load, by the compiled server."""
    job, load, server = draw_case(np.random.default_rng(seed))
    made = serve_streamed(job, load, server, SOURCE)
    q, n = made.queue, len(made.load)
    assert q.n[SENT] == q.n[ADMITTED] == q.n[DONE] == n
    first = q.token_ns[q.token_lo[:-1]]
    end = q.token_ns[q.token_lo[1:] - 1]
    assert (np.diff(q.admitted) >= 0).all() and (np.diff(q.sent) >= 0).all()
    assert (q.sent <= q.admitted).all() and (q.admitted < first).all()
    moments = np.unique(np.concatenate([q.admitted, first]))
    active = (q.admitted[:, None] <= moments) & (moments < end[:, None])
    assert active.sum(axis=0).max() <= server.slots
    if server.kv_tokens:
        need = (q.prompt.astype(np.int64) + q.output)[:, None]
        assert (need * active).sum(axis=0).max() <= server.kv_tokens
    if server.max_concurrency:
        under_way = (q.sent[:, None] <= moments) & (moments < end[:, None])
        assert under_way.sum(axis=0).max() <= server.max_concurrency
    seen = answered(q, server.warmup)
    costs = costs_of_stream(made)
    tokens = int(
        (q.prompt - made.load.cached)[server.warmup :].sum() + q.output[server.warmup :].sum()
    )
    if len(seen):
        assert sum(c.tokens for c in costs.values()) == tokens - len(seen)
        assert sum(c.busy_ns for c in costs.values()) <= end.max()


def test_costs_are_the_same_either_way():
    rng = np.random.default_rng(9)
    for _ in range(30):
        job, load, server = draw_case(rng)
        whole = costs_of_run(serve_job(job, "expert-cache", load, server, SOURCE))
        stream = costs_of_stream(serve_streamed(job, load, server, SOURCE))
        assert whole == stream


def test_one_request_takes_what_its_sequence_takes_in_compare():
    """Alone on a server, with the trace's own micro-batches, a request is its sequence."""
    trace = TRACE.take(np.flatnonzero(TRACE.seq == 0))
    source = source_of([trace])
    load = load_of(np.zeros(1), np.array([7]), np.array([10]), source)
    run = serve_job(job_of("lru"), "expert-cache", load, Server(warmup=False), source)
    alone = resolve(Scenario(trace, expert_size="2MB", hardware="h100")).base
    job = replace(alone, policy=EXPERTS.of("lru"), slots=9, ctx=256)
    from uvmsim.studies.simulate import simulate

    np.testing.assert_array_equal(run.pass_ns, simulate(job).step_ns)


def test_mechanisms_without_a_pool_serve_too():
    load = load_of(np.arange(4) * 10**6, np.full(4, 5), np.full(4, 3), SOURCE)
    for name in ("resident", "stream", "zero-copy", "cpu-offload"):
        job = replace(BASE, ctx=256, ncmoe=2)
        run = serve_job(job, name, load, server_of("llama-server", 2), SOURCE)
        assert run.outcome.does_not_fit is None
        assert (run.schedule.queue.token_ns > 0).all()


def naive_prefixes(prompts: list[list[int]], room: int) -> list[int]:
    cache: list[int] = []
    found = []
    for blocks in prompts:
        hit = 0
        for b in blocks:
            if b not in cache:
                break
            hit += 1
        found.append(hit)
        for b in blocks:
            if b in cache:
                cache.remove(b)
            cache.append(b)
        if room:
            cache = cache[max(0, len(cache) - room) :]
    return found


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), max_size=5, unique=True), min_size=1, max_size=12),
       st.integers(0, 6))  # fmt: skip
def test_prefixes_by_a_plain_list(prompts: list[list[int]], room: int):
    lo = np.cumsum([0, *map(len, prompts)])
    blocks = np.array([b for p in prompts for b in p], np.int64)
    got = prefix_tokens(blocks, lo, 16, room * 16)
    assert got.tolist() == [16 * x for x in naive_prefixes(prompts, room)]


def test_borrowed_sequences_are_long_enough_where_there_are_any():
    prompt, output = np.array([2, 7, 12, 99]), np.array([2, 9, 2, 99])
    start = SOURCE.borrow(prompt, output, 0)
    lengths = {
        tuple(f): tuple(t)
        for f, t in zip(SOURCE.first.tolist(), SOURCE.tokens.tolist(), strict=True)
    }
    for i in range(3):
        p, o = lengths[tuple(start[i].tolist())]
        assert p >= prompt[i] and o >= output[i]
    np.testing.assert_array_equal(start, SOURCE.borrow(prompt, output, 0))


# ---- the study and its command --------------------------------------------------------------------


def asked(**more: object) -> dict[str, object]:
    return {"requests": fixed(6, 12, 8), "rates": (50.0,), **more}


def test_study_is_deterministic_and_speaks_vllms_keys():
    import json

    scenario = Scenario(TRACE, expert_size="2MB", slots="50%", policies=["lru", "lfu"])
    one, two = (serve(scenario, **asked(parallel=2)) for _ in range(2))
    assert json.dumps(one.to_json()) == json.dumps(two.to_json())
    b = one.to_json()["runs"][0]["bench"]
    assert {"request_throughput", "mean_ttft_ms", "p99_tpot_ms", "median_itl_ms"} <= set(b)
    assert b["completed"] == 6 and b["total_output_tokens"] == 48
    assert len(one.table()) == 2


def test_several_processes_give_the_same():
    import json

    scenario = Scenario(TRACE, expert_size="2MB", slots="50%", policies=["lru", "lfu"])
    told: list[str] = []
    one = serve(scenario, **asked(parallel=2))
    two = serve(
        scenario, processes=2, progress=lambda n, of, what: told.append(what), **asked(parallel=2)
    )
    assert json.dumps(one.to_json()) == json.dumps(two.to_json())
    assert any("lfu" in x for x in told)
    with pytest.raises(InputError, match="no scheduler answers"):
        serve(scenario, dask="tcp://127.0.0.1:9", **asked())


def test_ways_agree_in_the_study():
    scenario = Scenario(TRACE, expert_size="2MB", slots="50%", policies=["lru"])
    rows = [serve(scenario, **asked(parallel=3, way=way)).rows()[0] for way in ("stream", "whole")]
    for row in rows:
        del row["way"]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"parallel": 0}, "give 1 or more"),
        ({"rates": (-1.0,)}, "above 0"),
        ({"server": "sglang"}, "must be llama-server or vllm"),
        ({"server": "vllm", "ubatch": 64}, "no micro-batches"),
        ({"parallel": 32, "batch": 16}, "fewer tokens an iteration"),
        ({"kv": "0B"}, "less than one token"),
        ({"max_concurrency": 0}, "give 1 or more"),
        ({"border": "soft"}, "must be static or elastic"),
        ({"way": "guess"}, "must be one of"),
    ],
)
def test_bad_options_are_refused_in_a_line(options: dict, told: str):
    with pytest.raises(InputError, match=told) as err:
        serve(
            Scenario(TRACE, expert_size="2MB", slots="50%", policies=["lru"]), **asked() | options
        )
    assert "\n" not in str(err.value)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"write_back": True}, "no meaning for a server"),
        ({"reset": "sequence"}, "keeps its pool"),
        ({"policies": ["belady"]}, "needs the future"),
        ({"ctx": 16}, "more than the context"),
        ({"vram": "1MB", "slots": ()}, None),
    ],
)
def test_bad_scenarios_are_refused_in_a_line(fields: dict, told: str | None):
    scenario = Scenario(
        TRACE, **{"expert_size": "2MB", "slots": "50%", "policies": ["lru"], **fields}
    )
    if told is None:
        run = serve(scenario, **asked()).runs[0]
        assert run.to_json()["status"] == "out-of-memory"
        return
    with pytest.raises(InputError, match=told):
        serve(scenario, **asked())


def test_a_kv_cache_that_leaves_no_expert_slot_is_refused():
    with pytest.raises(InputError, match="leaves no expert slot") as err:
        serve(Scenario(policies=["lru"]), **asked(kv="40GiB"))
    assert err.value.argument == "kv" and "\n" not in str(err.value)


def test_a_request_longer_than_the_kv_cache_is_refused():
    load = load_of(np.zeros(2), np.array([5, 50]), np.array([1, 2]), SOURCE)
    with pytest.raises(InputError, match="request 1 has 52 tokens"):
        check_load(load, Server(kv_tokens=40), None)


def test_arrivals_at_an_infinite_rate_are_all_at_once():
    assert not arrivals(5).any()


def test_sources_of_other_shapes_do_not_mix():
    other = uvmsim.routing(np.zeros((4, 2, 1), int), n_experts=4)
    with pytest.raises(InputError, match="another shape"):
        source_of([TRACE, other])


def test_a_source_without_prompts_says_so():
    plain = uvmsim.routing(np.zeros((4, 2, 1), int), n_experts=4)
    made: Source = source_of([plain])
    assert any("no prompts" in note for note in made.notes) or any(
        "no generated" in note for note in made.notes
    )


# ---- the command ----------------------------------------------------------------------------------


def command(*args: str) -> tuple[int, str]:
    from click.testing import CliRunner

    from uvmsim.commands.serve import serve as told

    done = CliRunner().invoke(told, args)
    return done.exit_code, done.output + (str(done.exception) if done.exception else "")


SHORT = ("--num-prompts", "3", "--prompt-len", "20", "--output-len", "4", "--policy", "lru")


def test_the_command_prints_vllms_lines_or_a_table(tmp_path):
    code, out = command(*SHORT)
    assert code == 0 and "Mean TTFT (ms):" in out and "Hit rate, decode (%):" in out
    picture = tmp_path / "knee.png"
    code, out = command(*SHORT, "--rate", "5,50", "--goodput", "ttft:500", "--plot", str(picture))
    assert code == 0 and "keeps up" in out and picture.stat().st_size > 0
    code, out = command(*SHORT, "--json")
    import json

    assert json.loads(out)["runs"][0]["bench"]["completed"] == 3


def test_a_plot_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    code, out = command(*SHORT, "--rate", "5,50", "--plot", str(tmp_path / "knee.doc"))
    assert code and "must end in .png or .svg" in out and "keeps up" not in out


def test_layers_on_the_cpu_are_told_apart():
    from uvmsim.report.serve_table import knees

    scenario = Scenario(TRACE, expert_size="2MB", mechanisms="cpu-offload", ncmoe=(1, 3))
    made = serve(scenario, **asked(rates=(1.0, 50.0)))
    assert list(knees(made)) == ["cpu-offload 1, 16 slots", "cpu-offload 3"]


def test_the_command_reads_a_request_file(tmp_path):
    rows = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,20,4\n0.01,9,3\n"
    file = tmp_path / "vidur.csv"
    file.write_text(rows, encoding="utf-8")
    code, out = command("--requests", str(file), "--policy", "lru", "--parallel", "2")
    assert code == 0 and "Total generated tokens:                  7" in out
    file.write_text(rows.replace("0.01,9", "-1,9"), encoding="utf-8")
    code, out = command("--requests", str(file), "--policy", "lru")
    assert code and "vidur.csv" in out


@pytest.mark.parametrize(
    "args", [("--rate", "x"), ("--goodput", "ttft"), ("--rate", "0"), ("--breaks", "a")]
)
def test_bad_flags_are_refused(args: tuple[str, ...]):
    code, out = command(*SHORT, *args)
    assert code and args[0] in out
