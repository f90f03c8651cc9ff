"""Routing and page faults of one llama.cpp run, with a stand-in for CUPTI and a CPU build."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fake_cupti import FakeCupti, install
from tiny_gguf import write_tiny

pytest.importorskip("xllamacpp", reason="the capture extra is not installed")

from traces import InputError
from traces.capture import cuda_driver, llama_cpp
from traces.capture.beside import UNIFIED_MEMORY
from traces.capture.filter_state import OPEN
from traces.capture.find_library import LibraryFile
from traces.capture.libllama import Library
from traces.capture.options import CaptureOptions, Prompt
from traces.commands.capture import capture as capture_command
from traces.commands.trace import trace as trace_command
from traces.faults import open_faults
from traces.faults.beside_routing import check_beside, in_steps
from traces.routing import open_routing
from traces.routing.check import check

pytestmark = pytest.mark.llama
HTOD, GPU = 1, 4


class MovingCupti(FakeCupti):
    """CUPTI's clock runs, an hour ahead of ours."""

    def get_timestamp(self) -> int:
        return time.monotonic_ns() + 3600 * 10**9

    def event(self, **fields: int) -> None:
        """A fault, now."""
        now = self.get_timestamp()
        fault = {"counter_kind": GPU, "address": 4096, "start": now, "end": now + 1}
        self.emit([fault | fields], now=True)


@pytest.fixture
def cupti(monkeypatch: pytest.MonkeyPatch) -> Iterator[MovingCupti]:
    """Everything looks like a CUDA build in a process that is made for it."""
    fake = MovingCupti()
    install(fake, monkeypatch, devices=1)
    monkeypatch.setattr(LibraryFile, "uses_cuda", True)
    monkeypatch.setenv("LD_PRELOAD", "libstdc++.so.6")
    monkeypatch.delenv(UNIFIED_MEMORY, raising=False)

    class Offloading(Library):
        def __init__(self, file: LibraryFile) -> None:
            super().__init__(file)
            self.c.llama_supports_gpu_offload = lambda: True
            fake.event(address=1 << 21)  # loading

    monkeypatch.setattr(llama_cpp, "Library", Offloading)
    yield fake


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf")


def record(
    cupti: MovingCupti, model: Path, folder: Path, name: str = "", **more: Any
) -> tuple[Any, Path, Path]:
    """Eleven prompt tokens in two micro-batches and twenty more; a fault at the end of the last
    micro-batch of every `llama_decode`."""
    out, faults = folder / f"r{name}.arrow", folder / f"f{name}.arrow"
    options = CaptureOptions(
        n_predict=20, n_ubatch=8, n_gpu_layers=99, ignore_eos=True, threads=1, **more
    )
    seen: list[str | None] = []
    inside = llama_cpp.RoutingCallback.finish_graph

    def finish(self: Any) -> None:
        if self._data[OPEN]:  # the graph that has just run
            seen.append(os.environ.get(UNIFIED_MEMORY))
            cupti.event(address=4096 * len(seen))
        inside(self)

    patch = pytest.MonkeyPatch()
    patch.setattr(llama_cpp.RoutingCallback, "finish_graph", finish)
    try:
        result = llama_cpp.capture(model, [Prompt(text="hello there")], out, options, faults=faults)
    finally:
        patch.undo()
    assert set(seen) == {"1"} and UNIFIED_MEMORY not in os.environ
    return result, out, faults


def test_both_traces_have_one_time_axis(cupti: MovingCupti, model: Path, tmp_path: Path) -> None:
    result, out, faults = record(cupti, model, tmp_path)
    r, f = open_routing(out), open_faults(faults)
    assert r.complete and f.complete
    assert result.faults == {"out": faults, "rows": 22, "dropped": 0}
    assert result.to_json()["faults"]["out"] == "f.arrow"
    assert r.meta.extra["time"] == {
        "clock": "CUPTI",
        "origin_ns": f.meta["origin_ns"],
        "faults": "f.arrow",
    }
    assert f.meta["routing"] == "r.arrow"
    assert r.time_ns is not None and r.duration_ns is not None
    first = np.flatnonzero(np.diff(r.step, prepend=-1))
    start, end = r.time_ns[first], (r.time_ns + r.duration_ns)[first]
    assert len(first) == 22 and (start[1:] >= end[:-1]).all() and (end > start).all()
    # The first event is of loading; then one in each step but the first micro-batch's.
    at = f.numbers("time_ns")
    assert in_steps(r, at).tolist() == [False] + [True] * 21
    assert (np.searchsorted(start, at[1:], side="right") - 1 == np.arange(1, 22)).all()
    assert [c for c in check(r) if c.severity != "note"] == []
    assert [(c.code, c.count) for c in check_beside(r, f)] == [("outside-steps", 1)]


def test_the_trace_knows_where_the_weights_are(
    cupti: MovingCupti, model: Path, tmp_path: Path
) -> None:
    _, _, faults = record(cupti, model, tmp_path)
    said = open_faults(faults).meta["recording"]
    sizes = {name: size for name, (_, size) in said["tensors"].items()}
    assert sizes["blk.2.ffn_up_exps.weight"] == 16 * 32 * 64 * 4
    assert sizes["output.weight"] == 258 * 64 * 4
    assert {"token_embd.weight", "blk.0.attn_q.weight"} < set(sizes)
    places = sorted(tuple(p) for n, p in said["tensors"].items() if n.endswith(".weight"))
    assert all(a + n <= b for (a, n), (b, _) in itertools.pairwise(places))
    assert said["capture_memory"][0][1] >= 1 << 20


def test_routing_is_that_of_a_run_of_its_own(
    cupti: MovingCupti, model: Path, tmp_path: Path
) -> None:
    _, out, _ = record(cupti, model, tmp_path)
    options = CaptureOptions(n_predict=20, n_ubatch=8, ignore_eos=True, threads=1)
    llama_cpp.capture(model, [Prompt(text="hello there")], tmp_path / "alone.arrow", options)
    r, alone = open_routing(out), open_routing(tmp_path / "alone.arrow")
    assert alone.time_ns is None
    for name, column in alone.columns.items():
        assert np.array_equal(r.columns[name], column, equal_nan=column.dtype.kind == "f")


def test_traces_of_different_runs_do_not_fit(
    cupti: MovingCupti, model: Path, tmp_path: Path
) -> None:
    _, out, _ = record(cupti, model, tmp_path)
    _, _, other = record(cupti, model, tmp_path, "2")
    found = list(check_beside(open_routing(out), open_faults(other)))
    assert [(c.code, c.severity) for c in found] == [("other-run", "error")]
    assert "f.arrow" in found[0].advice
    done = CliRunner().invoke(trace_command, ["check", str(out), "--faults", str(other), "--json"])
    assert done.exit_code == 1
    assert "other-run" in {f["code"] for f in json.loads(done.stdout)["findings"]}
    options = CaptureOptions(n_predict=1, threads=1)
    llama_cpp.capture(model, [Prompt(text="x")], tmp_path / "alone.arrow", options)
    timeless = open_routing(tmp_path / "alone.arrow")
    assert [c.code for c in check_beside(timeless, open_faults(other))] == ["no-times"]


def test_steps_may_have_times_without_faults(model: Path, tmp_path: Path) -> None:
    before = time.monotonic_ns()
    options = CaptureOptions(n_predict=5, threads=1, times=True)
    llama_cpp.capture(model, [Prompt(text="hello")], tmp_path / "t.arrow", options)
    r = open_routing(tmp_path / "t.arrow")
    assert r.time_ns is not None and r.duration_ns is not None
    assert r.meta.extra["time"]["clock"] == "CLOCK_MONOTONIC"
    assert r.meta.extra["time"]["origin_ns"] > before
    assert r.time_ns.min() >= 0 and (r.duration_ns > 0).all()
    r.save(tmp_path / "copy.arrow")
    assert open_routing(tmp_path / "copy.arrow").sha256 == r.sha256
    assert not [f for f in check(r) if f.severity == "error"]


def test_no_event_leaves_no_fault_trace(
    cupti: MovingCupti, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MovingCupti, "event", lambda self, **fields: None)
    result, out, _ = record(cupti, model, tmp_path)
    assert result.faults == {"out": None, "rows": 0, "dropped": 0}
    assert any("no page fault" in note for note in result.notes)
    assert [p.name for p in tmp_path.iterdir()] == ["r.arrow"] and open_routing(out).complete


def test_lost_records_are_said(cupti: MovingCupti, model: Path, tmp_path: Path) -> None:
    cupti.dropped = 5
    result, _, _ = record(cupti, model, tmp_path)
    assert result.faults["dropped"] == 5
    assert any("lost 5 records" in note for note in result.notes)


@pytest.mark.parametrize(
    ("options", "faults", "message"),
    [
        ({"n_gpu_layers": 0}, "f.arrow", "--faults: the model is not on the GPU"),
        ({"n_gpu_layers": 0, "unified_memory": True}, None, "--unified-memory: the model is not"),
        ({"n_gpu_layers": 0, "vram_left_mib": 9}, None, "--vram-left-mib: the model is not"),
        ({"vram_left_mib": -1}, None, "--vram-left-mib -1: must be at least 0"),
        ({}, "r.arrow", "also the name of --out"),
        ({}, "taken.arrow", "left by a recording"),
        ({}, "text.arrow", "exists and is no trace"),
        ({}, "no/f.arrow", "no folder"),
        ({"n_ctx": 1}, "f.arrow", "--n-ctx 1"),  # found after the model was loaded
    ],
)
def test_bad_input_leaves_nothing(
    cupti: MovingCupti,
    model: Path,
    tmp_path: Path,
    options: dict[str, Any],
    faults: str | None,
    message: str,
) -> None:
    (tmp_path / "taken.arrow.partial").write_bytes(b"x")
    (tmp_path / "text.arrow").write_text("text")
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        llama_cpp.capture(
            model,
            [Prompt(text="hello")],
            tmp_path / "r.arrow",
            CaptureOptions(**({"n_gpu_layers": 99, "n_predict": 2} | options)),
            faults=faults and tmp_path / faults,
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_less_gpu_memory(
    cupti: MovingCupti, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    class Driver:
        """A GPU of 1,000 MiB."""

        def __getattr__(self, name: str) -> Any:
            return lambda *arguments: 0

        def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
            free._obj.value = 1000 << 20
            return 0

        def cuMemAlloc_v2(self, pointer: Any, size: Any) -> int:
            taken.append(size.value)
            return 2 if len(taken) > 1 else 0

        def cuGetErrorName(self, code: int, text: Any) -> int:
            text._obj.value = b"CUDA_ERROR_OUT_OF_MEMORY"
            return 0

    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", lambda name: Driver())
    assert cuda_driver.occupy(300 << 20) == 700 << 20 and taken == [700 << 20]
    with pytest.raises(InputError, match="OUT_OF_MEMORY"):
        cuda_driver.occupy(300 << 20)
    with pytest.raises(InputError, match="1000 MiB free"):
        cuda_driver.occupy(1000 << 20)
    monkeypatch.undo()


def test_a_cpu_build_is_refused(model: Path, tmp_path: Path) -> None:
    words = ["llama-cpp", model, "--prompt", "x", "--out", tmp_path / "r.arrow", "--faults"]
    done = CliRunner().invoke(capture_command, [*map(str, words), str(tmp_path / "f.arrow")])
    assert isinstance(done.exception, InputError)
    assert "has no CUDA back end; name a CUDA build with --lib" in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_command(cupti: MovingCupti, model: Path, tmp_path: Path) -> None:
    words: list[object] = ["llama-cpp", model, "--prompt", "hello", "--n-predict", 3]
    words += ["--n-gpu-layers", 99, "--out", tmp_path / "r.arrow", "--faults", tmp_path / "f.arrow"]
    done = CliRunner().invoke(capture_command, [*map(str, words)])
    assert done.exit_code == 0, done.output
    assert (
        f"uvmsim trace check {tmp_path / 'r.arrow'} --faults {tmp_path / 'f.arrow'}" in done.stdout
    )
    assert "--faults f.arrow" in open_faults(tmp_path / "f.arrow").meta["command"]
    checked = CliRunner().invoke(
        trace_command, ["check", str(tmp_path / "r.arrow"), "--faults", str(tmp_path / "f.arrow")]
    )
    assert checked.exit_code == 0 and "no-event-in-a-step" in checked.output
