"""The front door in Python: one question, its studies, its answers; docs/python.md runs."""

import copy
import pickle
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

import uvmsim
from traces.samples import BUNDLED
from uvmsim.commands.compare import compare as command
from uvmsim.policies.base import Eviction, Prefetch, in_use
from uvmsim.policies.lru import LRU
from uvmsim.policies.registry import parse, spec_of

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"limit": 60, "slots": 0.25, "expert_size": "1MB"}


class State(NamedTuple):
    used: np.ndarray


class Mine(Eviction):
    """LRU, as a user would write it."""

    step: int = 1

    def state(self, ctx):
        return State(np.zeros(ctx.n_total, np.int64))

    @staticmethod
    def on_access(s, pool, e, i, hit):
        s.used[e] = i

    @staticmethod
    def victim(s, pool, p):
        best = -1
        for slot in range(pool.lo[p], pool.lo[p] + pool.used[p]):
            e = pool.expert_in[slot]
            if not in_use(pool, e) and (best < 0 or s.used[e] < s.used[best]):
                best = e
        return best


class Outside(Mine):
    """Writes behind its array."""

    @staticmethod
    def on_access(s, pool, e, i, hit):
        s.used[len(s.used) + e] = i


def with_step(step: int) -> Mine:
    made = Mine()
    made.step = step
    return made


# ---- importing ------------------------------------------------------------------------------------


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, time; t = time.perf_counter(); import uvmsim; took = time.perf_counter() - t\n"
        "heavy = {'numba', 'numpy', 'pyarrow', 'pydantic', 'rich', 'replay'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "uvmsim.Scenario('x.arrow', slots=[0.25], policies=['lru'], vram='1GiB')\n"
        "assert not {'numba', 'pyarrow', 'replay'} & set(sys.modules)\n"
        "print(took)"
    )
    tries = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        tries.append(float(done.stdout))
    assert min(tries) < 0.15


PACKAGES = (
    "uvmsim", "uvmsim.machine", "uvmsim.mechanisms", "uvmsim.policies", "uvmsim.policies.pages",
    "uvmsim.studies", "traces", "traces.routing", "traces.faults", "replay",
)  # fmt: skip


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_what_is_public(name):
    package = import_module(name)
    ours = ("uvmsim", "traces", "replay")
    found = {
        k for k, v in vars(package).items()
        if not k.startswith("_") and not isinstance(v, ModuleType)
        and (getattr(v, "__module__", None) or "").partition(".")[0] in ours
    }  # fmt: skip
    lazy = set(getattr(package, "_HOME", ())) | set(getattr(package, "_ADDED", ()))
    constants = {k for k in package.__all__ if k.isupper()} | {"__version__"} & set(package.__all__)
    assert set(package.__all__) == found | lazy | constants
    assert len(package.__all__) == len(set(package.__all__))
    for public in package.__all__:
        value = getattr(package, public)
        if callable(value):
            assert value.__doc__, public
    with pytest.raises(AttributeError):
        package.nothing_of_that_name  # noqa: B018


def test_types_are_published():
    for name in ("uvmsim", "traces", "replay"):
        assert (ROOT / name / "py.typed").exists()


# ---- what may be given ----------------------------------------------------------------------------


def test_a_trace_is_a_path_or_a_trace():
    trace = uvmsim.open_trace(BUNDLED)
    assert uvmsim.open_trace(trace) is trace
    assert uvmsim.open_trace().sha256 == trace.sha256
    answers = [
        uvmsim.compare(uvmsim.Scenario(t, policies="lru", **SMALL)).to_json()
        for t in (BUNDLED, str(BUNDLED), trace)
    ]
    for answer in answers:
        assert answer["options"].pop("trace") == str(BUNDLED)
    assert answers[0] == answers[1] == answers[2]
    shown = repr(trace)
    assert "tiny-moe" in shown and "top-4" in shown and len(shown) < 120


def test_policies_are_names_classes_and_instances():
    given = ["lru", LRU, Mine, with_step(3), ("lru", "next-layer"), parse("lru")]
    result = uvmsim.Scenario(policies=given, **SMALL).compare()
    names = ["lru", "lru", "Mine", "Mine:step=3", "lru+next-layer", "lru"]
    assert [run.policy for run in result] == names == result.table()["policy"].to_pylist()
    misses = [run.to_json()["misses"] for run in result]
    assert len({*misses[:4], misses[5]}) == 1
    assert list(result.to_json()["options"]["policies"]) == names


def test_classes_go_where_names_go():
    ids = np.random.default_rng(1).integers(0, 40, 500)
    assert uvmsim.cache_misses(ids, 10, Mine) == uvmsim.cache_misses(ids, 10, "lru")
    study = uvmsim.Scenario(policies=["lru", Mine, with_step(2)], **(SMALL | {"limit": 4}))
    replayed = uvmsim.replay(study, backend="host")
    assert replayed.problems == [] and len(replayed) == 3
    lru, mine = uvmsim.Scenario(policies=[Mine], slots=[64, 0.5], pool="global", limit=60).mrc()
    ratio = dict(zip(lru.slots.tolist(), lru.misses.tolist(), strict=True))
    assert [ratio[n] for n in mine.slots.tolist()] == mine.misses.tolist()


def test_a_users_class_is_checked_as_a_users_file_is():
    assert spec_of("lru").files == spec_of(LRU).files == ()
    assert spec_of(Mine).files == ("Mine",)
    with pytest.raises(uvmsim.InputError, match="Outside"):
        uvmsim.Scenario(policies=Outside, **SMALL).compare()

    class Misspelt(Mine):
        @staticmethod
        def on_acces(s, pool, e, i, hit):
            pass

    with pytest.raises(uvmsim.InputError, match="did you mean 'on_access'"):
        spec_of(Misspelt)
    with pytest.raises(uvmsim.InputError, match="give one that evicts"):
        spec_of(Prefetch)
    with pytest.raises(uvmsim.InputError, match="derived from"):
        spec_of(int)


def test_a_class_of_a_main_program(tmp_path):
    """As in a notebook: no file can be imported to find it."""
    lines = (ROOT / "docs/examples/busy.py").read_text(encoding="utf-8") + (
        "import uvmsim\n"
        "study = uvmsim.Scenario(policies=['lru', Busy], slots=0.25, limit=20)\n"
        "print([run.policy for run in study.compare()])\n"
    )
    done = subprocess.run(
        [sys.executable, "-"],
        input=lines,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.stdout.strip() == "['lru', 'busy']", done.stderr


def test_sizes_are_numbers_and_text():
    s = uvmsim.Scenario
    assert s(slots=0.25) == s(slots="25%") == s(slots=["25%"]) == s(slots=(np.float64(0.25),))
    assert s(slots=64) == s(slots="64") == s(slots=[np.int64(64)])
    assert s(slots=1) != s(slots=1.0) == s(slots="100%")
    assert s(vram=2.0**30) == s(vram=1 << 30)
    runs = [
        uvmsim.compare(s(vram=v, link=x, limit=8, policies="lru"))[0].to_json()
        for v, x in (("2GiB", "28GB/s"), (2 << 30, 28e9))
    ]
    assert runs[0] == runs[1]


# ---- equal questions ------------------------------------------------------------------------------


def test_equal_questions_are_equal_wherever_they_were_made():
    trace = uvmsim.open_trace().head(40)
    study = uvmsim.Scenario(
        trace,
        model=None,
        slots=[0.25, 96],
        policies=["lru", Mine, with_step(3), (Mine, "next-layer")],
    )
    same = [
        pickle.loads(pickle.dumps(study)), copy.deepcopy(study), study.with_(seed=0),
        study.with_(trace=uvmsim.open_trace().head(40)),
        study.with_(policies=["lru", Mine(), with_step(3), (Mine, "next-layer")]),
    ]  # fmt: skip
    for other in same:
        assert other == study and hash(other) == hash(study)
        assert other.to_json() == study.to_json()
    for change in (
        {"seed": 1}, {"trace": trace.head(39)}, {"policies": ["lru", Mine]}, {"slots": 96},
        {"policies": ["lru", Mine, with_step(4), (Mine, "next-layer")]}, {"trace": None},
    ):  # fmt: skip
        assert study.with_(**change) != study
    assert uvmsim.Scenario("a.arrow") == uvmsim.Scenario(Path("a.arrow")) != "a.arrow"


def test_a_question_does_not_change_under_way():
    given = with_step(3)
    study = uvmsim.Scenario(policies=[given])
    given.step = 4
    assert study == uvmsim.Scenario(policies=[with_step(3)])
    with pytest.raises(AttributeError):
        study.seed = 1


# ---- answers --------------------------------------------------------------------------------------


def test_an_answer_is_a_sequence_and_a_table(capsys):
    study = uvmsim.Scenario(
        policies=["lru", "belady"], mechanisms=["expert-cache", "resident"], **SMALL
    )
    result = study.compare()
    assert len(result) == len(list(result)) == 3
    assert result[-1].mechanism == "resident" and [r.policy for r in result[:2]] == [
        "lru",
        "belady",
    ]
    table = result.table()
    assert isinstance(table, pa.Table) and table.num_rows == 3
    assert {"policy", "slots", "hit_rate", "time_s", "bytes_h2d", "prefetch_issued"} <= {
        *table.column_names
    }
    assert not any(pa.types.is_struct(f.type) for f in table.schema)
    result.show()
    out = capsys.readouterr().out
    assert "belady (bound)" in out
    assert "belady (bound)" in result._repr_html_() and result._repr_html_().startswith("<pre")
    assert len(repr(result)) < 80 and "3 outcomes" in repr(result)


def test_pandas_is_asked_for_where_it_is_not(monkeypatch):
    result = uvmsim.mrc(uvmsim.Scenario(limit=20, slots=[64], policies="lru"))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(uvmsim.InputError, match="pip install pandas"):
        result.to_pandas()


def test_sweeps_take_fields_as_axes(tmp_path):
    study = uvmsim.Scenario(policies="lru", **SMALL)
    axes = {"slots": [0.25, "50%"], "link": ["12GB/s", 28e9], "policies": [LRU, "fifo"]}
    result = uvmsim.sweep(study, axes=axes, folder=tmp_path / "rows")
    rows = result.table().to_pylist()
    assert len(result) == 8 and {r["status"] for r in rows} == {"ok"}
    assert {(r["slots_asked"], r["policy"]) for r in rows} == {
        (s, p) for s in ("25%", "50%") for p in ("lru", "fifo")
    }
    one = study.with_(link="12GB/s", slots=0.5).compare()[0].to_json()
    (row,) = [r for r in rows if (r["policy"], r["slots_asked"], r["link_bytes_per_s"])
              == ("lru", "50%", 12_000_000_000)]  # fmt: skip
    assert row["time_s"] == one["time_s"] and row["misses"] == one["misses"]
    assert uvmsim.sweep(study, axes=axes, folder=tmp_path / "rows").summary.ran == 0
    assert "decode" in result._repr_html_()
    with pytest.raises(uvmsim.InputError, match="in memory alone"):
        uvmsim.sweep(uvmsim.open_trace().head(5), axes={"seed": [1, 2]})
    with pytest.raises(uvmsim.InputError, match="no field of a Scenario: slotz"):
        uvmsim.sweep(study, axes={"slotz": [1]})


def test_benches_take_scenarios():
    (row,) = (
        uvmsim.microbench(uvmsim.Scenario(vram="256MiB"), ratios=[0.95], passes=2)
        .table()
        .to_pylist()
    )
    assert row["ratio"] == 0.95 and row["policy"] == "default"
    small = uvmsim.Scenario(vram="256MiB")
    asked = uvmsim.microbench(small, ratios=[0.95], passes=2).to_json()["options"]
    assert (asked["ratios"], asked["policies"]) == ((0.95,), ("default",))
    made = uvmsim.llama_bench(
        uvmsim.Scenario(model="gpt-oss-20b", hardware="rtx4090", mechanisms="resident"),
        prompt=8, generate=2, reps=1,
    )  # fmt: skip
    assert [r["test"] for r in made.table().to_pylist()] == ["pp8", "tg2"]


# ---- arrays ---------------------------------------------------------------------------------------


def test_a_trace_from_arrays():
    ids = np.array([[[0, 1], [2, 3]], [[1, 2], [3, 0]], [[2, 3], [0, 1]]])
    trace = uvmsim.routing(ids, n_experts=4, prefill=2, seq=[7, 7, 7], expert_bytes=10)
    assert trace.phase.tolist() == [0, 0, 0, 0, 1, 1]
    assert trace.step.tolist() == [0, 0, 0, 0, 1, 1]
    assert trace.layer.tolist() == [0, 0, 1, 1, 0, 1]
    assert trace.pos.tolist() == [0, 1, 0, 1, 2, 2]
    assert trace.experts.tolist() == [[0, 1], [1, 2], [2, 3], [3, 0], [2, 3], [0, 1]]
    two = uvmsim.routing(ids, 4, seq=[0, 1, 0], layers=[3, 5])
    assert two.pos.tolist() == [0, 0, 0, 0, 1, 1] and two.layers == (3, 5)
    assert two.step.tolist() == [0, 0, 1, 1, 2, 2]
    weights = np.tile([0.6, 0.4], (3, 2, 1))
    assert uvmsim.routing(ids, 4, weights=weights).meta.ids_order == "ranked"
    scores = np.random.default_rng(0).random((3, 2, 4))
    assert "router_scores" in uvmsim.routing(ids, 4, scores=scores).capabilities


@pytest.mark.parametrize(
    ("given", "argument"),
    [
        ({"ids": np.zeros((3, 2))}, "ids"),
        ({"ids": np.full((3, 2, 2), 4)}, "ids"),
        ({"ids": np.zeros((0, 2, 2), int)}, "ids"),
        ({"n_experts": 0}, "n_experts"),
        ({"n_experts": 1}, "n_experts"),
        ({"weights": np.zeros((3, 2))}, "weights"),
        ({"scores": np.zeros((3, 2, 2))}, "scores"),
        ({"seq": [0, 1]}, "seq"),
        ({"phase": [0.5, 1, 1]}, "phase"),
        ({"layers": [1, 0]}, "layers"),
    ],
)
def test_arrays_that_are_no_trace(given, argument):
    with pytest.raises(uvmsim.InputError) as error:
        uvmsim.routing(**({"ids": np.tile([0, 1], (3, 2, 1)), "n_experts": 4} | given))
    assert error.value.argument == argument and str(error.value).startswith(argument)


# ---- mistakes -------------------------------------------------------------------------------------

MISTAKES = [
    ({"slots": "300%"}, "slots 300%: that is 768", ["--slots", "300%"], "--slots 300%: that is 768"),
    ({"vram": "24g"}, "vram '24g' is ambiguous", ["--vram", "24g"], "--vram '24g' is ambiguous"),
    ({"link": "0GB/s"}, "link '0GB/s'", ["--link", "0GB/s"], "--link '0GB/s'"),
    ({"limit": 0}, "limit 0: give", ["--limit", "0"], "--limit 0: give"),
    ({"unit": "x"}, "unit x: must be", ["--unit", "x"], "--unit x: must be event or access"),
    ({"pool": "x"}, "pool x: must", ["--pool", "x"], "--pool x: must be global or per-layer"),
    ({"threshold": 0}, "threshold 0: a share", ["--threshold", "0"], "--threshold 0: a share"),
    ({"mechanisms": "x"}, "mechanisms x: not", ["--mechanism", "x"], "--mechanism x: not known"),
    ({"engine": "x"}, "engine x: must", ["--engine", "x"], "--engine x: must be one of des, fast"),
    ({"expert_size": "0B"}, "expert_size 0B: an", ["--expert-size", "0B"], "--expert-size 0B: an"),
    ({"policies": "lru", "mechanisms": "uvm"}, "policies lru: none of them is for `mechanisms` uvm",
     ["--policy", "lru", "--mechanism", "uvm"], "--policy lru: none of them is for --mechanism uvm"),
    ({"policies": "static-pin"}, "give `profile` TRACE",
     ["--policy", "static-pin"], "learns from a profile trace; give --profile TRACE"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "said", "words", "printed"), MISTAKES)
def test_the_argument_in_python_and_the_flag_on_the_command_line(given, said, words, printed):
    with pytest.raises(uvmsim.InputError) as error:
        uvmsim.compare(uvmsim.Scenario(**given))
    assert said in str(error.value) and "--" not in str(error.value)
    done = CliRunner().invoke(command, words)
    assert printed in str(done.exception)


def test_errors_survive_a_process():
    error = pickle.loads(pickle.dumps(uvmsim.InputError("x: no", "slots")))
    assert (str(error), error.argument) == ("slots x: no", "slots")


def test_values_that_mean_nothing_are_refused_at_once():
    for given, argument in (
        ({"trace": 5}, "trace"), ({"model": 5}, "model"), ({"slots": 1.5}, "slots"),
        ({"slots": [True]}, "slots"), ({"seed": -1}, "seed"), ({"limit": 2.5}, "limit"),
        ({"vram": -1}, "vram"), ({"mechanisms": [3]}, "mechanisms"), ({"reset": "x"}, "reset"),
    ):  # fmt: skip
        with pytest.raises(uvmsim.InputError) as error:
            uvmsim.Scenario(**given)
        assert error.value.argument == argument
    with pytest.raises(uvmsim.InputError, match="did you mean 'slots'"):
        uvmsim.Scenario().with_(slot=3)


# ---- the page -------------------------------------------------------------------------------------


def test_the_page_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    scope = {"__name__": __name__}
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    assert len(blocks) >= 6
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), scope)
