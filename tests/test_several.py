"""Several machines and several numbers of layers in one table; what memory is kept for."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

import uvmsim
from traces.errors import InputError
from uvmsim.commands.compare import compare as compare_command
from uvmsim.commands.llama_bench import llama_bench as llama_bench_command
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import KV_TYPES, Model
from uvmsim.mechanisms.uvm import context_of, setup_of
from uvmsim.runs.job import expert_slots, fixed_bytes
from uvmsim.studies.resolve import resolve
from uvmsim.studies.scenario import Scenario

GIB = 1 << 30
BASE = Scenario(limit=20, vram="3GiB", policies="lru")


def run(command, *words) -> str:
    done = CliRunner().invoke(command, [str(w) for w in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def printed(result, width: int = 80) -> list[str]:
    out = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None,
                  highlight=False)  # fmt: skip
    result.show(out)
    return out.file.getvalue().splitlines()


# ---- several machines, several numbers of layers ---------------------------------------------------


def test_each_machine_has_the_rows_that_it_has_alone():
    names = ("rtx3060", "rtx3090+pcie3", "rtx5090")
    study = BASE.with_(mechanisms=("resident", "expert-cache", "cpu-offload"), slots=("25%", "50%"))
    together = study.with_(hardware=names).compare()
    alone = [study.with_(hardware=n).compare().to_json()["runs"] for n in names]
    assert together.to_json()["runs"] == [row for rows in alone for row in rows]
    assert [r["hardware"] for r in together.rows()] == [n for n in names for _ in alone[0]]


def test_each_number_of_layers_has_the_row_that_it_has_alone():
    study = BASE.with_(mechanisms=("cpu-offload", "resident"), hardware=("rtx3060", "a30"))
    together = study.with_(ncmoe=(6, 8)).compare().to_json()["runs"]
    kinds = [(r["hardware"], r["mechanism"], r.get("ncmoe")) for r in together]
    assert kinds == [
        (hw, m, n) for hw in ("rtx3060", "a30")
        for m, n in (("cpu-offload", 6), ("cpu-offload", 8), ("resident", None))
    ]  # fmt: skip
    for row in together:
        one = study.with_(hardware=row["hardware"], mechanisms=row["mechanism"])
        alone = one.with_(ncmoe=row.get("ncmoe")).compare().to_json()["runs"][0]
        assert alone == {k: v for k, v in row.items() if k != "ncmoe"}


def test_one_is_as_it_was():
    """Whether it stands in a list or not."""
    one, listed = Scenario(hardware="a30", ncmoe=4), Scenario(hardware=["a30"], ncmoe=[4, 4])
    assert one == listed and (listed.hardware, listed.ncmoe) == ("a30", 4)
    assert hash(one) == hash(listed) != hash(Scenario(hardware=["a30", "a100"], ncmoe=4))
    told = json.loads(run(compare_command, "--limit", 20, "--hardware", "a30", "--json"))
    assert told["hardware"] == {"name": "a30", "vram_bytes": 23 * GIB}
    assert told["options"]["hardware"] == "a30"
    assert Scenario(hardware=[]).hardware is None and Scenario(ncmoe=()).ncmoe is None


def test_json_of_several():
    words = ("--limit", 20, "--hardware", "a30,rtx3060", "--hardware", "a30", "--json")
    told = json.loads(run(compare_command, *words, "--mechanism", "cpu-offload", "--ncmoe", "7,8"))
    assert [h["name"] for h in told["hardware"]] == ["a30", "rtx3060"]
    assert (told["options"]["hardware"], told["options"]["ncmoe"]) == (["a30", "rtx3060"], [7, 8])
    rows = [(r["hardware"], r["ncmoe"]) for r in told["runs"]]
    assert rows == [("a30", 7), ("a30", 8), ("rtx3060", 7), ("rtx3060", 8)]


def test_a_file_whose_name_has_a_comma(tmp_path):
    path = tmp_path / "a,b.toml"
    path.write_text('base = "a30"\nname = "comma"\n')
    told = json.loads(run(compare_command, "--limit", 20, "--hardware", path, "--json"))
    assert told["hardware"]["name"] == "comma"


@pytest.mark.parametrize("width", [80, 60])
def test_tables_say_which_row_is_which(width):
    study = BASE.with_(
        mechanisms=("cpu-offload", "expert-cache", "uvm"), policies=("lru", "belady", "default"),
        hardware=("rtx3060+pcie3", "rtx4090"), ncmoe=(6, 8), slots="25%",
    )  # fmt: skip
    lines = printed(study.compare(), width)
    assert sum(line.startswith("hardware rtx3060+pcie3: NVIDIA GeForce RTX 3060") for line in lines)
    assert sum(line.startswith("hardware rtx4090: NVIDIA") for line in lines)
    rows = [line for line in lines if re.match(r" [> ] ?rtx", line)]
    for name in ("rtx3060+pcie3", "rtx4090"):
        for what in ("cpu-offload 6", "cpu-offload 8", "lru", "belady (bound)", "default"):
            assert sum(name in r and f" {what} " in r for r in rows) == 1, (name, what)
    assert max(map(cell_len, rows)) <= width
    assert not any("…" in line for line in lines)


def test_what_does_not_fit_says_where():
    study = BASE.with_(mechanisms="cpu-offload", ncmoe=(1, 8), hardware=("a30", "rtx3060"))
    lines = printed(study.compare(), 200)
    for name in ("a30", "rtx3060"):
        assert sum(f"cpu-offload 1 on {name}: out of memory" in line for line in lines) == 1


@pytest.fixture(scope="module")
def bench():
    return uvmsim.llama_bench(
        Scenario(
            model="gpt-oss-20b", mechanisms=("cpu-offload", "zero-copy"), ncmoe=(12, 24),
            hardware=("rtx3090", "rtx5090"),
        ),
        prompt=16, generate=2, reps=1,
    )  # fmt: skip


def test_llama_bench_takes_lists(bench):
    rows = [
        (r["hardware"], r["mechanism"], r.get("ncmoe"), r["test"]) for r in bench.to_json()["rows"]
    ]
    assert rows == [
        (hw, m, n, test) for hw in ("rtx3090", "rtx5090")
        for m, n in (("cpu-offload", 12), ("cpu-offload", 24), ("zero-copy", None))
        for test in ("pp16", "tg2")
    ]  # fmt: skip
    alone = uvmsim.llama_bench(
        Scenario(model="gpt-oss-20b", mechanisms="cpu-offload", ncmoe=24, hardware="rtx5090"),
        prompt=16, generate=2, reps=1,
    ).to_json()  # fmt: skip
    assert [r | {"hardware": "rtx5090"} for r in alone["rows"]] == bench.runs[8:10]
    assert alone["hardware"]["name"] == "rtx5090"
    assert [h["name"] for h in bench.to_json()["hardware"]] == ["rtx3090", "rtx5090"]


def test_llama_benchs_table_says_which_row_is_which(bench):
    lines = printed(bench)
    assert sum(line.startswith("rtx3090: NVIDIA GeForce RTX 3090") for line in lines) == 1
    rows = [line for line in lines if line.startswith("|rtx")]
    assert len(rows) == 12 and max(map(cell_len, rows)) <= 80
    assert sum("rtx5090" in r and "cpu-offload 12" in r for r in rows) == 2


def test_llama_bench_on_the_command_line():
    words = ("--model", "gpt-oss-20b", "-p", 8, "-n", 1, "-r", 1, "--mechanism", "cpu-offload")
    told = json.loads(run(llama_bench_command, *words, "--ncmoe", "4,0", "--json"))
    assert [r["ncmoe"] for r in told["rows"]] == [4, 4, 0, 0]
    assert told["options"]["ncmoe"] == [4, 0]
    told = json.loads(run(llama_bench_command, *words, "--ncmoe", 4, "--json"))
    assert told["options"]["ncmoe"] == 4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--ncmoe", "16;24"), "--ncmoe 16;24: give whole numbers, 0 or more, such as 16,24"),
        (("--ncmoe", "-1"), "--ncmoe -1: give whole numbers"),
        (("--hardware", "a30,a3O"), "unknown hardware 'a3O'; did you mean a30?"),
        (("--ram-bandwidth", "60GB"), "--ram-bandwidth '60GB' is not a bandwidth"),
        (("--reserve", "1g"), "--reserve '1g' is ambiguous"),
        (("--reserve", "40GiB"), "--reserve: 40.0 GiB kept for something else leave nothing of"),
        (("--kv-type", "q9_0"), "--kv-type q9_0: must be one of f32, f16, bf16, q8_0"),
    ],
)
@pytest.mark.parametrize("command", [compare_command, llama_bench_command])
def test_bad_values_are_one_line(command, words, says):
    with pytest.raises(InputError) as e:
        run(command, "--mechanism", "cpu-offload", *words)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_studies_of_one_machine_say_so():
    several = Scenario(hardware=("a30", "a100"), limit=4)
    for study in (
        lambda: uvmsim.replay(several, backend="host"),
        lambda: uvmsim.microbench(Scenario(hardware=("a30", "a100"))),
    ):
        with pytest.raises(InputError, match=r"hardware a30, a100: give one"):
            study()
    with pytest.raises(InputError, match=r"ncmoe 1, 2: give one"):
        uvmsim.replay(Scenario(ncmoe=(1, 2), limit=4), backend="host")


# ---- reserve, context, type of the KV cache --------------------------------------------------------


def job(**more):
    return resolve(Scenario(limit=60, expert_size="13.2MB", vram="2GiB", **more)).base


def test_a_reserve_is_memory_that_is_not_there():
    plain, kept = job(), job(reserve="512MiB")
    assert fixed_bytes(kept) == fixed_bytes(plain) + 512 * 2**20
    less = resolve(Scenario(limit=60, expert_size="13.2MB", vram="1536MiB")).base
    assert expert_slots(kept) == expert_slots(less) < expert_slots(plain)
    assert kept.hardware.free_bytes == less.hardware.free_bytes
    assert setup_of(kept, False)[0].n_chunks == setup_of(less, False)[0].n_chunks
    assert kept.hardware.vram_bytes == plain.hardware.vram_bytes
    assert kept.hardware.sources["reserve_bytes"] == "given by the user (preset: none)"


def test_a_reserve_stands_in_a_description(tmp_path):
    path = tmp_path / "mine.toml"
    text = 'base = "rtx4090"\n[reserve_bytes]\nvalue = "1.5 GiB"\nsource = "a desktop"\n'
    path.write_text(text)
    h = Hardware.load(str(path))
    assert h.reserve_bytes == 3 * GIB // 2 and h.free_bytes == h.vram_bytes - 3 * GIB // 2
    path.write_text(h.to_toml())
    assert Hardware.load(str(path)) == replace(h, name=h.name)
    none = h.with_(reserve=0)
    assert none.free_bytes == h.vram_bytes
    assert none.numbers() == replace(Hardware.load("rtx4090"), name="mine").numbers()
    shown = printed(Scenario(limit=20, hardware=str(path)).compare(), 200)
    assert any("23.5 GiB less 1.50 GiB reserved" in line for line in shown)


@given(ctx=st.integers(1, 10**6), kind=st.sampled_from(KV_TYPES))
def test_a_context_is_room_for_its_tokens(ctx, kind):
    plain = PLAIN
    model = plain.model.with_kv(kind)
    asked = replace(plain, ctx=ctx, model=model)
    per_token = model.kv_bytes_per_token
    rest = sum(plain.model.dense_bytes) + plain.model.output_bytes
    assert fixed_bytes(asked) == rest + ctx * per_token
    assert context_of(asked) == ctx


PLAIN = job()


def test_types_of_the_kv_cache():
    m = Model.load("gpt-oss-20b")
    f16 = 24 * 2 * 8 * 64 * 2  # layers, keys and values, heads, their width, bytes
    assert m.kv_bytes_per_token == f16 and m.with_kv("f16") == m
    # A block of 32 is 34 bytes (q8_0), 18 (q4_0), as in llama.cpp.
    assert m.with_kv("q8_0").kv_bytes_per_token == f16 // 2 * 34 // 32
    assert m.with_kv("Q4_0").kv_bytes_per_token == f16 // 2 * 18 // 32
    assert m.with_kv("f32").kv_bytes_per_token == 2 * f16
    with pytest.raises(InputError, match="kv_type q3_k: must be one of f32, f16"):
        m.with_kv("q3_k")


def test_a_smaller_kv_cache_leaves_room_for_experts():
    model = replace(PLAIN.model, kv_bytes_per_token=4096)
    slots = [
        expert_slots(replace(PLAIN, ctx=100_000, model=model.with_kv(kind)))
        for kind in ("f16", "q8_0", "q4_0")
    ]
    assert slots[0] < slots[1] < slots[2]
    asked = job(kv_type="q8_0").model.kv_bytes_per_token
    assert asked == PLAIN.model.with_kv("q8_0").kv_bytes_per_token


def test_what_is_not_asked_changes_nothing():
    asked = Scenario(limit=60, reserve=0, kv_type="f16")
    plain = Scenario(limit=60)
    assert asked.compare().to_json()["runs"] == plain.compare().to_json()["runs"]
    assert set(asked.to_json()) - set(plain.to_json()) == {"reserve", "kv_type"}


@pytest.mark.parametrize("bad", [{"ctx": 0}, {"ctx": 1.5}, {"kv_type": 8}, {"ncmoe": -1},
                                 {"ncmoe": (1, -2)}, {"reserve": -1}])  # fmt: skip
def test_bad_fields(bad):
    with pytest.raises(InputError) as e:
        resolve(Scenario(limit=4, **bad))
    assert e.value.argument == next(iter(bad))


# ---- host memory on the command line ---------------------------------------------------------------


def test_a_faster_host_memory_makes_layers_on_the_cpu_faster():
    words = ("--limit", 800, "--mechanism", "cpu-offload", "--vram", "3GiB", "--json")
    speeds = []
    for rate in ("16.55GB/s", "33.1GB/s", "66.2GB/s"):
        told = json.loads(run(compare_command, *words, "--ram-bandwidth", rate))
        speeds.append(told["runs"][0]["decode_tokens_per_s"])
        assert told["options"]["ram_bandwidth"] == rate
    plain = json.loads(run(compare_command, *words))["runs"][0]
    assert speeds[1] == plain["decode_tokens_per_s"]
    assert speeds[0] < 0.6 * speeds[1] and speeds[2] > 1.6 * speeds[1]
