"""Fault traces: the same promises as routing traces."""

from pathlib import Path

import numpy as np
import pytest

from traces import InputError
from traces.faults import FaultWriter, open_faults
from traces.routing import open_routing


def write(path: Path, batch_rows: int, flush: int) -> None:
    with FaultWriter(path, {"tool": "test"}, batch_rows=batch_rows) as w:
        for i in range(10):
            w.append(
                time_ns=[i * 10, i * 10 + 1],
                kind=["gpu_fault", "eviction"],
                address=2**63 + i,
                bytes=[4096, None],
                access=None if i == 0 else ("read" if i < 5 else "write"),
                cause=f"c{i % 3}",
            )
            if i % flush == 0:
                w.flush()


def test_round_trip_with_growing_words(tmp_path: Path) -> None:
    hashes = set()
    for n, (rows, flush) in enumerate([(1000, 100), (3, 1), (1000, 2)]):
        path = tmp_path / f"{n}.arrow"
        write(path, rows, flush)
        t = open_faults(path)
        assert t.complete and t.n_rows == 20 and t.meta["tool"] == "test"
        np.testing.assert_array_equal(
            t.numbers("time_ns"), [10 * i + j for i in range(10) for j in (0, 1)]
        )
        assert t.numbers("address")[-1] == 2**63 + 9
        assert t.numbers("bytes", missing=-1)[:4].tolist() == [4096, -1, 4096, -1]
        codes, words = t.words("access")
        got = [None if c < 0 else words[c] for c in codes]
        assert got == [None] * 2 + ["read"] * 8 + ["write"] * 10
        codes, words = t.words("kind")
        assert [words[c] for c in codes[:2]] == ["gpu_fault", "eviction"]
        hashes.add(t.sha256)
    assert len(hashes) == 1


def test_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "f.arrow"
    with pytest.raises(KeyError), FaultWriter(path) as w:
        w.append(time_ns=1, kind="prefetch", cause="a")
        w.flush()
        w.append(time_ns=2, kind="prefetch", cause="b")
        w.flush()
        raise KeyError
    with pytest.raises(InputError, match="did not finish"):
        open_faults(path)
    t = open_faults(f"{path}.partial")
    assert not t.complete and t.numbers("time_ns").tolist() == [1, 2]
    # Without its index too.
    data = Path(f"{path}.partial").read_bytes()
    path.write_bytes(data[: data.rindex(b"ARROW1") - 40])
    codes, words = open_faults(path).words("cause")
    assert [words[c] for c in codes] == ["a", "b"]


@pytest.mark.parametrize(
    "bad", [{"kind": "nonsense"}, {"colour": 1}, {"bytes": [1, 2, 3]}], ids=str
)
def test_refused_events(tmp_path: Path, bad: dict[str, object]) -> None:
    row: dict[str, object] = {"time_ns": [1, 2], "kind": "eviction"}
    with pytest.raises(ValueError), FaultWriter(tmp_path / "f") as w:
        w.append(**(row | bad))


def test_the_two_kinds_of_trace_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path / "f.arrow", 100, 1)
    with pytest.raises(InputError, match=r"uvmsim\.faults"):
        open_routing(tmp_path / "f.arrow")
    from test_traces_routing import write_steps

    write_steps(tmp_path / "r.arrow")
    with pytest.raises(InputError, match="not faults"):
        open_faults(tmp_path / "r.arrow")
