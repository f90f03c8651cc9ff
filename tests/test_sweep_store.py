"""A sweep's dataset: appended to, killed, merged, read by others."""

import json

import pyarrow.dataset as ds
import pytest

from traces.errors import InputError
from uvmsim.studies.sweep import store as store_module
from uvmsim.studies.sweep.rows import SCHEMA
from uvmsim.studies.sweep.store import Store, export, read


def row(i: int, status: str = "ok") -> dict:
    return {"cell": f"{i:04d}", "status": status, "tokens_per_s": float(i)}


def cells(folder) -> list[str]:
    """As anybody reads it: Arrow's own dataset reader, no code of ours."""
    return sorted(ds.dataset(folder).to_table(columns=["cell"])["cell"].to_pylist())


def test_what_is_added_is_there_for_every_reader_at_once(tmp_path):
    with Store(tmp_path / "s") as store:
        for i in range(5):
            assert store.add([row(i)]) == 1
            assert cells(tmp_path / "s") == [f"{j:04d}" for j in range(i + 1)]
        assert store.add([row(3), row(5), row(5)]) == 1
    assert len(store.files()) == 1
    assert cells(tmp_path / "s") == [f"{j:04d}" for j in range(6)]
    assert read(tmp_path / "s").schema.equals(SCHEMA)


def test_opened_again_it_knows_its_cells(tmp_path):
    with Store(tmp_path) as store:
        store.add(row(i) for i in range(3))
    with Store(tmp_path) as store:
        assert store.done == {"0000", "0001", "0002"}
        assert store.add([row(2), row(3)]) == 1
    assert len(cells(tmp_path)) == 4


def test_many_fragments_are_merged_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "FRAGMENTS", 4)
    with Store(tmp_path) as store:
        for i in range(30):
            store.add([row(i)])
            assert len(store.files()) <= 4
            assert len(cells(tmp_path)) == i + 1


@pytest.mark.parametrize("stop_after", range(1, 10))
def test_a_merge_cut_short_anywhere_loses_and_doubles_nothing(tmp_path, monkeypatch, stop_after):
    """Every file operation of a merge may be the last one; no reader sees a row twice."""
    store = Store(tmp_path)
    for i in range(6):
        store.add([row(i)])
    left = [stop_after]

    class Killed(BaseException):
        pass

    def counted(real):
        def run(self, *args, **kwargs):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(self, *args, **kwargs)

        return run

    path = type(tmp_path)
    with monkeypatch.context() as m:
        m.setattr(path, "unlink", counted(path.unlink))
        m.setattr(path, "rename", counted(path.rename))
        try:
            store.compact()
            done = True
        except Killed:
            done = False
    assert done == (stop_after >= 8)  # two renames and six deletions
    seen = cells(tmp_path) if store.files() else []
    assert len(seen) == len(set(seen))
    store_module.os.close(store._lock)
    with Store(tmp_path) as again:
        assert again.done == {f"{i:04d}" for i in range(6)}
        again.add([row(6)])
    assert cells(tmp_path) == [f"{i:04d}" for i in range(7)]


def test_half_written_files_are_cleared_away(tmp_path):
    with Store(tmp_path) as store:
        store.add([row(0)])
    (tmp_path / ".tmp-rows-00000009.parquet").write_bytes(b"PAR1 half")
    with Store(tmp_path) as store:
        assert store.done == {"0000"}
    assert not list(tmp_path.glob(".tmp-*"))


def test_errors_can_be_forgotten(tmp_path):
    with Store(tmp_path) as store:
        store.add([row(0), row(1, "error")])
        store.add([row(2, "error")])
        assert store.forget_errors() == 2
        assert store.done == {"0000"}
        assert store.add([row(1)]) == 1
    assert cells(tmp_path) == ["0000", "0001"]


def test_one_writer_at_a_time(tmp_path):
    with Store(tmp_path), pytest.raises(InputError, match="another sweep is writing there"):
        Store(tmp_path)
    Store(tmp_path).close()


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"holds other files \(thesis.tex\)"):
        Store(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        Store(tmp_path / "thesis.tex")


@pytest.mark.parametrize("name", ["all.parquet", "all.arrow"])
def test_export_writes_one_file(tmp_path, name):
    with Store(tmp_path / "s", {"seed": [0]}) as store:
        store.add(row(i) for i in range(3))
        meta = store_module.pq.read_schema(store.files()[0]).metadata
    assert json.loads(meta[b"uvmsim.sweep"]) == {"seed": [0]}
    export(tmp_path / "s", tmp_path / name)
    assert read(tmp_path / name).equals(read(tmp_path / "s"))


def test_reading_what_is_no_dataset(tmp_path):
    with pytest.raises(InputError, match="no such dataset"):
        read(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no rows"):
        read(tmp_path)
    (tmp_path / "x.parquet").write_text("x")
    with pytest.raises(InputError, match="not a sweep's dataset"):
        read(tmp_path / "x.parquet")
