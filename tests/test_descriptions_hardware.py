"""Hardware descriptions: presets against what they were derived from, files good and bad."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.errors import InputError
from uvmsim.machine.descriptions import preset_paths
from uvmsim.machine.engine import SPEEDS, EngineProfile, EngineSpec
from uvmsim.machine.hardware import OLD_ENGINE_KEYS, Hardware, HardwareSpec
from uvmsim.machine.model import Model
from uvmsim.machine.quantities import duration_ns
from uvmsim.studies.llamabench.table import Options, run

NAMES = (
    "a100", "a30", "h100", "h200", "rtx3060", "rtx3090", "rtx4060ti", "rtx4090", "rtx5070ti",
    "rtx5090", "rtx6000ada", "rtxpro6000",
)  # fmt: skip
# Datasheets: device memory GB/s, dense FP16 tensor TFLOPS, GB of memory, PCIe GB/s one way.
DATASHEET = {
    "a100": (2039, 312, 80, 31.5),
    "a30": (933, 165, 24, 31.5),
    "h100": (3352, 989.4, 80, 63),
    "h200": (4800, 989.4, 141, 63),
    "rtx3060": (360, 25.5, 12, 31.5),
    "rtx3090": (936.2, 71, 24, 31.5),
    "rtx4060ti": (288, 44.1, 16, 15.75),
    "rtx4090": (1008, 165.2, 24, 31.5),
    "rtx5070ti": (896, 87.9, 16, 63),
    "rtx5090": (1792, 209.5, 32, 63),
    "rtx6000ada": (960, 364.2, 48, 31.5),
    "rtxpro6000": (1792, 503.8, 96, 63),
}
# What nvidia-smi shows of them, MiB, and their streaming multiprocessors.
SHOWN = {
    "rtx3060": (12288, 28), "rtx3090": (24576, 82), "rtx4060ti": (16380, 34), "rtx4090": (24564, 128),
    "rtx5070ti": (16303, 70), "rtx5090": (32607, 170), "rtx6000ada": (49140, 142),
    "rtxpro6000": (97887, 188),
}  # fmt: skip


def test_there_is_a_preset_for_each():
    assert tuple(Hardware.list_presets()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_presets_stay_below_their_datasheets(name):
    h = Hardware.load(name)
    memory, tflops, gb, pcie = DATASHEET[name]
    assert 0.8 * memory * 1e9 < h.memory_bytes_per_s < memory * 1e9
    for flops in (h.compute_flops, h.reach.compute_flops):
        assert 0.2 * tflops * 1e12 < flops < tflops * 1e12
    assert 0.9 * gb * 1e9 < h.vram_bytes < 1.09 * gb * 1e9  # marketing GB are GiB on some
    assert 0.7 * pcie * 1e9 < h.h2d_bytes_per_s < pcie * 1e9
    assert h.pageable_h2d_bytes_per_s <= h.h2d_bytes_per_s
    assert h.zero_copy_bytes_per_s <= h.h2d_bytes_per_s


@pytest.mark.parametrize("name", SHOWN)
def test_a_program_gets_less_memory_than_the_card_has(name):
    h = Hardware.load(name)
    total, sms = SHOWN[name]
    assert 0.96 * total < h.vram_bytes / 2**20 < 0.985 * total
    assert h.uvm is not None and h.uvm.sm_count == sms


def test_what_nobody_measured_is_the_share_that_the_h100_reached():
    """Of the cards that are datasheets alone, the two speeds follow from these to the last digit."""
    h100 = Hardware.load("h100")
    share = h100.memory_bytes_per_s / DATASHEET["h100"][0] / 1e9
    for name in set(NAMES) - {"h100"}:
        h = Hardware.load(name)
        memory, tflops, _, _ = DATASHEET[name]
        assert h.memory_bytes_per_s == pytest.approx(share * memory * 1e9, rel=0.002), name
        assert h.compute_flops == pytest.approx(0.6 * tflops * 1e12, rel=0.004), name
        assert h.sources["memory_bytes_per_s"].startswith("estimate: 89 % of"), name


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_source(name):
    h = Hardware.load(name)
    quantities = h.quantities()
    assert {k for k, _, _ in quantities} == set(h.sources)
    assert all(value and source for _, value, source in quantities)
    assert h.sources["copy_latency_ns"].startswith(("estimate:", "measured"))
    assert {k for k, _, _ in h.engine.quantities()} == set(h.engine.sources)
    assert all(value and source for _, value, source in h.engine.quantities())


def test_h100_copies_meet_the_measured_table():
    """Back-to-back pinned copies to the device, as measured: bytes -> ns."""
    h = Hardware.load("h100")
    measured = {
        4096: 2600,
        65536: 65536 / 17.7,
        2**18: 2**18 / 35.7,
        2**20: 2**20 / 48.5,
        13_219_200: 13_219_200 / 54.5,
        2**26: 2**26 / 54.7,
    }
    for nbytes, ns in measured.items():
        assert h.copy_ns(nbytes) == pytest.approx(ns, rel=0.011), nbytes
    assert 2**21 / h.copy_ns(2**21) == pytest.approx(50, rel=0.03)  # 44.7 to 50 GB/s measured


def decode_ms(m: Model, h: Hardware, on_cpu: int = 0) -> float:
    """One decoded token with everything on the GPU but the experts of ``on_cpu`` layers."""
    n = len(m.moe_layers)
    experts = m.top_k * m.expert_bytes[0]
    on_gpu = h.roofline_ns(experts, m.top_k * m.expert_flops(0)) + h.engine.expert_launch_ns
    t = h.read_ns(m.resident_bytes) + (m.n_layers + 1) * h.engine.dense_launch_ns
    t += (n - on_cpu) * on_gpu + on_cpu * (h.cpu_ns(experts) + h.engine.cpu_sync_ns)
    return t / 1e6


def prefill_tok_s(m: Model, h: Hardware, copied: int = 0, tokens: int = 512) -> float:
    """pp512: all experts used, those of ``copied`` layers copied in from pageable memory."""
    t = h.read_ns(m.output_bytes) + (m.n_layers + 1) * h.engine.dense_launch_ns
    for block, nbytes in enumerate(m.dense_bytes):
        t += h.roofline_ns(nbytes, m.dense_flops(block, tokens))
    for i, nbytes in enumerate(m.expert_bytes):
        flops = m.expert_flops(i, tokens * m.top_k)
        t += h.roofline_ns(nbytes * m.n_experts, flops) + h.engine.expert_launch_ns
        t += m.n_experts * h.copy_ns(nbytes, pinned=False) if i < copied else 0
    return tokens / t * 1e9


def pp512(model: str, mechanism: str, ncmoe: int | None = None) -> float:
    """llama-bench's prompt speed: its prefills depend on which experts random tokens use."""
    options = Options(model=model, mechanisms=(mechanism,), ncmoe=ncmoe, generate=0, reps=1)
    return run(options).runs[0]["tokens_per_s"]


def test_rtx5090_gives_back_the_rows_it_was_derived_from():
    """llama-bench of the published tables; only the ncmoe 32 rows were not fitted."""
    h = Hardware.load("rtx5090")
    small, big = Model.load("gpt-oss-20b"), Model.load("gpt-oss-120b")
    assert 1e3 / decode_ms(small, h) == pytest.approx(354.6, rel=0.005)
    assert 1e3 / decode_ms(big, h, on_cpu=36) == pytest.approx(16.34, rel=0.005)
    assert 1e3 / decode_ms(big, h, on_cpu=32) == pytest.approx(18.18, rel=0.01)
    assert pp512("gpt-oss-20b", "resident") == pytest.approx(9609.6, rel=0.01)
    assert pp512("gpt-oss-120b", "cpu-offload", 36) == pytest.approx(245.63, rel=0.01)
    assert pp512("gpt-oss-120b", "cpu-offload", 32) == pytest.approx(260.14, rel=0.07)
    launches = 37 * h.engine.dense_launch_ns + 36 * h.engine.expert_launch_ns
    zero_copy = h.zero_copy_ns(big.active_bytes_per_token) + launches
    assert 1e9 / zero_copy == pytest.approx(7.72, rel=0.005)


@given(st.integers(0, 2**40), st.integers(1, 2**45))
def test_durations_round_as_numpy_does(n, rate):
    assert duration_ns(n, rate) == int(np.rint(np.float64(n) / rate * 1e9))


def test_durations():
    h = Hardware.load("h100")
    assert h.copy_ns(0) == 0
    assert h.copy_ns(1) == h.copy_latency_ns
    assert h.copy_ns(10**9) > h.copy_ns(10**9 - 10**6)
    assert h.copy_ns(10**9, "d2h", pinned=False) > h.copy_ns(10**9, "d2h")
    assert h.roofline_ns(10**9, 1) == h.read_ns(10**9)
    assert h.roofline_ns(1, 10**15) == duration_ns(10**15, h.reach.compute_flops)
    with pytest.raises(ValueError, match="h2d"):
        h.copy_ns(1, "sideways")


def test_both_directions_at_once():
    h = Hardware.load("h100")
    assert 46e9 < h.link_bytes_per_s("h2d", both_ways=True) < 50e9
    half = replace(h, duplex=False)
    assert half.link_bytes_per_s("d2h", both_ways=True) == h.d2h_bytes_per_s // 2


def test_overrides():
    h = Hardware.load("h100")
    g = h.with_(vram="24GiB", link="27.35 GB/s")
    assert g.vram_bytes == 24 * 2**30
    assert g.h2d_bytes_per_s == g.d2h_bytes_per_s == 27_350_000_000
    assert g.zero_copy_bytes_per_s == h.zero_copy_bytes_per_s // 2
    assert g.pageable_h2d_bytes_per_s == h.pageable_h2d_bytes_per_s
    assert h.with_(link="1 GB/s").pageable_h2d_bytes_per_s == 10**9
    assert g.sources["vram_bytes"] == "given by the user (preset: 78.0 GiB)"
    assert g.memory_bytes_per_s == h.memory_bytes_per_s
    assert h.with_() == h
    for bad in ({"vram": "24G"}, {"vram": 0}, {"link": "28"}, {"link": "0 GB/s"}):
        with pytest.raises(InputError):
            h.with_(**bad)


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(preset_paths("hardware")["h100"].read_text())
    return path


def test_a_users_own_file(own):
    assert Hardware.load(str(own)) == Hardware.load("h100")
    text = own.read_text()
    own.write_text(text[: text.index("[host_bytes]")])
    assert Hardware.load(str(own)).host_bytes is None


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[vram_bytes]", "[vram_byte]", "unknown key 'vram_byte'; did you mean 'vram_bytes'?"),
        ('value = "78 GiB"', 'valeu = "78 GiB"', "did you mean 'value'?"),
        ('value = "78 GiB"', 'value = "78G"', "vram_bytes.value: '78G' is ambiguous"),
        ('value = "78 GiB"', 'value = "0 GiB"', "vram_bytes.value"),
        ('value = "51 GB/s"', 'value = "51 GB"', "zero_copy_bytes_per_s.value"),
        ('value = "2.5 us"', 'value = "2.5"', "copy_latency_ns.value"),
        ("value = 0.88", "value = 1.5", "duplex_factor.value"),
        ('gpu = "NVIDIA', 'gup = "NVIDIA', "did you mean 'gpu'?"),
    ],
)
def test_bad_files_get_one_line(own, old, new, says):
    text = own.read_text()
    assert old in text
    own.write_text(text.replace(old, new))
    with pytest.raises(InputError) as e:
        Hardware.load(str(own))
    assert says in str(e.value) and str(own) in str(e.value) and "\n" not in str(e.value)


def test_a_bare_value_is_not_enough(own):
    text = own.read_text()
    own.write_text('vram_bytes = "78 GiB"\n' + text.replace("[vram_bytes]", "[gpu_ram]"))
    with pytest.raises(InputError, match="unknown key 'gpu_ram'"):
        Hardware.load(str(own))
    start, end = text.index("[vram_bytes]"), text.index("[memory_bytes")
    own.write_text('vram_bytes = "78 GiB"\n' + text[:start] + text[end:])
    with pytest.raises(InputError, match="must be a table with the keys value, source"):
        Hardware.load(str(own))


def test_unknown_hardware():
    with pytest.raises(InputError, match="did you mean rtx5090"):
        Hardware.load("rtx5900")
    with pytest.raises(InputError, match="presets: a100, a30"):
        Hardware.load("zx81")


def test_a_quantity_needs_its_source(own):
    lines = own.read_text().splitlines()
    del lines[next(i for i, s in enumerate(lines) if s.startswith("source"))]
    own.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"'vram_bytes\.source' is missing"):
        Hardware.load(str(own))


def test_the_spec_and_the_class_name_the_same_things():
    assert set(HardwareSpec.model_fields) == set(Hardware.__dataclass_fields__) - {"sources"}
    assert set(EngineSpec.model_fields) == set(EngineProfile.__dataclass_fields__) - {"sources"}


# ---- engines ------------------------------------------------------------------------------------

ENGINES = (
    "estimated", "estimated-python", "llama.cpp-h100", "llama.cpp-rtx5090", "pytorch-ufm",
    "replay-h100",
)  # fmt: skip
BEFORE = {  # of each machine, what its description said of the program before the two were apart
    "a100": (39_000, 9_700, 10_000, 30_000, None, 187 * 10**12),
    "a30": (39_000, 9_700, 10_000, 30_000, None, 99 * 10**12),
    "h100": (39_000, 12_600, 10_000, 30_000, None, 594 * 10**12),
    "h200": (39_000, 12_600, 10_000, 30_000, None, 594 * 10**12),
    "rtx3060": (39_000, 9_700, 10_000, 30_000, None, 15_300_000_000_000),
    "rtx3090": (39_000, 9_700, 10_000, 30_000, None, 42_600_000_000_000),
    "rtx4060ti": (39_000, 9_700, 10_000, 30_000, None, 26_500_000_000_000),
    "rtx4090": (39_000, 9_700, 10_000, 30_000, None, 99_100_000_000_000),
    "rtx5070ti": (39_000, 9_700, 10_000, 30_000, None, 52_700_000_000_000),
    "rtx6000ada": (39_000, 9_700, 10_000, 30_000, None, 218_500_000_000_000),
    "rtxpro6000": (39_000, 9_700, 10_000, 30_000, None, 302_300_000_000_000),
    "rtx5090": (39_000, 9_700, 10_000, 30_000, 128, 131 * 10**12),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_machine_with_its_engine_has_the_numbers_it_had(name):
    h = Hardware.load(name)
    e = h.engine
    costs = (e.dense_launch_ns, e.expert_launch_ns, e.decision_ns, e.cpu_sync_ns)
    assert (*costs, e.expert_tile_tokens, h.reach.compute_flops) == BEFORE[name]
    assert h.reach.expert_bytes_per_s == h.reach.dense_bytes_per_s == h.memory_bytes_per_s
    assert (e.row_kernel_tokens, e.offload_tokens, e.maps_weights) == (8, 32, True)


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_loads_and_every_number_of_it_has_a_source(name):
    assert tuple(EngineProfile.list_presets()) == ENGINES
    e = EngineProfile.load(name)
    assert e.name == name and e.summary
    plain = {k for k, _, _ in e.quantities() if not k.startswith("terms.")}
    assert plain == set(e.sources) - {"terms"}
    assert all((value or k.startswith("terms.")) and source for k, value, source in e.quantities())
    at_home = Hardware.load(e.machine or "a100", name)
    assert at_home.engine == e  # at home nothing is scaled


def test_another_program_keeps_its_share_of_what_a_machine_reaches():
    program = EngineProfile.load("replay-h100")
    h100, a30 = Hardware.load("h100", "replay-h100"), Hardware.load("a30", "replay-h100")
    assert a30.engine.expert_launch_ns == program.expert_launch_ns
    for own, of_machine in SPEEDS.items():
        if getattr(program, own) is None:
            assert getattr(a30.reach, own) == getattr(a30, of_machine)
            continue
        share = getattr(h100.reach, own) / getattr(h100, of_machine)
        assert getattr(a30.reach, own) == pytest.approx(share * getattr(a30, of_machine))
        assert a30.engine.sources[own].startswith("scaled from ")
    assert replace(a30, engine=program) != a30
    assert a30.with_(vram="8GiB").engine == a30.engine


def test_a_new_engine_is_one_file(tmp_path, monkeypatch):
    text = preset_paths("engines")["estimated"].read_text()
    mine = tmp_path / "engines" / "mine.toml"
    mine.parent.mkdir()
    mine.write_text(text.replace('"estimated"', '"mine"').replace('"9.7 us"', '"1 us"'))
    assert Hardware.load("a100", str(mine)).engine.expert_launch_ns == 1000
    machine = tmp_path / "box.toml"
    machine.write_text(
        preset_paths("hardware")["h100"]
        .read_text()
        .replace('engine = "estimated-python"', 'engine = "engines/mine.toml"')
    )
    assert Hardware.load(str(machine)).engine.name == "mine"
    # Among the presets it is found by its presence.
    there = preset_paths
    monkeypatch.setattr(
        "uvmsim.machine.descriptions.preset_paths",
        lambda kind: there(kind) | ({"mine": mine} if kind == "engines" else {}),
    )
    assert Hardware.load("a100", "mine").engine.name == "mine"


def test_unknown_engine(own):
    for load in (EngineProfile.load, lambda name: Hardware.load("h100", name)):
        with pytest.raises(InputError, match=r"did you mean llama.cpp-rtx5090\?") as e:
            load("llama.cpp-rtx509")
        assert "\n" not in str(e.value)
    own.write_text(own.read_text().replace('"estimated-python"', '"estimated-pyton"'))
    with pytest.raises(InputError, match=r"unknown engine.*did you mean estimated-python\?"):
        Hardware.load(str(own))
    own.write_text(own.read_text().replace('engine = "estimated-pyton"', ""))
    with pytest.raises(InputError, match="'engine' is missing"):
        Hardware.load(str(own))


def test_bad_engine_files_get_one_line(tmp_path):
    text = preset_paths("engines")["replay-h100"].read_text()
    path = tmp_path / "mine.toml"
    for old, new, says in (
        ("[decision_ns]", "[decison_ns]", "did you mean 'decision_ns'?"),
        ("value = 12778", 'value = "12778 parsecs"', "expert_launch_ns.value"),
        ('machine = "h100"', 'machine = "h1000"', "unknown hardware 'h1000'; did you mean h100"),
    ):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(InputError) as e:
            Hardware.load("a30", str(path))
        assert says in str(e.value) and "\n" not in str(e.value)


def with_its_engine(name: str, *, table: bool) -> str:
    """A preset as one file: the engine's costs in a table, or among the machine's as they once were."""
    machine = preset_paths("hardware")[name].read_text()
    h = Hardware.load(name)
    line = f'engine = "{h.engine.name}"\n'
    assert line in machine
    quantities = [
        (k, getattr(h.engine, k), h.engine.sources[k])
        for k in (OLD_ENGINE_KEYS if not table else h.engine.sources)
        if getattr(h.engine, k) is not None
    ]
    own = '\n[engine]\nname = "x"\nsummary = "y"\n' if table else ""
    for key, value, source in quantities:
        shown = str(value).lower() if isinstance(value, bool) else value
        head = f"engine.{key}" if table else key
        own += f"\n[{head}]\nvalue = {shown}\nsource = {json.dumps(source)}\n"
    return machine.replace(line, "") + own


@pytest.mark.parametrize("name", ["h100", "a100"])
def test_an_old_file_gives_the_same_numbers_and_a_note(name, tmp_path, capsys):
    old, new = tmp_path / "old.toml", tmp_path / "new.toml"
    old.write_text(with_its_engine(name, table=False))
    new.write_text(with_its_engine(name, table=True))
    first, split = Hardware.load(str(old)), Hardware.load(str(new))
    Hardware.load(str(old))
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1  # once
    assert told.err.startswith(f"note: {old}: ") and "[engine]" in told.err
    assert first.numbers() == split.numbers() == Hardware.load(name).numbers()
    assert (
        first.engine.sources.items()
        >= {k: v for k, v in split.engine.sources.items() if k in OLD_ENGINE_KEYS}.items()
    )


def test_the_calibrated_files_of_the_repository_are_old_and_load(capsys):
    path = Path(__file__).parents[1] / "experiments/h100_validation/results/calibration.toml"
    h = Hardware.load(str(path))
    assert "note: " in capsys.readouterr().err
    program = EngineProfile.load("replay-h100")
    assert h.reach == program.reach(h)
    costs = ("dense_launch_ns", "expert_launch_ns", "decision_ns", "cpu_sync_ns")
    assert [getattr(h.engine, k) for k in costs] == [getattr(program, k) for k in costs]


def test_a_file_with_an_engine_keeps_its_costs_in_one_place(tmp_path):
    path = tmp_path / "both.toml"
    path.write_text(preset_paths("hardware")["h100"].read_text() + COST)
    with pytest.raises(InputError, match="unknown key 'decision_ns'"):
        Hardware.load(str(path))


COST = """
[decision_ns]
value = "1 us"
source = "a guess"
"""
