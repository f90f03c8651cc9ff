"""Importers: good dumps come in whole, broken ones are refused with the place and the mend."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces_naive import decode_trace, random_ids

from traces import InputError
from traces.export.routing import export_routing
from traces.files.schema import DECODE, PREFILL
from traces.importers.dump import ImportOptions, import_routing

IDS = random_ids(np.random.default_rng(0), 10, 3, 16, 4)
WEIGHTS = -np.sort(-np.random.default_rng(1).random((10, 3, 4)).astype(np.float32), axis=2)


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path / "d.npz", **({"expert_ids": IDS} | arrays))
    return path / "d.npz"


def refused(path: Path, pattern: str, options: ImportOptions | None = None) -> None:
    with pytest.raises(InputError, match=pattern) as e:
        import_routing(path, options)
    assert "\n" not in str(e.value)


def test_npz(tmp_path: Path) -> None:
    path = npz(
        tmp_path,
        probs=WEIGHTS.astype(np.float16),
        token_pos=np.arange(10) + 100,
        seq_offsets=[0, 4, 10],
    )
    t = import_routing(path)
    np.testing.assert_array_equal(t.dense.ids, IDS)
    np.testing.assert_array_equal(t.dense.weights, WEIGHTS.astype(np.float16).astype(np.float32))
    assert t.dense.seq.tolist() == [0] * 4 + [1] * 6
    assert t.dense.pos.tolist() == list(range(100, 110))
    assert t.n_steps == 10 and (t.phase == DECODE).all()
    assert t.meta.ids_order == "ranked" and t.n_experts == 16
    assert "smallest usual count" in t.meta.extra["inferred"]["n_experts"]


def test_npz_with_little_in_it(tmp_path: Path) -> None:
    t = import_routing(npz(tmp_path))
    assert t.meta.ids_order == "unknown" and t.weights is None
    assert t.dense.pos.tolist() == list(range(10)) and len(t.meta.extra["notes"]) == 2
    t = import_routing(npz(tmp_path, token_pos=[5, 6, 7, 0, 1, 2, 3, 0, 1, 2]))
    assert t.dense.seq.tolist() == [0] * 3 + [1] * 4 + [2] * 3


def test_missing_rows_come_through(tmp_path: Path) -> None:
    ids = IDS.copy()
    ids[3, 2] = -1
    t = import_routing(npz(tmp_path, expert_ids=ids))
    assert t.experts[3 * 3 + 2].tolist() == [-1] * 4 and (t.experts < 0).sum() == 4


@pytest.mark.parametrize(
    ("arrays", "pattern"),
    [
        ({"expert_ids": IDS[0]}, r"shape \(3, 4\), not \[tokens, layers, k\]"),
        ({"expert_ids": IDS.astype(float)}, "float64, not integers"),
        ({"expert_ids": np.where(IDS == 3, -7, IDS)}, r"token \d+, layer \d+: expert id -7.*at 0"),
        ({"probs": WEIGHTS[:5]}, "weights have shape"),
        ({"token_pos": np.arange(9)}, r"token_pos has shape \(9,\)"),
        ({"seq_offsets": [0, 5]}, "seq_offsets must rise from 0 to the number of tokens"),
        ({"seq_offsets": [0, 7, 5, 10]}, "seq_offsets must rise"),
        ({"expert_ids": np.array([[{}]], dtype=object)}, "pickled.*refused"),
        ({"layers": [0, 1]}, "layers has shape"),
    ],
)
def test_npz_refused(tmp_path: Path, arrays: dict[str, Any], pattern: str) -> None:
    refused(npz(tmp_path, **arrays), pattern)


def test_npz_damaged(tmp_path: Path) -> None:
    path = npz(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    refused(path, "cut off or damaged")
    path.write_bytes(b"not a zip")
    refused(path, "cannot be read as NPZ")
    path.write_bytes(b"")
    refused(path, "empty file")
    np.savez(tmp_path / "e.npz", other=IDS)
    refused(tmp_path / "e.npz", "no array 'expert_ids'.*it has other")
    refused(tmp_path / "no.npz", "no such file")
    refused(tmp_path, "directory")
    (tmp_path / "d.xyz").write_bytes(b"1")
    refused(tmp_path / "d.xyz", "add --format")


def test_ids_outside_the_stated_number_of_experts(tmp_path: Path) -> None:
    refused(npz(tmp_path), r"expert id \d+ is outside 0..7", ImportOptions(n_experts=8))


def test_choice_of_sequences(tmp_path: Path) -> None:
    path = npz(tmp_path, seq_offsets=[0, 2, 5, 10])
    t = import_routing(path, ImportOptions(sequences=(2, 0)))
    np.testing.assert_array_equal(t.dense.ids, IDS[[0, 1, 5, 6, 7, 8, 9]])
    assert t.dense.seq.tolist() == [0, 0, 2, 2, 2, 2, 2]
    refused(path, "no such sequence; it has 0 to 2", ImportOptions(sequences=(3,)))


@pytest.mark.parametrize(
    ("folder", "name", "layers"),
    [("DeepSeek-V2-Lite", None, 26), ("x", "deepseek_v2_lite.Q4", 26), ("x", "mystery", 26)],
)
def test_known_models_complete_the_shape(
    tmp_path: Path, folder: str, name: str | None, layers: int
) -> None:
    (tmp_path / folder).mkdir()
    ids = random_ids(np.random.default_rng(0), 4, layers, 40, 6)
    t = import_routing(npz(tmp_path / folder, expert_ids=ids), ImportOptions(model_name=name))
    if name == "mystery":
        assert t.layers == tuple(range(26)) and t.meta.model.name == "mystery"
        assert t.n_experts == 60  # the smallest usual count
    else:
        assert t.layers == tuple(range(1, 27)) and t.meta.model.n_layers == 27
        assert t.n_experts == 64


def lines(path: Path, rows: list[Any]) -> Path:
    (path / "d.jsonl").write_text(
        "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)
    )
    return path / "d.jsonl"


def good_lines() -> list[dict[str, Any]]:
    return [{"tok": i, "layers": x.tolist()} for i, x in enumerate(IDS)]


def test_jsonl(tmp_path: Path) -> None:
    rows = [r | {"gen": i // 5} for i, r in enumerate(good_lines())]
    rows.insert(0, {"gen": 0, "phase": "prefill_union", "layers": [[1, 2, 3]] * 3})
    t = import_routing(lines(tmp_path, rows))
    np.testing.assert_array_equal(t.dense.ids, IDS)
    assert t.dense.seq.tolist() == [0] * 5 + [1] * 5 and t.dense.pos.tolist() == list(range(10))
    assert any("union" in n for n in t.meta.extra["notes"])


def test_jsonl_prefill_makes_one_step(tmp_path: Path) -> None:
    rows = [r | {"phase": "prefill" if r["tok"] < 6 else "decode"} for r in good_lines()]
    rows[2]["layers"][1] = None
    t = import_routing(lines(tmp_path, rows))
    assert t.dense.step.tolist() == [0] * 6 + [1, 2, 3, 4] and t.n_steps == 5
    assert t.layer[:12].tolist() == [0] * 6 + [1] * 6  # layer by layer within the step
    assert t.dense.ids[2, 1].tolist() == [-1] * 4
    assert (t.phase == PREFILL).sum() == 18


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda r: r.__setitem__(4, '{"tok": 4, "lay'), "line 5: not valid JSON"),
        (lambda r: r.__setitem__(4, "[1, 2]"), 'line 5: no "layers" list'),
        (lambda r: r[4].pop("layers"), 'line 5: no "layers" list'),
        (lambda r: r[4]["layers"].pop(), "line 5: 2 layers where the first token has 3"),
        (lambda r: r[4]["layers"][1].pop(), "line 5: layer 1 has 3 ids where others have 4"),
        (lambda r: r[4]["layers"][1].__setitem__(0, 1.5), "line 5: layer 1: id 1.5 is not an int"),
        (lambda r: r[4]["layers"][1].__setitem__(0, True), "line 5: layer 1: id True"),
        (lambda r: r[4]["layers"][1].__setitem__(0, -2), "line 5: layer 1: id -2 is out of range"),
        (lambda r: r[4].update(phase="warm"), "line 5: phase 'warm' is unknown"),
        (lambda r: r[4].update(tok="x"), "line 5: tok 'x' is not a whole number"),
        (lambda r: r[4].update(step=3), 'line 5: "step" must be on every line'),
        (lambda r: r[4].update(weights=[[1.0]]), 'line 5: "weights" must be on every line'),
        (lambda r: r[4]["layers"][1].__setitem__(0, 600), "line 5, layer 1: expert id 600"),
        (lambda r: r.clear(), "empty file"),
    ],
)
def test_jsonl_refused(tmp_path: Path, change: Callable[[Any], Any], pattern: str) -> None:
    rows = good_lines()
    change(rows)
    refused(lines(tmp_path, rows), pattern, ImportOptions(n_experts=16))


def test_jsonl_not_text(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(b"\xff\xfe\x00")
    refused(tmp_path / "d.jsonl", "not UTF-8")


def wide() -> dict[str, Any]:
    columns: dict[str, Any] = {
        "seq": np.repeat([0] * 4 + [1] * 6, 3),
        "pos": np.repeat(np.arange(10), 3),
        "layer": np.tile([1, 2, 4], 10),
    }
    flat, weights = IDS.reshape(-1, 4), WEIGHTS.reshape(-1, 4)
    return (
        columns
        | {f"e{i}": flat[:, i].astype(np.int64) for i in range(4)}
        | {f"w{i}": weights[:, i].astype(np.float64) for i in range(4)}
    )


def long() -> dict[str, Any]:
    return {
        "token": np.repeat(np.arange(10), 12),
        "layer": np.tile(np.repeat([1, 2, 4], 4), 10),
        "rank": np.tile(np.arange(4), 30),
        "expert": IDS.reshape(-1).astype(np.int64),
        "weight": WEIGHTS.reshape(-1).astype(np.float64),
    }


def save(path: Path, columns: dict[str, Any], ending: str) -> Path:
    table = pa.table(columns)
    out = path / f"d.{ending}"
    pacsv.write_csv(table, out) if ending == "csv" else pq.write_table(table, out)
    return out


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("layout", [wide, long])
def test_tables(tmp_path: Path, ending: str, layout: Callable[[], dict[str, Any]]) -> None:
    t = import_routing(save(tmp_path, layout(), ending))
    np.testing.assert_array_equal(t.dense.ids, IDS)
    np.testing.assert_allclose(t.dense.weights, WEIGHTS)
    assert t.layers == (1, 2, 4) and t.meta.ids_order == "ranked" and t.n_steps == 10
    # The order of a long table's rows does not matter, that of tokens is kept.
    if layout is long:
        mixed = {k: np.asarray(v).reshape(10, -1)[:, ::-1].reshape(-1) for k, v in long().items()}
        again = import_routing(save(tmp_path, mixed, ending))
        assert again.sha256 == t.sha256


def test_table_with_missing_and_absent_rows(tmp_path: Path) -> None:
    columns = {k: list(v) for k, v in wide().items()}
    for i in range(4):
        columns[f"e{i}"][5] = columns[f"w{i}"][5] = None
    columns = {k: v[:7] + v[8:] for k, v in columns.items()}
    t = import_routing(save(tmp_path, columns, "csv"))
    assert np.argwhere((t.dense.ids < 0).all(axis=2)).tolist() == [[1, 2], [2, 1]]


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda c: c.pop("layer"), "column 'layer' is missing"),
        (lambda c: c.pop("pos"), "column 'pos' is missing"),
        (lambda c: c.pop("e2"), "column 'e2' is missing"),
        (lambda c: c.pop("w3"), "column 'w3' is missing"),
        (lambda c: c.pop("e0"), "neither 'e0'"),
        (lambda c: c.update(e1=["x"] + ["1"] * 29), "line 2: e1 is 'x', not a whole number"),
        (lambda c: c.update(e1=[1.5] + [1.0] * 29), "line 2: e1 is 1.5, not a whole number"),
        (lambda c: c.update(e1=[1] * 7 + [None] + [1] * 22), "line 9: has fewer than 4"),
        (lambda c: c.update(pos=[0] * 30), "line 5: the same token and layer"),
        (lambda c: c.update(layer=[-1] * 30), "line 2: layer -1 is out of range"),
        (lambda c: c.update(phase=["warm"] * 30), "line 2: phase is 'warm'"),
        (lambda c: c.update(e0=[-3] * 30), "expert id -3 is outside"),
        (lambda c: c.update(w1=["heavy"] * 30), "line 2: w1 is 'heavy', not a number"),
    ],
)
def test_wide_tables_refused(tmp_path: Path, change: Callable[[Any], Any], pattern: str) -> None:
    columns = wide()
    change(columns)
    refused(save(tmp_path, columns, "csv"), pattern)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda c: c.pop("rank"), "column 'rank' is missing"),
        (lambda c: c["rank"].__setitem__(2, 3), "line 5: the same token, layer and rank"),
        (lambda c: [c.update({k: v[1:]}) for k, v in list(c.items())], "layer 1: 3 of 4 ranks"),
        (lambda c: c["expert"].__setitem__(0, -1), "line 2: rank or expert out of range"),
    ],
)
def test_long_tables_refused(tmp_path: Path, change: Callable[[Any], Any], pattern: str) -> None:
    columns = {k: np.array(v) for k, v in long().items()}
    change(columns)
    refused(save(tmp_path, columns, "csv"), pattern)


def test_broken_tables(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("seq,pos,layer,e0\n0,0,0,1\n0,1,0\n")
    refused(tmp_path / "d.csv", "line 3.*4 columns")
    (tmp_path / "d.csv").write_text("seq,pos,layer,e0\n")
    refused(tmp_path / "d.csv", "no rows")
    (tmp_path / "d.parquet").write_bytes(b"PAR1xx")
    refused(tmp_path / "d.parquet", "not a readable Parquet file")
    t = decode_trace([IDS], 16)
    export_routing(t, tmp_path / "t.parquet")
    refused(tmp_path / "t.parquet", "uvmsim trace already")


@given(seed=st.integers(0, 50), ending=st.sampled_from(["csv", "jsonl", "npz"]))
@settings(max_examples=30, deadline=None)
def test_export_and_import_give_the_same_routing(
    tmp_path_factory: pytest.TempPathFactory, seed: int, ending: str
) -> None:
    rng = np.random.default_rng(seed)
    sequences = [random_ids(rng, int(n), 3, 16, 4) for n in rng.integers(1, 9, 3)]
    sequences[0][0, 1] = -1
    t = decode_trace(sequences, 16)
    out = tmp_path_factory.mktemp("x") / f"t.{ending}"
    export_routing(t, out)
    back = import_routing(out, ImportOptions(n_experts=16))
    assert back.sha256 == t.sha256


@pytest.mark.shared_data
def test_real_dumps(shared_data: Path) -> None:
    r = shared_data / "routing"
    t = import_routing(r / "gpt-oss-20b" / "gpqa_main.npz")
    with np.load(r / "gpt-oss-20b" / "gpqa_main.npz") as z:
        np.testing.assert_array_equal(t.dense.ids, z["expert_ids"])
        np.testing.assert_array_equal(t.dense.pos, z["token_pos"])
    assert (t.meta.model.name, t.n_experts, t.meta.ids_order) == ("gpt-oss-20b", 32, "ranked")
    assert len(np.unique(t.seq)) == 29
    t = import_routing(r / "olmoe-1b-7b" / "trace_olmoe_299.jsonl")
    assert (t.n_tokens, t.n_experts, t.meta.ids_order) == (299, 64, "sorted")
    t = import_routing(r / "glm-4.5-air" / "glm45air_routing.jsonl")
    assert (t.n_tokens, t.n_experts, t.layers[0]) == (123, 128, 1)
    assert "3 union lines" in t.meta.extra["notes"][0]
