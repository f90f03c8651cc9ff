"""No table cuts a number, however narrow the terminal; what has no room is left out and said."""

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.box import MARKDOWN
from rich.cells import cell_len
from rich.console import Console

from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.report.fit import Column, Row, show

LONG = "./docs/examples/busy.py:Busy+./mine.py:RunnerUp"


def console(width: int, terminal: bool = True) -> Console:
    return Console(
        file=io.StringIO(), width=width, force_terminal=terminal, color_system=None, highlight=False
    )


def text(made: Console) -> str:
    return made.file.getvalue()


def lines(made: Console) -> list[str]:
    return text(made).splitlines()


@given(
    width=st.integers(20, 140),
    numbers=st.lists(
        st.lists(st.integers(0, 10**9), min_size=5, max_size=5), min_size=1, max_size=4
    ),
    name=st.sampled_from(["lru", "lru+next-layer", LONG]),
    stays=st.integers(0, 4),
    markdown=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_no_number_is_cut_at_any_width(width, numbers, name, stays, markdown):
    """Every cell of a column that stayed is there whole, and columns that left are named."""
    heads = ("decode t/s", "services/chunk", "GB in", "ok/late/lost", "x Belady")
    columns = [Column("policy", "left", name=True)]
    columns += [Column(h, leaves=0 if i == stays else i + 1) for i, h in enumerate(heads)]
    rows = [Row([name, *(f"{n:,}" for n in row)]) for row in numbers]
    out = console(width)
    look = {"box": MARKDOWN, "break_heads": False} if markdown else {}
    left = show(out, columns, rows, **look)
    told = text(out)
    assert "…" not in told and heads[stays] not in left
    found = re.findall(r"\d[\d,]*", told.split("too narrow")[0].replace(LONG, ""))
    kept = [i for i, h in enumerate(heads) if h not in left]
    assert found == [f"{row[i]:,}" for row in numbers for i in kept]
    assert ("too narrow for" in told) == bool(left)
    for head in left:
        assert head in " ".join(told.split("too narrow for")[1].split())
    letters = "".join(re.findall(r"[a-zA-Z]", told))
    assert "".join(re.findall("[a-zA-Z]", name))[:15] in letters
    if len(left) < 4:
        assert max(cell_len(line) for line in lines(out)) <= width


def test_what_fits_is_as_it_was():
    columns = [Column("policy", "left", name=True), Column("decode t/s", leaves=1)]
    out = console(80)
    assert show(out, columns, [Row(["lru", "1.5"])]) == []
    assert lines(out)[1].split() == ["policy", "decode", "t/s"]


def test_a_pipe_has_no_width():
    columns = [
        Column("policy", "left", name=True),
        *(Column(f"head {i}", leaves=i) for i in range(9)),
    ]
    rows = [Row([LONG, *(f"{10**9 + i:,}" for i in range(9))])]
    out = console(80, terminal=False)
    assert show(out, columns, rows) == []
    row = next(line for line in lines(out) if "1,000" in line)
    assert row.split() == [LONG, *(f"{10**9 + i:,}" for i in range(9))]


def whole(told: str, names: list[str]) -> None:
    """Nothing is cut, and every row can be told from the others."""
    assert "…" not in told
    squeezed = "".join(told.split())
    for name in names:
        assert name in squeezed, told


@pytest.fixture(scope="module")
def compared():
    from uvmsim.studies.compare import compare
    from uvmsim.studies.scenario import Scenario

    return compare(Scenario(limit=800))


@pytest.mark.parametrize("width", [80, 60, 40])
def test_compare(compared, width):
    from uvmsim.report.table import print_comparison

    out = console(width)
    print_comparison(compared, out)
    whole(text(out), ["lru", "lfu", "layer-lru", "lru+next-layer", "belady(bound)"])
    for run in compared.runs:
        speed = f"{run.to_json()['decode_tokens_per_s']:,.0f}"
        row = next(line for line in lines(out) if f" {run.policy} " in line)
        assert speed in row.split()
    # The bar's legend, and the other ones, go with their columns.
    assert "time: " not in text(out) and "compute" not in text(out)
    assert ("x Belady: misses" in text(out)) == (width > 40)
    broad = console(118)
    print_comparison(compared, broad)
    assert "too narrow" not in text(broad) and "compute" in text(broad)


def test_compare_with_a_long_name(compared):
    from dataclasses import replace

    from uvmsim.report.table import print_comparison

    job = replace(compared.runs[0].job, policy=replace(compared.runs[0].job.policy, name=LONG))
    runs = [replace(compared.runs[0], job=job), *compared.runs[1:]]
    for terminal in (True, False):
        out = console(80, terminal)
        print_comparison(replace(compared, runs=runs), out)
        whole(text(out), ["lru+next-layer"])
        named = re.sub("[^a-zA-Z]", "", text(out))
        assert "docsexamplesbus" in named and "Up" in named, text(out)
        assert terminal or LONG in text(out)
        assert "decode" in text(out)


def microbench_table():
    from uvmsim.studies.microbench.table import Microbench, Options

    def row(ratio, policy, ms):
        return {
            "ratio": ratio, "policy": policy, "total_ms": ms, "median_pass_ms": ms / 7,
            "chunks_in": 123_456, "evictions": 98_765, "services_per_chunk": 31.25,
            "bytes_h2d": 258_000_000_000, "bytes_d2h": 207_000_000_000, "notes": [],
        }  # fmt: skip

    names = ("default", "prefetch_always_max", "prefetch_none+eviction_fifo_chance")
    rows = [row(r, p, 12_345.678) for r in (0.95, 1.05) for p in names]
    return Microbench(Options(), Hardware.load("a30"), rows, [])


@pytest.mark.parametrize("width", [80, 60])
def test_microbench(width):
    from uvmsim.report.microbench_table import print_table

    out = console(width)
    print_table(microbench_table(), out)
    whole(text(out), ["prefetch_always_max", "prefetch_none+evic", "chance", "12,345.678"])
    for ratio in ("0.95x", "1.05x"):
        assert text(out).count(ratio) == 3
    assert text(out).count("12,345.678") == 6


@pytest.mark.parametrize("width", [80, 60])
def test_llama_bench(width):
    from uvmsim.report.llama_bench_table import print_table
    from uvmsim.studies.llamabench.table import LlamaBench, Options

    def row(mechanism, policy, test):
        return {
            "mechanism": mechanism, "policy": policy, "test": test, "status": "ok",
            "tokens_per_s": 11_309.92, "sd": 0.12, "bytes_h2d": 258e9, "bytes_d2h": 207e9,
            "chunks_in": 123_456.0, "services_per_chunk": 31.25,
        }  # fmt: skip

    policies = ("default", "prefetch_always_max", "phase:copy-used,prefetch_always_max")
    rows = [row("uvm", p, t) for p in policies for t in ("pp512", "tg128")]
    rows += [row("cpu-offload", None, t) | {"ncmoe": 36} for t in ("pp512", "tg128")]
    out = console(width)
    made = LlamaBench(Options(), Model.load("gpt-oss-20b"), Hardware.load("rtx5090"), rows, [])
    print_table(made, out)
    whole(text(out), ["prefetch_always_max", "uvm"])
    assert text(out).count("11309.92 ± 0.12") == 8
    assert text(out).count("cpu-offload 36") == 2  # not two letters a line
    table = [line for line in lines(out) if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and set(table[1]) == {"|", "-"}


def test_replay():
    from replay.report import print_study
    from replay.study import replay
    from uvmsim.studies.scenario import Scenario

    scenario = Scenario(policies=("lru", "lru+next-layer"), limit=6)
    made = replay(scenario, backend="host")
    for width in (80, 60):
        out = console(width)
        print_study(made, out)
        whole(text(out), ["lru", "lru+next-layer", "verified", "yes"])
        head = " ".join(lines(out)[3:6])
        assert "decode" in head and "verified" in head


@pytest.mark.parametrize("width", [80, 50])
def test_curves_stand_in_blocks(width):
    from uvmsim.report.mrc_table import print_curves
    from uvmsim.studies.mrc.study import mrc
    from uvmsim.studies.scenario import Scenario

    made = mrc(Scenario(policies=("belady", "lfu", "layer-lru", "fifo"), limit=800))
    out, broad = console(width), console(400)
    print_curves(made, out)
    print_curves(made, broad)
    assert "…" not in text(out)
    assert max(map(cell_len, lines(out)[1:])) <= width
    values = re.compile(r"\d+\.\d\d%")
    sizes = len(made.sizes)
    blocks = text(out).count("slots")
    assert blocks > 1
    # The share of each size is told again in every block.
    extra = (blocks - 1) * sizes
    assert len(values.findall(text(out))) == len(values.findall(text(broad))) + extra


def test_lists_fold(monkeypatch, capsys):
    from click.testing import CliRunner

    from uvmsim.commands.lists import hardware
    from uvmsim.commands.policies import policies
    from uvmsim.report import progress

    monkeypatch.setattr(progress, "wide", lambda: Console(width=80, color_system=None))
    monkeypatch.setenv("COLUMNS", "80")
    for command in (policies, hardware):
        assert "…" not in CliRunner().invoke(command, []).output


def test_cells_are_neither_markup_nor_commands_to_the_terminal():
    import io

    from rich.console import Console

    from uvmsim.report.fit import Column, Row, show

    for width in (80, 12):
        out = io.StringIO()
        console = Console(file=out, width=width, force_terminal=True, color_system=None)
        show(console, [Column("policy", "left", name=True)], [Row(["a[red]b"]), Row(["c\x1b[2Jd"])])
        assert "a[red]b" in out.getvalue() and "\x1b[2J" not in out.getvalue()
