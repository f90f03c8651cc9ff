"""llama.cpp calibrated and validated on this CPU, and the constants between them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import Row
from routing import Case

from replay.calibrate.stats import non_negative_least_squares
from replay.commands.calibrate import calibrate
from replay.commands.validate import validate
from replay.llama_cpp.collect import Equation
from replay.llama_cpp.count import micro_batch
from replay.llama_cpp.fit import fit
from replay.llama_cpp.synthetic import Shape, header, write
from traces.errors import InputError
from uvmsim.commands.compare import compare
from uvmsim.commands.lists import hardware
from uvmsim.machine.engine_terms import Terms
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.llama_terms import MEMORY, Constants
from uvmsim.machine.llamacpp.config import LlamaConfig
from uvmsim.machine.llamacpp.kernels import ROW_TOKENS
from uvmsim.machine.llamacpp.model_file import LlamaModel
from uvmsim.machine.llamacpp.timing import remote
from uvmsim.machine.model import Model
from uvmsim.studies.simulate import simulate

SHAPE = Shape(n_layers=3, n_embd=256, n_heads=4, n_kv_heads=2, head_dim=64, n_experts=8, top_k=2,
              n_ff_expert=256, n_vocab=1024, experts="Q4_K", dense="Q8_0", n_ctx=2048)  # fmt: skip


# ---- constants ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(4, 8))
def test_non_negative_least_squares_is_the_best_of_all_supports(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((m, n)), rng.normal(size=m)
    best = float(b @ b)
    for k in range(1, n + 1):
        for chosen in combinations(range(n), k):
            x, *_ = np.linalg.lstsq(a[:, chosen], b, rcond=None)
            if (x >= 0).all():
                best = min(best, float(np.sum((a[:, chosen] @ x - b) ** 2)))
    x = non_negative_least_squares(a, b)
    assert (x >= 0).all()
    assert float(np.sum((a @ x - b) ** 2)) == pytest.approx(best, rel=1e-9, abs=1e-12)


def test_the_fit_finds_planted_constants(tmp_path: Path) -> None:
    """Times made from known constants on counted runs give these constants back."""
    planted = {"cpu.step": 5000.0, "cpu.node": 700.0, "cpu.row.Q8_0": 0.05,
               "cpu.row_experts.Q4_K": 0.04, "cpu.attend": 0.02}  # fmt: skip
    equations = []
    shapes = [replace(SHAPE, n_layers=a, n_embd=e, n_ff_expert=f, n_vocab=v)
              for a, e, f, v in ((2, 256, 256, 512), (6, 256, 512, 512), (2, 512, 256, 4096),
                                 (4, 512, 1024, 512), (8, 256, 256, 512))]  # fmt: skip
    for i, shape in enumerate(shapes):
        model = LlamaModel.load(header(tmp_path / f"{i}.gguf", shape))
        config = LlamaConfig(gpu=False, n_ctx=4096)
        for at in (1, 3000):
            counts, _ = micro_batch(model, config, 1, at)
            counts = Counter({k: n for k, n in counts.items() if k in planted})
            ns = sum(n * planted[k] for k, n in counts.items())
            equations.append(Equation(str(i), "resident", f"tg1@d{at}", dict(counts), ns, (ns, ns)))
    found = fit(equations)
    assert found.ns == pytest.approx(planted, rel=1e-6)
    assert max(map(abs, found.errors.values())) < 1e-6


def test_a_type_that_was_not_measured_takes_the_nearest_and_says_so() -> None:
    ns = Constants({"row.Q4_K": 1.0, "row.Q8_0": 2.0, "row.F16": 4.0}, "here")
    assert ns.get("row.Q4_0") == 1.0 and ns.get("row_experts.BF16") == 4.0
    assert ns.borrowed == {"row.Q4_0": "row.Q4_K", "row_experts.BF16": "row.F16"}
    assert ns.get("split") == 0.0
    with pytest.raises(InputError, match=r"here: has no constant for cpu\.row\.Q4_0"):
        ns.get("cpu.row.Q4_0")


def test_constants_follow_the_machine() -> None:
    home = Hardware.load("rtx5090")
    terms = Terms({"row.Q4_K": 1.0, "kernel": 3.0}, "x", home={MEMORY: home.memory_bytes_per_s})
    faster = replace(home, memory_bytes_per_s=2 * home.memory_bytes_per_s)
    assert terms.on(faster).get("row.Q4_K") == 0.5 and terms.on(faster).get("kernel") == 3.0
    known = replace(terms, sharpened={"m": {"row": 1.5}})
    assert known.on(home, "m").get("kernel") == 4.5 and known.on(home, "n").get("kernel") == 3.0


# ---- one sum, two ways ----------------------------------------------------------------------------


MODES = {
    "resident": ("resident", {}, None),
    "ncmoe, mapped": ("cpu-offload", {"ncmoe": 2, "pinned": False}, None),
    "ncmoe, page-locked": ("cpu-offload", {"ncmoe": 2, "pinned": True}, None),
    "preferred-host": ("zero-copy", {}, remote),
}


def case_of(sizes: list[int], seed: int) -> tuple[Case, list[list[np.ndarray]]]:
    """Micro-batches of one sequence with random routing, and how often each expert is chosen."""
    rng = np.random.default_rng(seed)
    rows, counts, pos = [], [], 0
    for step, n in enumerate(sizes):
        chosen = [np.zeros(8, np.int64) for _ in range(3)]
        for layer in range(3):
            for i in range(n):
                ids = rng.permutation(8)[:2] if n > 1 else rng.permutation(3)[:2]
                chosen[layer][ids] += 1
                rows.append(Row(0, pos + i, step, int(n == 1), layer, tuple(ids.tolist())))
        pos += n
        counts.append(chosen)
    return Case(rows, (0, 1, 2), 8, 2), counts


@pytest.mark.parametrize("mode", MODES)
def test_the_simulators_time_is_counts_times_constants(mode: str, tmp_path: Path) -> None:
    """Event by event through a mechanism, and summed a micro-batch: the same but for rounding."""
    name, options, variant = MODES[mode]
    path = header(tmp_path / "m.gguf", SHAPE)
    model = LlamaModel.load(path)
    sizes = [512, 48, 7, 20, 1, 1, 1]
    case, routing = case_of(sizes, 3)
    config = LlamaConfig(
        n_cpu_moe=options.get("ncmoe", 0), n_ctx=768, mmap=not options.get("pinned", False)
    )
    rng = np.random.default_rng(5)
    ns = {"launch": 900.0}
    expected, end = [], 0
    for n, counts in zip(sizes, routing, strict=True):
        end += n
        found, kernels = micro_batch(model, config, n, end, counts, variant=variant)
        for key in found:
            ns.setdefault(key, float(rng.uniform(100, 200)))
        total = sum(x * ns[key] for key, x in found.items())
        expected.append(total + (kernels * ns["launch"] if n > ROW_TOKENS else 0))
    home = Hardware.load("rtx5090")
    maps = not options.get("pinned", True)
    home = replace(home, engine=replace(home.engine, terms=Terms(ns, "here"), maps_weights=maps))
    job = replace(case.job(hardware=home), model=Model.load(str(path)), **options)
    found_ns = simulate(job, name).step_ns
    assert found_ns.tolist() == pytest.approx(expected, abs=10)


# ---- end to end, on this CPU -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("xllamacpp", reason="no libllama: install the capture extra")
    target = tmp_path_factory.mktemp("calibrated") / "cpu.toml"
    done = CliRunner().invoke(
        calibrate, ["--engine", "llama.cpp", "--quick", "--threads", "1", "-o", str(target)]
    )
    assert done.exit_code == 0, done.output
    assert "constants" in done.output and "wrote" in done.output
    return target


@pytest.mark.llama
def test_a_calibration_is_a_machine_and_its_runs(calibrated: Path) -> None:
    hw = Hardware.load(str(calibrated))
    terms = hw.engine.terms
    assert terms is not None and not terms.gpu and terms.source.startswith("measured ")
    raw = json.loads(calibrated.with_suffix(".measurements.json").read_text())
    assert raw["runs"] and raw["ns"] == pytest.approx(dict(terms.ns), rel=1e-3)
    for run in raw["runs"]:
        predicted = sum(n * raw["ns"].get(k, 0.0) for k, n in run["counts"].items())
        assert predicted / run["ns"] - 1 == pytest.approx(run["error"], abs=1e-9)
    shown = CliRunner().invoke(hardware, [str(calibrated), "--toml"])
    again = calibrated.with_name("again.toml")
    again.write_text(shown.output, encoding="utf-8")
    assert Hardware.load(str(again)).engine.terms == terms


@pytest.mark.llama
def test_validate_predicts_before_it_measures(calibrated: Path, tmp_path: Path) -> None:
    for i, layers in enumerate((2, 4)):
        write(tmp_path / f"m{i}.gguf", replace(SHAPE, n_layers=layers))
    config = tmp_path / "v.toml"
    config.write_text(
        'engine = "llama.cpp"\nmodel = ["m0.gguf", "m1.gguf"]\n'
        'tests = ["pp64", "pp96@ub32", "tg8", "tg8@d256"]\n'
        f'repetitions = 2\nthreads = 1\npassive = true\nhardware = "{calibrated}"\n'
    )
    out = tmp_path / "out"
    done = CliRunner().invoke(validate, [str(config), "-o", str(out)])
    assert done.exit_code == 0, done.output
    predicted = json.loads((out / "predictions.json").read_text())
    measured = json.loads((out / "measurements.json").read_text())
    report = json.loads((out / "report.json").read_text())
    assert predicted["written"] <= measured["written"]
    assert (out / "predictions.json").stat().st_mtime <= (out / "measurements.json").stat().st_mtime
    assert len(predicted["cells"]) == 2 and len(report["rows"]) == 8
    for row in report["rows"]:
        key = next(k for k in predicted["cells"] if row["model"] in k)
        ours = predicted["cells"][key]["tests"][row["test"]]["tokens_per_s"]
        assert row["predicted"] == ours
        assert row["error"] == pytest.approx(ours / row["measured"] - 1)
        assert row["measured"] > 0
    assert (out / "report.md").read_text().count("tg8@d256") >= 2
    assert (out / "report.png").stat().st_size > 10_000


@pytest.mark.llama
def test_a_model_sharpens_a_calibration_that_is_there(calibrated: Path, tmp_path: Path) -> None:
    """Its constants stay, the model alone is run, and both predict the same runs."""
    for i, layers in enumerate((2, 4)):
        write(tmp_path / f"m{i}.gguf", replace(SHAPE, n_layers=layers))
    base, factors = calibrated, {}
    for i in range(2):
        target = tmp_path / f"sharp{i}.toml"
        done = CliRunner().invoke(
            calibrate,
            ["--engine", "llama.cpp", "--threads", "1", "--base", str(base), "--quick",
             "--model", str(tmp_path / f"m{i}.gguf"), "-o", str(target)],
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        runs = json.loads(target.with_suffix(".measurements.json").read_text())["runs"]
        assert {r["name"] for r in runs} == {"model"}
        old, new = Hardware.load(str(base)).engine.terms, Hardware.load(str(target)).engine.terms
        assert old is not None and new is not None
        assert new.ns == pytest.approx(dict(old.ns), rel=1e-5) and new.source == old.source
        assert len(new.sharpened) == i + 1 and old.sharpened.items() <= new.sharpened.items()
        factors, base = new.sharpened, target
    config = tmp_path / "v.toml"
    config.write_text(
        'engine = "llama.cpp"\nmodel = ["m1.gguf"]\ntests = ["pp64", "tg8"]\nrepetitions = 2\n'
        "threads = 1\npassive = true\n"
    )
    out = tmp_path / "out"
    given = [str(config), "-o", str(out), "--hardware", str(calibrated), "--also", str(base)]
    done = CliRunner().invoke(validate, given)
    assert done.exit_code == 0, done.output
    plain, sharp = (json.loads((p / "report.json").read_text()) for p in (out, out / base.stem))
    assert [r["measured"] for r in plain["rows"]] == [r["measured"] for r in sharp["rows"]]
    assert not (out / base.stem / "measurements.json").exists()
    assert (out / base.stem / "report.png").exists()
    own = list(factors.values())[1]
    for a, b in zip(plain["rows"], sharp["rows"], strict=True):
        ratio = a["predicted"] / b["predicted"]  # a prompt's terms are of both groups
        assert min(own.values()) - 1e-3 <= ratio <= max(own.values()) + 1e-3
        if a["test"].startswith("tg"):
            assert ratio == pytest.approx(own["cpu_row"], rel=1e-3)
    twice = CliRunner().invoke(validate, [*given, "--also", str(base)])
    assert twice.exit_code == 2 or "another calibration has that name" in str(twice.exception)


@pytest.mark.llama
def test_a_calibration_of_another_build_is_not_sharpened(calibrated: Path, tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", SHAPE)
    old = tmp_path / "old.toml"
    old.write_text(calibrated.read_text().replace("ggml version 0", "ggml version 9"))
    done = CliRunner().invoke(
        calibrate,
        ["--engine", "llama.cpp", "--threads", "1", "--quick", "--base", str(old), "--model",
         str(tmp_path / "m.gguf"), "-o", str(tmp_path / "x.toml")],
    )  # fmt: skip
    assert "was calibrated with another build" in str(done.exception)
    assert not (tmp_path / "x.toml").exists()


BAD = {
    "no-terms": ("hardware = 'rtx5090'", "has no terms of llama.cpp; make one with"),
    "mode": ("[modes.resident]\n[modes.gpu]", "modes.gpu: must be one of resident, ncmoe"),
    "test": ("tests = ['pp']", "write it like pp512"),
    "size": ("[modes.ncmoe]", "modes.ncmoe: needs sizes"),
    "key": ("repetition = 3", "repetition"),
    "cpu": ("[modes.managed]", "a library without CUDA has mode resident alone"),
}


@pytest.mark.llama
@pytest.mark.parametrize("which", BAD)
def test_mistakes_get_one_line(which: str, calibrated: Path, tmp_path: Path) -> None:
    line, told = BAD[which]
    header(tmp_path / "m.gguf", SHAPE)
    config = tmp_path / "v.toml"
    named = "" if "hardware" in line else f'hardware = "{calibrated}"\n'
    config.write_text(f'engine = "llama.cpp"\nmodel = ["m.gguf"]\n{named}{line}\n')
    out = tmp_path / "out"
    done = CliRunner().invoke(validate, [str(config), "-o", str(out)])
    assert isinstance(done.exception, InputError), done.output
    assert told in str(done.exception) and "\n" not in str(done.exception)
    assert not out.exists()


@pytest.mark.llama
def test_a_profile_of_a_gpu_is_not_for_the_cpus_library(calibrated: Path, tmp_path: Path) -> None:
    text = calibrated.read_text().replace("gpu = false", "gpu = true")
    (tmp_path / "gpu.toml").write_text(text)
    header(tmp_path / "m.gguf", SHAPE)
    config = tmp_path / "v.toml"
    config.write_text('engine = "llama.cpp"\nmodel = ["m.gguf"]\nhardware = "gpu.toml"\n')
    done = CliRunner().invoke(validate, [str(config), "-o", str(tmp_path / "out")])
    assert "was calibrated with a build with CUDA, and the library here is of the CPU" in str(
        done.exception
    )


@pytest.mark.llama
@pytest.mark.parametrize(
    "line,told",
    [("[engine.terms.ns]\nkernl = 1.0", "unknown term 'kernl'; did you mean kernel"),
     ("[engine.terms.ns]\nkernel = -1.0", "kernel"),
     ("[engine.terms.found_on]\nspeed = 3", "unknown quantity 'speed'")],
)  # fmt: skip
def test_mistakes_in_terms(line: str, told: str, calibrated: Path, tmp_path: Path) -> None:
    table, _, entry = line.partition("\n")
    head, _, rest = calibrated.read_text().partition(f"{table}\n")
    bad = tmp_path / "bad.toml"
    bad.write_text(f"{head}{table}\n{entry}\n{rest}")
    with pytest.raises(InputError, match=told) as err:
        Hardware.load(str(bad))
    assert "\n" not in str(err.value)


@pytest.mark.llama
def test_compare_takes_the_calibration(calibrated: Path, tmp_path: Path) -> None:
    path = header(tmp_path / "m.gguf", SHAPE)
    trace, _ = case_of([20, 1, 1], 1)
    file = tmp_path / "t.arrow"
    trace.trace.save(file)
    done = CliRunner().invoke(
        compare,
        [
            str(file),
            "--model",
            str(path),
            "--hardware",
            str(calibrated),
            "--mechanism",
            "resident",
            "--json",
        ],
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)


@pytest.mark.llama
def test_a_library_that_is_none(tmp_path: Path) -> None:
    target = tmp_path / "x.toml"
    done = CliRunner().invoke(
        calibrate, ["--engine", "llama.cpp", "--lib", str(tmp_path), "-o", str(target)]
    )
    assert isinstance(done.exception, InputError) and "\n" not in str(done.exception)
    assert not target.exists()
