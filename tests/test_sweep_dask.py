"""A sweep on a real Dask cluster: two worker processes, one of them killed on the way."""

import functools
import http.server
import os
import signal
import threading
from pathlib import Path

import pytest

from traces.errors import InputError
from traces.samples import BUNDLED
from uvmsim.studies.sweep import cluster as cluster_module
from uvmsim.studies.sweep.config import SweepConfig
from uvmsim.studies.sweep.execute import sweep
from uvmsim.studies.sweep.store import read

distributed = pytest.importorskip("distributed", reason="needs the dask extra")


@pytest.fixture(scope="module")
def dask_cluster():
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        yield cluster


@pytest.fixture
def served():
    """The bundled trace as a URL."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(BUNDLED.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{BUNDLED.name}"
        server.shutdown()


def config(**more) -> SweepConfig:
    grid = {"expert_size": "13.2MB", "policy": ["lru", "lfu"], "slots": ["20%", "40%", "60%"],
            "link": [f"{g}GB/s" for g in range(8, 20)]}  # fmt: skip
    return SweepConfig(**(grid | more))


def test_a_worker_killed_in_the_middle_costs_no_row_and_doubles_none(
    tmp_path, dask_cluster, served, monkeypatch
):
    """Traces come by URL; the rows are those that one process makes from the file."""
    pytest.importorskip("aiohttp", reason="reading http needs aiohttp")
    monkeypatch.setattr(cluster_module, "CHUNK", 4)
    with distributed.Client(dask_cluster) as client:
        pids = list(client.run(os.getpid).values())
    assert len(set(pids)) == 2
    killed = []

    def kill_one(done: int, cells: int, what: str) -> None:
        if 0 < done < cells and not killed:
            os.kill(pids[0], signal.SIGKILL)
            killed.append(done)

    monkeypatch.setattr("uvmsim.studies.sweep.execute.FLUSH", 0.0)
    address = dask_cluster.scheduler_address
    done = sweep(config(trace=served), tmp_path / "dask", dask=address, progress=kill_one)
    assert killed
    assert (done.cells, done.ran, done.ok) == (72, 72, 72)
    sweep(config(trace=str(BUNDLED)), tmp_path / "one", jobs=1)
    ours, theirs = (sorted_rows(tmp_path / name) for name in ("one", "dask"))
    assert len(theirs) == 72
    assert theirs == ours
    again = sweep(config(trace=str(BUNDLED)), tmp_path / "dask", dask=address)
    assert (again.already, again.ran) == (72, 0)


def sorted_rows(folder: Path) -> list[dict]:
    rows = read(folder).drop_columns(["trace"]).to_pylist()
    return sorted(rows, key=lambda r: r["cell"])


def test_what_workers_cannot_read_is_said_in_one_line(tmp_path, dask_cluster):
    address = dask_cluster.scheduler_address
    with pytest.raises(InputError, match="no such trace"):
        sweep(config(trace="/nowhere/t.arrow"), tmp_path, dask=address)
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9/t\.arrow: cannot be read"):
        sweep(config(trace="http://127.0.0.1:9/t.arrow"), tmp_path, dask=address)


def test_no_scheduler_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_module, "TIMEOUT", "1s")
    with pytest.raises(InputError, match=r"tcp://127\.0\.0\.1:9: no scheduler answers there"):
        sweep(config(), tmp_path, dask="tcp://127.0.0.1:9")
