"""``uvmsim trace ...`` as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from traces_naive import decode_trace, random_ids

from traces import InputError, open_routing
from traces.commands.trace import trace


def run(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(trace, [str(a) for a in args], catch_exceptions=True)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def run_json(*args: object, code: int = 0) -> Any:
    out = run(*args, "--json", code=code).stdout
    d = json.loads(out)
    assert out == json.dumps(d, indent=2, sort_keys=True) + "\n"
    return d


@pytest.fixture
def arrow(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    t = decode_trace([random_ids(rng, n, 2, 16, 4) for n in (40, 30)], 16, ids_order="ranked")
    t.save(tmp_path / "t.arrow")
    return tmp_path / "t.arrow"


def test_info(arrow: Path) -> None:
    d = run_json("info", arrow)
    assert (d["tokens"], d["sequences"], d["steps"], d["rows"]) == (70, 2, 70, 140)
    assert d["complete"] and d["capabilities"] == ["ranked_ids"]
    assert d["phases"] == {"decode": {"tokens": 70, "steps": 70}}
    text = run("info", arrow).stdout
    assert "70 in 2 sequences" in text and d["sha256"] in text.replace("\n", "").replace(" ", "")


def test_check_exit_codes(arrow: Path, tmp_path: Path) -> None:
    assert "nothing wrong found" in run("check", arrow).stdout
    assert run_json("check", arrow)["findings"] == []
    t = open_routing(arrow)
    columns = dict(t.columns) | {"experts": t.experts + np.int16(14)}
    type(t)(columns, t.meta).save(tmp_path / "bad.arrow")
    out = run("check", tmp_path / "bad.arrow", code=1).stdout
    assert "expert-out-of-range" in out and "first: row" in out
    found = run_json("check", tmp_path / "bad.arrow", code=1)["findings"]
    assert found[0]["severity"] == "error"


def test_stats(arrow: Path) -> None:
    d = run_json("stats", arrow, arrow)
    assert len(d["traces"]) == 2 and d["traces"][0]["tokens"] == 70
    text = run("stats", arrow, arrow, "--phase", "decode").stdout
    assert "Reuse interval" in text and "LRU" in text
    with pytest.raises(InputError, match="no prefill tokens"):
        run("stats", arrow, "--phase", "prefill")


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl", "npz"])
def test_export(arrow: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"x.{ending}"
    assert run_json("export", arrow, "-o", out)["rows"] == 140
    if ending == "parquet":
        assert open_routing(out).sha256 == open_routing(arrow).sha256
        return
    run("import", out, "-o", tmp_path / "back.arrow", "--n-experts", 16)
    back = open_routing(tmp_path / "back.arrow")
    assert back.sha256 == open_routing(arrow).sha256
    assert back.meta.command.startswith("uvmsim trace import ") and "16" in back.meta.command
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_export_refuses_an_unknown_ending(arrow: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="end the name in"):
        run("export", arrow, "-o", tmp_path / "x.xlsx")


def test_import_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"tok": 0, "layers": [[1, 2]]}\n{"tok": 1')
    with pytest.raises(InputError, match="line 2"):
        run("import", tmp_path / "d.jsonl", "-o", tmp_path / "t.arrow")
    assert [p.name for p in tmp_path.iterdir()] == ["d.jsonl"]


def test_import_options(arrow: Path, tmp_path: Path) -> None:
    run("export", arrow, "-o", tmp_path / "x.npz")
    args = ("import", tmp_path / "x.npz", "-o", tmp_path / "y.arrow")
    d = run_json(*args, "--model-name", "toy", "--ids-order", "sorted", "--sequences", "1")
    assert (d["model"]["name"], d["ids_order"], d["tokens"]) == ("toy", "sorted", 30)
    with pytest.raises(InputError, match="--sequences"):
        run(*args, "--sequences", "a-b")
    with pytest.raises(InputError, match="--format"):
        run(*args, "--format", "xml")


def test_synth(arrow: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.arrow"
    small = ("--layers", 2, "--experts", 16, "--top-k", 4, "--tokens", 200)
    run("synth", *small, "-o", out, "--seed", 1)
    first = open_routing(out).sha256
    d = run_json("synth", *small, "-o", out, "--seed", 1)
    assert d["trace"]["sha256"] == first and d["trace"]["tokens"] == 200
    text = run("synth", "--like", arrow, "-o", out).stdout
    assert "real" in text and "synthetic" in text
    assert set(run_json("synth", "--shuffle", arrow, "-o", out)["stats"]) == {"real", "synthetic"}
    d = run_json("synth", "--like", arrow, "--llama-bench", "pp8,tg4", "-o", out)
    assert d["trace"]["phases"]["prefill"]["tokens"] == 8


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "nothing to make"),
        (("--shape", "nonsense"), "unknown; known are"),
        (("--shape", "gpt-oss-20b", "--layers", 3), "one or the other"),
        (("--layers", 2, "--experts", 4, "--top-k", 5), "more than --experts"),
        (("--like", "T", "--zipf", 1), "--zipf: --like takes it from the trace"),
        (("--shuffle", "T", "--tokens", 5), "--tokens: --shuffle"),
        (("--shape", "gpt-oss-20b", "--llama-bench", "pp1", "--tokens", 5), "--tokens: --llama"),
    ],
)
def test_synth_options_that_contradict(
    arrow: Path, tmp_path: Path, args: tuple[object, ...], message: str
) -> None:
    args = tuple(arrow if a == "T" else a for a in args)
    with pytest.raises(InputError, match=message):
        run("synth", *args, "-o", tmp_path / "s.arrow")
    assert not (tmp_path / "s.arrow").exists()


def test_command_module_imports_nothing_heavy() -> None:
    code = (
        "import sys, traces.commands.trace as m; "
        "bad = {'numpy', 'pyarrow', 'numba', 'rich', 'pydantic'} & set(sys.modules); "
        "assert not bad, bad"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[1]
    )


@pytest.mark.parametrize("text", ["9-5", "0-99999999999", "", "1,,2", "-3"])
def test_ranges_that_make_no_sense(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="--sequences"):
        run("import", tmp_path / "x.npz", "-o", tmp_path / "y.arrow", "--sequences", text)
