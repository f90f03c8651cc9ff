"""Sweeps: what a config means, which cells it has, and that their rows are those of `simulate`."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

import uvmsim
from traces.errors import InputError
from traces.samples import BUNDLED
from uvmsim.studies.compare import compare
from uvmsim.studies.scenario import Scenario
from uvmsim.studies.sweep.cells import chunks, expand
from uvmsim.studies.sweep.config import SweepConfig, load
from uvmsim.studies.sweep.rows import COLUMNS, MEASURES, PARAMETERS, flatten
from uvmsim.studies.sweep.runner import Runner
from uvmsim.studies.sweep.source import facts_of, traces_of

SIZE = "13.2MB"


def cells_of(**axes):
    config = SweepConfig(**({"expert_size": SIZE} | axes))
    return expand(config, {p: facts_of(p) for p in traces_of(config)})


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    return path


def test_scalars_lists_and_ranges_are_axes(tmp_path):
    config = load(
        written(
            tmp_path,
            'policy = ["lru", "lfu", "lru"]\nseed = 3\n'
            'vram = { from = "4GiB", to = "8GiB", steps = 3 }\n'
            'link = { from = "10GB/s", to = "40GB/s", steps = 3, scale = "log" }\n'
            'slots = { from = "10%", to = "30%", steps = 3 }\n',
        )
    )
    assert config.policy == ["lru", "lfu"]
    assert config.seed == [3]
    assert config.vram == [4 << 30, 6 << 30, 8 << 30]
    assert config.link == [10 * 10**9, 20 * 10**9, 40 * 10**9]
    assert config.slots == ["10%", "20%", "30%"]
    assert config.hardware == ["rtx5090"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('polcy = "lru"', "unknown key 'polcy'; did you mean 'policy'?"),
        ('policy = "lruu"', "policy: policy 'lruu' is not known"),
        ('hardware = "rtx5091"', "hardware: unknown hardware 'rtx5091'; did you mean rtx5090?"),
        ('program = "replay"', "program: unknown engine 'replay'; did you mean replay-h100?"),
        ('mechanism = "expert-cash"', "did you mean 'expert-cache'?"),
        ('vram = "24g"', "vram: '24g' is ambiguous"),
        ("vram = []", "vram: an empty list"),
        ('link = { form = "1GB/s", to = "2GB/s", steps = 3 }', "did you mean 'from'?"),
        ('link = { from = "1GB/s", to = "2GB/s" }', "a range needs 'steps'"),
        ('link = { from = "1GB/s", to = 5, steps = 2 }', "the same kind of quantity"),
        ('pool = "one"', "pool: 'one': must be global or per-layer"),
        ("seed = true", "seed: True: must be a whole number"),
        ('slots = "some"', "slots: 'some': give a number of experts or a share"),
        ("policy =", "not valid TOML"),
    ],
)
def test_a_bad_config_is_one_line_with_the_key(tmp_path, text, told):
    path = written(tmp_path, text)
    with pytest.raises(InputError) as err:
        load(path)
    assert str(err.value).startswith(str(path))
    assert told in str(err.value)
    assert "\n" not in str(err.value)


def test_paths_in_a_config_are_beside_it(tmp_path):
    config = load(written(tmp_path, 'trace = ["a.arrow", "https://host/b.arrow"]'))
    assert config.trace == [str(tmp_path / "a.arrow"), "https://host/b.arrow"]


def test_every_shipped_config_is_valid():
    folder = Path(__file__).parents[1] / "experiments" / "sweeps"
    names = [p.name for p in sorted(folder.glob("*.toml")) if load(p)]
    assert names == ["bundled.toml", "gpt_oss_20b.toml"]
    big = SweepConfig(**tomllib.loads((folder / "gpt_oss_20b.toml").read_text()))
    assert len(big.policy) * len(big.vram) * len(big.link) == 10_000


def test_keys_are_stable_and_tell_every_parameter_apart(tmp_path):
    axes = {"policy": ["lru", "lfu"], "slots": ["20%", "40%"], "link": ["8GB/s", "9GB/s"],
            "hardware": ["rtx5090", "rtx4090"], "seed": [0, 1], "pool": ["global", "per-layer"],
            "reset": ["never", "sequence"], "unit": ["event", "access"], "limit": [20, 30],
            "write_back": [False, True], "pageable": [False, True]}  # fmt: skip
    cells = cells_of(**axes)
    assert len(cells) == len({c.key for c in cells}) == 2 ** len(axes)
    assert [c.key for c in cells] == [c.key for c in cells_of(**axes)]
    # The key is the trace's content, not its place.
    copy = tmp_path / "elsewhere.arrow"
    copy.write_bytes(BUNDLED.read_bytes())
    here, there = cells_of(trace=str(BUNDLED)), cells_of(trace=str(copy))
    assert [c.key for c in here] == [c.key for c in there]


def test_the_same_memory_said_otherwise_is_the_same_cell():
    a, b = cells_of(vram="8GiB", policy="lru"), cells_of(vram=8 << 30, policy="lru")
    assert a[0].key == b[0].key
    total = a[0].row["experts"]
    half = cells_of(slots=["50%", total // 2], policy="lru")
    assert len(half) == 1


def test_a_users_policy_is_known_by_its_source(tmp_path):
    file = tmp_path / "mine.py"
    source = (Path(__file__).parents[1] / "uvmsim" / "policies" / "lru.py").read_text()
    file.write_text(source.replace('"lru"', '"mine"'))
    one = cells_of(policy=f"{file}:LRU")[0].key
    assert cells_of(policy=f"{file}:LRU")[0].key == one
    file.write_text(source.replace('"lru"', '"mine"') + "# changed\n")
    assert cells_of(policy=f"{file}:LRU")[0].key != one


def test_options_that_do_not_apply_make_no_cells():
    cells = cells_of(
        mechanism=["expert-cache", "zero-copy"], policy=["lru", "lfu"], slots=["20%", "40%"],
        pool=["global", "per-layer"], seed=[0, 1],
    )  # fmt: skip
    assert len([c for c in cells if c.mechanism == "expert-cache"]) == 16
    assert len([c for c in cells if c.mechanism == "zero-copy"]) == 1


def test_chunks_share_their_decisions_and_lose_no_cell():
    cells = cells_of(
        policy=["lru", "lfu"], slots=["20%", "40%"], link=[f"{i}GB/s" for i in range(1, 11)]
    )
    cut = list(chunks(cells, 4))
    assert [c for chunk in cut for c in chunk] == cells
    assert [len(chunk) for chunk in cut] == [4, 4, 2] * 4
    assert all(len({c.share for c in chunk}) == 1 for chunk in cut)


GRIDS = [
    {"policy": ["lru", "lfu", "lru+next-layer", "belady"], "slots": ["20%", "45%"],
     "link": ["8GB/s", "30GB/s"], "hardware": ["rtx5090", "a100"]},
    {"policy": ["lru", "random"], "vram": ["2GiB", "4GiB", "32GiB"], "link": ["8GB/s", "30GB/s"],
     "write_back": [False, True], "pageable": [False, True], "seed": [1, 2]},
    {"policy": ["lru+previous-token"], "slots": ["30%"], "reset": ["never", "sequence"],
     "pool": ["global", "per-layer"], "unit": ["event", "access"], "link": ["8GB/s", "30GB/s"]},
    {"mechanism": ["resident", "stream", "zero-copy", "cpu-offload"], "ncmoe": [1, 2],
     "link": ["8GB/s", "30GB/s"], "vram": ["1GiB", "32GiB"]},
]  # fmt: skip


@pytest.mark.parametrize("axes", GRIDS)
def test_rows_are_exactly_those_of_single_runs(axes):
    """Decisions taken over from a neighbour give what a run from scratch gives, to the last bit."""
    runner = Runner()
    for cell in cells_of(**axes, limit=60):
        row = runner.row(cell)
        options = Scenario(
            expert_size=SIZE, limit=60, unit=cell.unit, hardware=cell.row["hardware"],
            vram=str(cell.row["vram_bytes"]), link=f"{cell.row['link_bytes_per_s']}B/s",
            slots=(str(cell.slots),) if cell.slots else (), mechanisms=(cell.mechanism,),
            policies=(cell.policy,) if cell.policy else (), pool=cell.pool, reset=cell.reset,
            write_back=cell.write_back, pageable=not cell.pinned, seed=cell.seed,
            ncmoe=cell.row["ncmoe"],
        )  # fmt: skip
        try:
            (run,) = compare(options).runs
        except InputError as err:
            assert (row["status"], row["error"]) == ("error", str(err))
            continue
        want = run.to_json()
        assert row["status"] == want["status"]
        if want["status"] == "ok":
            flat = flatten(want)
            assert {k: row[k] for k, _ in MEASURES if k in flat} == {
                k: flat[k] for k, _ in MEASURES if k in flat
            }
        else:
            assert (row["needed_bytes"], row["error"]) == (want["needed_bytes"], want["what"])


def test_every_measure_has_its_column():
    (cell,) = cells_of(policy="lru", slots="30%", limit=20)
    row = Runner().row(cell)
    assert set(row) - {k for k, _ in COLUMNS} == set()
    assert {k for k, _ in PARAMETERS} - set(row) == set()


def test_what_goes_wrong_in_a_cell_is_its_row():
    good, small = cells_of(policy="lru", slots=["30%", 1], limit=20)
    (big,) = cells_of(mechanism="resident", vram="1MiB", limit=20)
    (needs,) = cells_of(policy="lru+score-rank", slots="30%", limit=20)
    changed = replace(good, trace=replace(good.trace, sha256="0" * 64))
    rows = list(Runner().rows([small, big, needs, changed, good]))
    assert [r["status"] for r in rows][:2] == ["error", "out-of-memory"]
    assert "smaller than" in rows[0]["error"]
    assert rows[1]["needed_bytes"] > rows[1]["available_bytes"]
    assert "changed while the sweep ran" in rows[3]["error"]
    assert rows[4]["status"] == "ok"


def test_an_exception_is_a_row_with_its_place(monkeypatch):
    import uvmsim.clocks.fast as fast

    def broken(plan):
        raise RuntimeError("boom")

    monkeypatch.setattr(fast, "run", broken)
    (cell,) = cells_of(policy="lru", slots="30%", limit=20)
    row = Runner().row(cell)
    assert row["status"] == "error"
    assert row["error"].startswith("RuntimeError: boom (test_sweep_cells.py, line ")


def test_a_program_is_an_axis_and_leaves_the_keys_of_the_machines_own_as_they_were():
    how = {"policy": "lru", "hardware": "h100"}
    cells = cells_of(**how, program=["estimated-python", "replay-h100"])
    assert [c.row["program"] for c in cells] == ["estimated-python", "replay-h100"]
    assert cells[0].share == cells[1].share and cells[0].key != cells[1].key
    assert cells[0].key == cells_of(**how)[0].key


def test_host_memory_reserve_and_context_are_axes():
    """Each makes cells of its own, whose rows are those of single runs."""
    axes = {
        "mechanism": ["cpu-offload", "expert-cache"], "policy": ["lru"], "vram": ["2GiB"],
        "ram_bandwidth": ["20GB/s", "60GB/s"], "reserve": ["0B", "256MiB"], "ctx": [1000, 200_000],
        "kv_type": ["f16", "q4_0"],
    }  # fmt: skip
    cells = cells_of(**axes, limit=60)
    assert len(cells) == 32 and len({c.key for c in cells}) == 32
    runner = Runner()
    for cell in cells:
        row = runner.row(cell)
        (run,) = compare(
            Scenario(
                expert_size=SIZE, limit=60, mechanisms=cell.mechanism, policies=cell.policy or (),
                vram="2GiB", ram_bandwidth=row["ram_bytes_per_s"], reserve=row["reserve_bytes"],
                ctx=row["ctx"], kv_type=row["kv_type"],
            )
        ).runs  # fmt: skip
        want = run.to_json()
        assert (row["status"], row.get("error")) == (want["status"], want.get("what"))
        if want["status"] == "ok":
            flat = flatten(want)
            assert {k: row[k] for k, _ in MEASURES if k in flat} == {
                k: flat[k] for k, _ in MEASURES if k in flat
            }


def test_what_the_paging_driver_costs_is_in_the_keys_of_paged_cells_only(tmp_path):
    path = tmp_path / "mine.toml"
    keys = []
    for ns in ("1 us", "2 us"):
        path.write_text(f'base = "rtx4090"\n[uvm.entry_ns]\nvalue = "{ns}"\nsource = "a test"\n')
        of = {"hardware": [str(path)], "limit": 60, "vram": ["1GiB"]}
        (cache,) = cells_of(mechanism=["expert-cache"], policy=["lru"], **of)
        (paged,) = cells_of(mechanism=["uvm"], policy=["default"], **of)
        keys.append((cache.key, paged.key))
    assert keys[0][0] == keys[1][0] and keys[0][1] != keys[1][1]


def test_what_is_not_asked_keeps_the_keys_of_kept_rows():
    """A dataset of before there were these axes goes on: the same cells have the same keys. (These are
    of the RTX 5090 as its preset is now: another number is another key.)"""
    keys = {
        "expert-cache": "f31bfbf6c316ddce09958e5d055fa7e7",
        "cpu-offload": "e6606eb993fa42b19902dce3bf6ae73a",
    }
    for mechanism, key in keys.items():
        (cell,) = cells_of(mechanism=[mechanism], policy=["lru"], slots=["25%"], limit=60)
        assert cell.key == key, mechanism
        (same,) = cells_of(
            mechanism=[mechanism], policy=["lru"], slots=["25%"], limit=60, reserve=["0B"]
        )
        assert same.key == key


def test_machines_with_parts_in_a_file(tmp_path):
    (tmp_path / "box.toml").write_text('base = "a30"\n')
    config = load(written(tmp_path, 'hardware = ["rtx3090+pcie3", "box.toml+ddr4-3200"]\n'))
    assert config.hardware == ["rtx3090+pcie3", f"{tmp_path / 'box.toml'}+ddr4-3200"]
    names = [c.row["hardware"] for c in cells_of(hardware=config.hardware, policy=["lru"])]
    assert names == ["rtx3090+pcie3", "box+ddr4-3200"]


def test_axes_from_python():
    result = uvmsim.sweep(
        Scenario(limit=20, mechanisms="cpu-offload", expert_size=SIZE),
        axes={"hardware": ["rtx3060", "a30"], "ncmoe": [4, 8], "ram_bandwidth": ["20GB/s"]},
    )
    rows = result.cells.to_pylist()
    assert [(r["hardware"], r["ncmoe"]) for r in rows] == [
        ("rtx3060", 4), ("a30", 4), ("rtx3060", 8), ("a30", 8),
    ]  # fmt: skip
    assert {r["ram_bytes_per_s"] for r in rows} == {20 * 10**9}
    several = Scenario(limit=20, mechanisms="cpu-offload", hardware=("a30", "a100"), ncmoe=(7, 8))
    assert len(uvmsim.sweep(several)) == 4
