"""`uvmsim capture llama-cpp` from the command line, broken input and broken-off runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_gguf import write_tiny

from traces.capture import find_library
from traces.commands.capture import capture as command
from traces.errors import InputError
from traces.routing import open_routing

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf")


def invoke(*words: object) -> str:
    result = CliRunner().invoke(command, [str(w) for w in words])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def llama(test: object) -> object:
    pytest.importorskip("xllamacpp", reason="the capture extra is not installed")
    return pytest.mark.llama(test)


@llama
def test_command_writes_a_described_trace(model: Path, tmp_path: Path) -> None:
    prompt, out = tmp_path / "prompt.txt", tmp_path / "t.arrow"
    prompt.write_text("To be captured.")
    text = invoke(
        "llama-cpp", model, "--prompt-file", prompt, "--n-predict", 6, "--out", out, "--ignore-eos",
        "--threads", 1, "--scores", "--tokens",
    )  # fmt: skip
    assert "15 prompt tokens" in text and "6 generated" in text
    assert f"uvmsim compare {out}" in text
    trace = open_routing(out)
    assert trace.complete
    assert trace.n_tokens == 21
    assert trace.capabilities == {"router_scores", "router_weights", "ranked_ids", "token_ids"}
    meta = trace.meta
    assert meta.model.name == "tiny-qwen3moe"
    assert meta.model.architecture == "qwen3moe"
    assert "--n-ubatch 512" in meta.command and "--temperature 0.8" in meta.command
    assert str(tmp_path) not in meta.command
    assert meta.prompt_source.startswith("prompt.txt sha256:")
    assert meta.machine["library_build"]


@llama
def test_same_seed_same_trace(model: Path, tmp_path: Path) -> None:
    printed, hashes = [], []
    for seed in (1, 1, 2):
        out = tmp_path / "t.arrow"
        words = ("--prompt", "Again", "--n-predict", 30, "--threads", 1, "--seed", seed, "--json")
        printed.append(json.loads(invoke("llama-cpp", model, "--out", out, *words)))
        hashes.append(open_routing(out).sha256)
    assert printed[0] == printed[1]
    assert hashes[0] == hashes[1] != hashes[2]
    assert printed[0]["prompt_tokens"] == 5


@llama
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt-file", "absent.txt"], "absent.txt: no such file"),
        ([], "no prompt"),
        (["--prompt", ""], "empty"),
        (["--prompt", "x", "--lib", "absent.so"], "absent.so: no such library"),
        (["--prompt", "x", "--n-ctx", "8"], "--n-ctx 8"),
        (["--prompt", "x", "--n-gpu-layers", "9"], "no GPU back end"),
        (["--prompt", "x", "--n-cpu-moe", "-1"], "--n-cpu-moe"),
        (["--prompt", "x", "--moe-cache-mib", "8"], "MoE cache requires a GPU backend"),
        (["--prompt", "x", "--n-ubatch", "0"], "--n-ubatch 0"),
        (["--prompt", "x", "--temperature", "-1"], "--temperature"),
    ],
)
def test_wrong_options_are_one_line(
    model: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(InputError) as e:
        invoke("llama-cpp", model, "--out", tmp_path / "t.arrow", *words)
    assert message in str(e.value)
    assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())


@llama
def test_experts_in_host_memory_route_alike(model: Path, tmp_path: Path) -> None:
    out, experts = tmp_path / "t.arrow", []
    for more in ([], ["--n-cpu-moe", 99, "--no-mmap"]):
        words = ("--prompt", "Placed", "--n-predict", 8, "--threads", 1, *more)
        invoke("llama-cpp", model, "--out", out, *words)
        experts.append(open_routing(out).experts.tolist())
    assert experts[0] == experts[1]


@llama
def test_models_llama_cpp_refuses_are_one_line(model: Path, tmp_path: Path) -> None:
    # A head that is whole, of an architecture that does not exist.
    data = model.read_bytes().replace(b"qwen3moe", b"qwen3mop")
    broken = tmp_path / "m.gguf"
    broken.write_bytes(data)
    with pytest.raises(InputError, match="cannot load it") as e:
        invoke("llama-cpp", broken, "--prompt", "x", "--out", tmp_path / "t.arrow")
    assert "\n" not in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


@llama
def test_library_that_is_not_llama(model: Path, tmp_path: Path) -> None:
    other = Path(sys.modules["_ctypes"].__file__ or "")
    with pytest.raises(InputError, match="not libllama"):
        invoke("llama-cpp", model, "--prompt", "x", "--lib", other, "--out", tmp_path / "t.arrow")


def test_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_library.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'uvmsim\[capture\]'"):
        find_library.find_library()


def test_cuda_build_restarts_with_the_runtime_preloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "libllama.so").touch()
    (tmp_path / "libggml-cuda.so").touch()
    started = []

    def execve(program: str, arguments: list[str], environment: dict[str, str]) -> None:
        started.append((program, arguments, environment["LD_PRELOAD"]))
        raise SystemExit

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    words = ["llama-cpp", "m.gguf", "--lib", str(tmp_path / "libllama.so"), "--out", "t.arrow"]
    CliRunner().invoke(command, words)
    assert started == [(sys.executable, sys.orig_argv, "libstdc++.so.6")]
    monkeypatch.setenv("LD_PRELOAD", "libstdc++.so.6")
    assert find_library.preload_environment(find_library.find_library(tmp_path)) is None


@llama
def test_interrupted_run_leaves_a_readable_part(model: Path, tmp_path: Path) -> None:
    from traces.capture.llama_cpp import capture
    from traces.capture.options import CaptureOptions, Prompt

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "decode" and done == 3:
            raise KeyboardInterrupt

    options = CaptureOptions(n_predict=10, threads=1, ignore_eos=True)
    with pytest.raises(KeyboardInterrupt):
        capture(model, [Prompt(text="abc")], tmp_path / "t.arrow", options, progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["t.arrow.partial"]
    trace = open_routing(tmp_path / "t.arrow.partial")
    assert not trace.complete
    assert trace.n_tokens == 6


@llama
def test_killed_run_leaves_a_readable_part(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.arrow"
    code = (
        "import sys\n"
        "from traces.capture import llama_cpp, options, recording\n"
        "recording.FLUSH_NS = 0\n"
        "o = options.CaptureOptions(n_predict=3000, threads=1, ignore_eos=True)\n"
        "llama_cpp.capture(sys.argv[1], [options.Prompt(text='abc')], sys.argv[2], o)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(model), str(out)], cwd=ROOT)
    partial = tmp_path / "t.arrow.partial"
    until = time.monotonic() + 60
    while child.poll() is None and time.monotonic() < until:
        if partial.exists() and partial.stat().st_size > 200_000:
            break
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not out.exists()
    trace = open_routing(partial)
    assert not trace.complete
    assert trace.n_tokens > 10
    assert (trace.dense.pos == range(trace.n_tokens)).all()
