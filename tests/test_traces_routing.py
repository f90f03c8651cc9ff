"""Routing traces: what goes in comes out, and a kill loses nothing that was flushed."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces_naive import decode_trace, make_meta, random_ids

from traces import InputError, RoutingWriter, open_routing
from traces.export.routing import export_routing
from traces.files.schema import DECODE, PREFILL


def write_steps(path: Path, n: int = 12, flush: int = 3, **kw: int) -> dict[str, np.ndarray]:
    """Steps of two tokens, two layers, with every optional column; returns what was written."""
    rng = np.random.default_rng(1)
    meta = make_meta(2, 8, 2, ids_order="ranked")
    experts, weights, scores = [], [], []
    with RoutingWriter(path, meta, weights=True, scores=True, tokens=True, times=True, **kw) as w:
        for step in range(n):
            for layer in range(2):
                ids = random_ids(rng, 2, 1, 8, 2)[:, 0]
                if layer == 1 and step == 0:
                    ids[0] = -1
                wt, sc = rng.random((2, 2), np.float32), rng.random((2, 8), np.float32)
                w.append(
                    seq=0,
                    pos=np.array([2 * step, 2 * step + 1]),
                    step=step,
                    phase=DECODE if step else PREFILL,
                    layer=layer,
                    experts=ids,
                    weights=wt,
                    scores=sc,
                    token=[7, 8],
                    time_ns=step * 1000,
                )
                experts.append(ids)
                weights.append(wt)
                scores.append(sc)
            if step % flush == 0:
                w.flush()
    return {
        "experts": np.concatenate(experts),
        "weights": np.concatenate(weights),
        "scores": np.concatenate(scores),
    }


@pytest.mark.parametrize("batch_rows", [1, 3, 7, 65536])
def test_round_trip(tmp_path: Path, batch_rows: int) -> None:
    given_ = write_steps(tmp_path / "t.arrow", batch_rows=batch_rows)
    t = open_routing(tmp_path / "t.arrow")
    assert t.complete and t.n_rows == 48 and t.n_tokens == 24 and t.n_steps == 12
    assert t.layers == (0, 1) and t.n_experts == 8 and t.top_k == 2
    for name, values in given_.items():
        np.testing.assert_array_equal(getattr(t, name), values)
        assert getattr(t, name).dtype == (np.int16 if name == "experts" else np.float32)
    np.testing.assert_array_equal(t.pos[:6], [0, 1, 0, 1, 2, 3])
    np.testing.assert_array_equal(t.token[:4], [7, 8, 7, 8])
    assert t.time_ns[-1] == 11000 and t.phase[0] == PREFILL and t.phase[-1] == DECODE
    assert t.capabilities == {"router_scores", "router_weights", "ranked_ids", "token_ids"}
    assert t.meta == make_meta(2, 8, 2, ids_order="ranked")
    assert [p.name for p in tmp_path.iterdir()] == ["t.arrow"]


def test_missing_rows_are_null_in_the_file(tmp_path: Path) -> None:
    write_steps(tmp_path / "t.arrow")
    table = pa.ipc.open_file(str(tmp_path / "t.arrow")).read_all()
    assert table.column("experts").null_count == 1
    assert open_routing(tmp_path / "t.arrow").experts[2].tolist() == [-1, -1]


def test_closed_file_is_one_batch_and_read_without_a_copy(tmp_path: Path) -> None:
    write_steps(tmp_path / "t.arrow", batch_rows=5)
    assert [
        b.num_rows for b in pa.ipc.open_file(str(tmp_path / "t.arrow")).read_all().to_batches()
    ] in ([48], [48, 0])
    t = open_routing(tmp_path / "t.arrow")
    for column in t.columns.values():
        assert not column.flags.owndata and not column.flags.writeable


def test_hash_depends_on_values_alone(tmp_path: Path) -> None:
    hashes = set()
    for i, (rows, flush) in enumerate([(1, 1), (7, 2), (65536, 100)]):
        write_steps(tmp_path / f"{i}.arrow", flush=flush, batch_rows=rows)
        t = open_routing(tmp_path / f"{i}.arrow")
        assert t.recorded_sha256 == t.sha256
        hashes.add(t.sha256)
    t.save(tmp_path / "other-meta.arrow", replace(t.meta, tool="another"))
    hashes.add(open_routing(tmp_path / "other-meta.arrow").sha256)
    export_routing(t, tmp_path / "t.parquet")
    hashes.add(open_routing(tmp_path / "t.parquet").sha256)
    assert len(hashes) == 1
    changed = dict(t.columns) | {"pos": t.pos + 1}
    assert type(t)(changed, t.meta).sha256 not in hashes


def test_parquet_keeps_metadata(tmp_path: Path) -> None:
    write_steps(tmp_path / "t.arrow")
    t = open_routing(tmp_path / "t.arrow")
    export_routing(t, tmp_path / "t.parquet")
    p = open_routing(tmp_path / "t.parquet")
    assert p.meta == t.meta and p.complete
    for name, column in t.columns.items():
        np.testing.assert_array_equal(p.columns[name], column)


@pytest.mark.parametrize(
    "bad",
    [
        {"experts": np.zeros((1, 3), int)},
        {"experts": np.zeros(2, int)},
        {"weights": np.ones((1, 2))},
        {"pos": np.arange(2)},
    ],
)
def test_writer_refuses_what_does_not_fit(tmp_path: Path, bad: dict[str, np.ndarray]) -> None:
    row = {"seq": 0, "pos": 0, "step": 0, "phase": 1, "layer": 0, "experts": np.array([[1, 2]])}
    with pytest.raises(ValueError), RoutingWriter(tmp_path / "t", make_meta(1, 8, 2)) as w:
        w.append(**(row | bad))


def test_exception_keeps_the_partial_file(tmp_path: Path) -> None:
    path = tmp_path / "t.arrow"
    row = {"seq": 0, "step": 0, "phase": 1, "layer": 0, "experts": np.array([[1, 2]])}
    with pytest.raises(KeyError), RoutingWriter(path, make_meta(1, 8, 2)) as w:
        w.append(pos=0, **row)
        w.append(pos=1, **row)
        raise KeyError
    assert not path.exists()
    t = open_routing(f"{path}.partial")
    assert not t.complete and t.pos.tolist() == [0, 1]
    with pytest.raises(InputError, match=r"did not finish.*t\.arrow\.partial"):
        open_routing(path)
    with pytest.raises(InputError, match="move or delete"):
        RoutingWriter(path, make_meta(1, 8, 2))


KILLED = """
import sys, os, signal
import numpy as np
sys.path[:0] = {path!r}
from traces import RoutingWriter
from traces_naive import make_meta
w = RoutingWriter({out!r}, make_meta(2, 8, 2))
for step in range(1000):
    for layer in range(2):
        w.append(seq=0, pos=step, step=step, phase=1, layer=layer, experts=np.array([[1, 2]]))
    if step % 10 == 9:
        w.flush()
    if step == 104:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_recording_is_readable(tmp_path: Path) -> None:
    out = str(tmp_path / "t.arrow")
    here = Path(__file__).resolve().parent
    code = KILLED.format(path=[str(here), str(here.parent)], out=out)
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == ["t.arrow.partial"]
    t = open_routing(f"{out}.partial")
    assert not t.complete and t.n_steps == 100 and t.n_rows == 200
    assert t.step[-1] == 99
    t.save(tmp_path / "rescued.arrow")
    assert open_routing(tmp_path / "rescued.arrow").sha256 == t.sha256


def test_every_cut_is_read_as_a_prefix_or_refused(tmp_path: Path) -> None:
    """Whatever the length at which a file ends: a prefix of the rows, incomplete, or one line."""
    path = tmp_path / "t.arrow"
    row = {"seq": 0, "phase": 1, "layer": 0, "experts": np.array([[1, 2]])}
    with pytest.raises(KeyError), RoutingWriter(path, make_meta(1, 8, 2)) as w:
        for step in range(6):
            w.append(pos=step, step=step, **row)
            w.flush()
        raise KeyError
    data = Path(f"{path}.partial").read_bytes()
    seen = set()
    for end in range(0, len(data), 13):
        path.write_bytes(data[:end])
        try:
            t = open_routing(path)
        except InputError as e:
            assert "\n" not in str(e)
            seen.add(0)
        else:
            assert not t.complete and t.pos.tolist() == list(range(t.n_rows))
            seen.add(t.n_rows)
    assert seen == set(range(7))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_damaged_bytes_give_one_line_or_a_trace(tmp_path: Path) -> None:
    """Never another exception; what the closing mark's hash then says is up to `check`."""
    write_steps(tmp_path / "t.arrow")
    data = (tmp_path / "t.arrow").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            damaged[at] = rng.integers(256)
        (tmp_path / "x.arrow").write_bytes(damaged)
        try:
            t = open_routing(tmp_path / "x.arrow")
        except InputError as e:
            assert "\n" not in str(e)
        else:
            assert t.dense.ids.shape[2] == t.top_k and t.sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"hello, world", "not an Arrow IPC file"),
        (b"ARROW1\0\0", "cut off before its schema"),
        (b"PAR1 not really", "damaged Parquet"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.arrow").write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_routing(tmp_path / "t.arrow")


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        open_routing(tmp_path / "none.arrow")
    with pytest.raises(InputError, match="directory"):
        open_routing(tmp_path)


def test_foreign_arrow_and_parquet(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2]})
    with pa.ipc.new_file(str(tmp_path / "x.arrow"), table.schema) as f:
        f.write_table(table)
    pq.write_table(table, tmp_path / "x.parquet")
    for name in ("x.arrow", "x.parquet"):
        with pytest.raises(InputError, match="trace import"):
            open_routing(tmp_path / name)


def test_wrong_column_type(tmp_path: Path) -> None:
    write_steps(tmp_path / "t.arrow")
    table = pa.ipc.open_file(str(tmp_path / "t.arrow")).read_all()
    wrong = table.set_column(0, "seq", table.column("seq").cast(pa.int64()))
    with pa.ipc.new_file(str(tmp_path / "w.arrow"), wrong.schema) as f:
        f.write_table(wrong)
    with pytest.raises(InputError, match="column 'seq' is int64, not int32"):
        open_routing(tmp_path / "w.arrow")


def test_no_copy_left_behind_when_the_target_cannot_be_written(tmp_path: Path) -> None:
    t = decode_trace([random_ids(np.random.default_rng(0), 4, 2, 8, 2)], 8)
    with pytest.raises(InputError, match="cannot be written"):
        t.save(tmp_path / "no" / "t.arrow")


@given(
    cut=st.integers(0, 20),
    tokens=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
@settings(max_examples=50, deadline=None)
def test_head_is_the_first_tokens(cut: int, tokens: list[int], seed: int) -> None:
    """Steps of several tokens, rows layer by layer: head keeps whole tokens in order."""
    rng = np.random.default_rng(seed)
    rows = [
        (step, layer, sum(tokens[:step]) + i)
        for step, n in enumerate(tokens)
        for layer in range(3)
        for i in range(n)
    ]
    step, layer, pos = (np.array(x, np.int32) for x in zip(*rows, strict=True))
    columns = {
        "seq": np.zeros(len(rows), np.int32),
        "pos": pos,
        "step": step,
        "phase": np.zeros(len(rows), np.uint8),
        "layer": layer.astype(np.int16),
        "experts": random_ids(rng, len(rows), 1, 8, 2)[:, 0],
    }
    t = type(decode_trace([random_ids(rng, 1, 3, 8, 2)], 8))(columns, make_meta(3, 8, 2))
    assert t.n_tokens == sum(tokens) and t.n_steps == len(tokens)
    np.testing.assert_array_equal(t.token_index, pos)
    head = t.head(cut)
    assert head.n_tokens == min(cut, sum(tokens))
    np.testing.assert_array_equal(head.pos, pos[pos < cut])
    np.testing.assert_array_equal(head.experts, t.experts[pos < cut])
    # The same rows in any order are grouped into the same tokens.
    mixed = rng.permutation(len(rows))
    inverse = t.take(mixed).token_index
    for a in range(len(rows)):
        assert (inverse == inverse[a]).tolist() == (pos[mixed] == pos[mixed][a]).tolist()
