"""Guesses of predictors against routers written out by hand, architecture by architecture."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from reference_qwen3moe import forward
from tiny_gguf import ARCHITECTURES, write_tiny

pytest.importorskip("xllamacpp", reason="the capture extra is not installed")

from traces.capture import gate_graph
from traces.capture.find_library import find_library
from traces.capture.gate_rule import Norm
from traces.capture.gate_scores import GateScores
from traces.capture.ggml_tensor import TensorReader, source_of
from traces.capture.libllama import Library, LlamaContext, LlamaModel
from traces.capture.llama_cpp import capture
from traces.capture.options import CaptureOptions, CaptureResult, Prompt
from traces.capture.routing_callback import MicroBatch, RoutingCallback
from traces.commands.capture import capture as command
from traces.errors import InputError
from traces.models.gguf import describe
from traces.routing import RoutingTrace, open_routing
from traces.routing.check import check
from traces.routing.columns import GUESSES

pytestmark = pytest.mark.llama

TEXT = "The quick brown fox jumps over the lazy dog; routing is captured 0123456789."
ALL = ("next1", "next2", "pre")
BOTH = {"scores_next": True, "scores_pre": True}


@pytest.fixture(scope="module")
def library() -> Library:
    return Library(find_library())


@pytest.fixture(scope="module", params=[*ARCHITECTURES, "phimoe"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / f"{request.param}.gguf"
    return write_tiny(path, request.param, uneven_norms=True)


def run(
    path: Path, out: Path, prompts: tuple[str, ...] = (TEXT,), **options: object
) -> tuple[RoutingTrace, CaptureResult]:
    result = capture(
        path,
        [Prompt(tokens=tuple(p.encode())) for p in prompts],
        out,
        CaptureOptions(**({"n_predict": 0, "threads": 1} | options)),  # type: ignore[arg-type]
    )
    return open_routing(out), result


class Spy:
    """A watcher of its own: the input of each router, and the output of the norm before attention."""

    def __init__(self, library: Library, watched: GateScores) -> None:
        self.routed: dict[int, np.ndarray] = {}
        self.attention: dict[int, np.ndarray] = {}
        self._read, self._watched = TensorReader(library.c).read, watched
        self.begins = watched.begins

    def wants(self, name: bytes) -> bool:
        kind = name.rpartition(b"-")[0]
        return kind in (b"ffn_moe_logits", b"attn_norm") or self._watched.wants(name)

    def take(self, name: bytes, address: int, micro: MicroBatch) -> None:
        kind, _, layer = name.rpartition(b"-")
        if kind == b"ffn_moe_logits":
            self.routed[int(layer)] = self._read(source_of(address, 1))
        elif kind == b"attn_norm":
            self.attention[int(layer)] = self._read(address)
        self._watched.take(name, address, micro)


def by_hand(w: dict[str, np.ndarray], arch: str, layer: int, normed: np.ndarray) -> np.ndarray:
    """What the router of a layer ranks experts by, for an input whose norm has no weights yet."""
    norm = "post_attention_norm" if arch in ("gpt-oss", "glm4moe") else "ffn_norm"
    normed = normed * w[f"blk.{layer}.{norm}.weight"] + w.get(f"blk.{layer}.{norm}.bias", 0)
    logits = normed @ w[f"blk.{layer}.ffn_gate_inp.weight"].T
    if arch == "gpt-oss":
        return logits + w[f"blk.{layer}.ffn_gate_inp.bias"]
    if arch not in ("deepseek2", "glm4moe"):
        return logits
    scores = 1 / (1 + np.exp(-logits)) + w[f"blk.{layer}.exp_probs_b.bias"]
    if arch == "deepseek2":
        for row in scores:
            groups = row.reshape(4, 4)
            strength = [sum(sorted(g)[-2:]) for g in groups]
            for g in np.argsort(strength)[:2]:
                groups[g] = -np.inf
    return scores


def same(ids: np.ndarray, scores: np.ndarray, expected: np.ndarray, tolerance: float) -> float:
    """Assert that guesses are the best of the expected scores; share of rows without a near-tie."""
    width = ids.shape[1]
    order = np.argsort(-expected, axis=1, kind="stable")
    ranked = np.take_along_axis(expected, order, axis=1)
    with np.errstate(invalid="ignore"):
        gap = (ranked[:, :-1] - ranked[:, 1:])[:, :width]
    clear = ~(gap < tolerance).any(axis=1)
    finite = np.isfinite(ranked[:, :width])  # experts that were ruled out have no order
    assert (np.where(finite, ids == order[:, :width], True))[clear].all()
    assert (np.isneginf(scores) == ~finite).all()
    assert (np.sort(ids, axis=1)[:, 1:] != np.sort(ids, axis=1)[:, :-1]).all()
    theirs = np.take_along_axis(expected, ids.astype(np.int64), axis=1)
    rounding = tolerance + np.abs(theirs[finite]) * 2.0**-11
    assert (np.abs(scores[finite] - theirs[finite]) <= rounding).all()
    return float(clear.mean())


def test_guesses_are_those_of_routers_written_by_hand(library: Library, model: Path) -> None:
    """From each router's own input, divided by its norm's weights: no norm is computed here."""
    arch = model.stem
    w = {t.name: np.array(t.data, np.float64) for t in gguf.GGUFReader(model).tensors}
    info = describe(model)
    spy = Spy(library, GateScores(library, model, info, ALL))
    callback = RoutingCallback(library, info.moe_layers, watcher=spy)
    with (
        LlamaModel(library, model) as loaded,
        LlamaContext(loaded, n_ctx=256, n_threads=1, callback=callback.pointers) as context,
    ):
        tokens = loaded.tokenize(TEXT)
        n = len(tokens)
        context.decode(tokens, range(n), [0] * n, [True] * n)
        (seen,) = callback.drain()
    norm = "post_attention_norm" if arch in ("gpt-oss", "glm4moe") else "ffn_norm"
    clear = []
    for layer in info.moe_layers:
        plain = spy.routed[layer] - w.get(f"blk.{layer}.{norm}.bias", 0)
        plain = plain / w[f"blk.{layer}.{norm}.weight"]
        # The router's own choice, to begin with: the hand-written formula is the model's.
        own = by_hand(w, arch, layer, plain)
        best = np.argsort(-own, axis=1, kind="stable")[:, : info.top_k]
        assert (np.sort(best) == np.sort(seen.layers[layer].experts)).all(axis=1).mean() > 0.97
        for ahead in (1, 2):
            about = layer + ahead
            assert ((f"next{ahead}", layer) in seen.guesses) == (about in info.moe_layers)
            if about in info.moe_layers:
                ids, scores = seen.guesses[f"next{ahead}", layer]
                assert (ids.dtype, scores.dtype, ids.shape) == (np.int16, np.float16, (n, 8))
                clear.append(same(ids, scores, by_hand(w, arch, about, plain), 1e-4))
        plain = spy.attention[layer] - w.get(f"blk.{layer}.attn_norm.bias", 0)
        plain = plain / w[f"blk.{layer}.attn_norm.weight"]
        clear.append(same(*seen.guesses["pre", layer], by_hand(w, arch, layer, plain), 1e-4))
    assert np.mean(clear) > 0.97


def test_independent_forward_pass_guesses_the_same(tmp_path: Path) -> None:
    """Residual streams from a forward pass in NumPy; llama.cpp keeps keys and values in float16."""
    path = write_tiny(tmp_path / "m.gguf", "qwen3moe", uneven_norms=True)
    t, _ = run(path, tmp_path / "t.arrow", all_outputs=True, **BOTH)
    residuals: list[tuple[np.ndarray, np.ndarray]] = []
    forward(path, list(TEXT.encode()), residuals)
    w = {x.name: np.array(x.data, np.float64) for x in gguf.GGUFReader(path).tensors}

    def normed(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-6)

    clear = []
    for layer in range(4):
        before, after = residuals[layer]
        rows = t.layer == layer
        for name, about, x in (
            ("next1", layer + 1, after),
            ("next2", layer + 2, after),
            ("pre", layer, before),
        ):
            guess = t.predictions[name]
            if about > 3:
                assert (guess.ids[rows] == -1).all() and np.isnan(guess.scores[rows]).all()
                continue
            expected = by_hand(w, "qwen3moe", about, normed(x))
            clear.append(same(guess.ids[rows], guess.scores[rows], expected, 0.01))
    assert np.mean(clear) > 0.6  # eight close scores: near-ties are many


def test_only_what_is_asked_for_is_recorded(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    plain, _ = run(path, tmp_path / "0.arrow")
    assert plain.predictions == {}
    assert b'"version": 1' in plain_metadata(tmp_path / "0.arrow")
    ahead, _ = run(path, tmp_path / "1.arrow", scores_next=True)
    assert list(ahead.predictions) == ["next1", "next2"]
    before, _ = run(path, tmp_path / "2.arrow", scores_pre=True)
    assert list(before.predictions) == ["pre"]
    both, _ = run(path, tmp_path / "3.arrow", **BOTH)
    assert list(both.predictions) == list(ALL)
    assert list(both.meta.extra["predictors"]) == list(ALL)
    assert b'"version": 2' in plain_metadata(tmp_path / "3.arrow")
    for name in ALL:
        t = before if name == "pre" else ahead
        assert (both.predictions[name].ids == t.predictions[name].ids).all()
    for t in (ahead, before, both):
        assert (t.experts == plain.experts).all()
        assert np.array_equal(t.weights, plain.weights, equal_nan=True)


def plain_metadata(path: Path) -> bytes:
    import pyarrow as pa

    return bytes(pa.ipc.open_file(path).schema.metadata[b"uvmsim"])


def test_logits_do_not_change(library: Library, model: Path) -> None:
    info, found = describe(model), []
    for watched in (False, True):
        watcher = GateScores(library, model, info, ALL) if watched else None
        callback = RoutingCallback(library, info.moe_layers, watcher=watcher)
        with (
            LlamaModel(library, model) as loaded,
            LlamaContext(loaded, n_ctx=256, n_threads=1, callback=callback.pointers) as context,
        ):
            tokens = loaded.tokenize(TEXT)
            context.decode(tokens, range(len(tokens)), [0] * len(tokens), [True] * len(tokens))
            callback.drain()
            found.append(np.stack([context.logits(i) for i in range(len(tokens))]))
    assert (found[0] == found[1]).all()


def test_dropped_rows_have_the_guesses_that_were_made(model: Path, tmp_path: Path) -> None:
    """The last layer's rows of a prefill have no routing. What was guessed about them was seen."""
    t, result = run(model, tmp_path / "t.arrow", n_predict=3, ignore_eos=True, **BOTH)
    assert result.notes == []
    assert [f.code for f in check(t) if f.severity == "error"] == []
    layers = t.meta.model.moe_layers
    dropped = (t.experts < 0).all(axis=1)
    assert set(t.layer[dropped].tolist()) <= {layers[-1]}
    has = {name: (guess.ids >= 0).all(axis=1) for name, guess in t.predictions.items()}
    assert (has["next1"] == (t.layer != layers[-1])).all()
    assert (has["next2"] == ~np.isin(t.layer, layers[-2:])).all()
    assert has["pre"].all()


def test_routing_is_that_of_a_run_without_guesses(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is read after the graph, the other at stops: the same bits. And whether many steps are
    written together makes no difference to guesses, in micro-batches that lack rows of a layer."""
    texts = (TEXT, TEXT[:30])
    options = {"n_predict": 40, "ignore_eos": True, "n_ubatch": 16, "scores": True, "times": True}
    plain, _ = run(model, tmp_path / "plain.arrow", texts, **options)
    together, result = run(model, tmp_path / "together.arrow", texts, **options, **BOTH)
    monkeypatch.setattr("traces.capture.llama_cpp.TOGETHER", 1)
    alone, _ = run(model, tmp_path / "alone.arrow", texts, **options, **BOTH)
    assert result.notes == [] and result.steps == plain.n_steps > 40
    for t in (together, alone):
        assert t.columns.keys() - plain.columns.keys() == set(GUESSES)
        for name in plain.columns.keys() - {"time_ns", "duration_ns"}:
            assert np.array_equal(t.columns[name], plain.columns[name], equal_nan=True)
        assert t.time_ns.min() >= 0 and (t.duration_ns > 0).all()
        assert [f.code for f in check(t) if f.severity in ("error", "warning")] == []
    for name in GUESSES:
        assert np.array_equal(together.columns[name], alone.columns[name], equal_nan=True)


def test_weights_and_caches_are_noted_beside_guesses(library: Library, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    info, names = describe(path), []
    for watched in (False, True):
        watcher = GateScores(library, path, info, ALL) if watched else None
        callback = RoutingCallback(library, info.moe_layers, tensors=True, watcher=watcher)
        with (
            LlamaModel(library, path) as loaded,
            LlamaContext(loaded, n_ctx=256, n_threads=1, callback=callback.pointers) as context,
        ):
            context.decode([5, 6], [0, 1], [0, 0], [True, True])
            callback.drain()
        names.append(sorted(callback.tensors))
        assert bool(callback.kept_memory) != watched  # at stops nothing has to be kept
    assert names[0] == names[1] and "blk.3.ffn_up_exps.weight" in names[0]


def test_micro_batches_and_sequences_keep_their_guesses(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", uneven_norms=True)
    texts = (TEXT, TEXT[::-1])
    many, _ = run(path, tmp_path / "many.arrow", texts, n_ubatch=16, all_outputs=True, **BOTH)
    for seq, text in enumerate(texts):
        alone, _ = run(path, tmp_path / "one.arrow", (text,), all_outputs=True, **BOTH)
        mine = many.take(many.seq == seq)
        order = np.lexsort((mine.layer, mine.pos))
        theirs = np.lexsort((alone.layer, alone.pos))
        for name in ALL:
            a, b = mine.predictions[name].ids[order], alone.predictions[name].ids[theirs]
            # Sums depend on the batch, so that near-ties may fall otherwise.
            assert (np.sort(a) == np.sort(b)).all(axis=1).mean() > 0.97
            assert ((a < 0) == (b < 0)).all()


def test_what_is_not_understood_is_missing_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    real, calls = gate_graph.GateGraph.rule, []

    def sometimes(self: gate_graph.GateGraph, topk: int) -> object:
        calls.append(topk)
        if len(calls) == 2:
            raise gate_graph.NotUnderstood("on purpose")
        return real(self, topk)

    monkeypatch.setattr(gate_graph.GateGraph, "rule", sometimes)
    t, result = run(path, tmp_path / "t.arrow", n_ubatch=16, all_outputs=True, **BOTH)
    assert len(calls) == 4
    assert result.notes == ["guesses are missing, layer 1: on purpose"]
    assert [f.code for f in check(t) if f.severity == "error"] == []
    has = {name: (guess.ids >= 0).all(axis=1) for name, guess in t.predictions.items()}
    # Layer 1 is guessed about by next1 of layer 0 and its own pre, and keeps no stream of its own.
    assert set(t.layer[has["next1"]].tolist()) == {2}
    assert set(t.layer[has["next2"]].tolist()) == {0}
    assert set(t.layer[has["pre"]].tolist()) == {0, 2, 3}


def test_a_residual_stream_that_was_overwritten_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    monkeypatch.setattr(Norm, "__call__", lambda self, x: x)
    with pytest.raises(InputError, match="overwritten") as e:
        run(path, tmp_path / "t.arrow", scores_next=True)
    assert "\n" not in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_an_error_in_the_middle_leaves_what_came_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    real, calls = Norm.__call__, []

    def wrong_in_the_end(self: Norm, x: np.ndarray) -> np.ndarray:
        calls.append(len(x))
        return x if len(calls) > 200 else real(self, x)

    monkeypatch.setattr(Norm, "__call__", wrong_in_the_end)
    with pytest.raises(InputError, match="overwritten"):
        run(path, tmp_path / "t.arrow", n_predict=60, ignore_eos=True, scores_next=True)
    t = open_routing(tmp_path / "t.arrow.partial")
    whole, _ = run_rest(monkeypatch, path, tmp_path)
    assert 10 < t.n_steps < 60 and not t.complete
    for name in t.columns:
        assert np.array_equal(t.columns[name], whole.columns[name][: t.n_rows], equal_nan=True)


def run_rest(
    monkeypatch: pytest.MonkeyPatch, path: Path, folder: Path
) -> tuple[RoutingTrace, CaptureResult]:
    monkeypatch.undo()
    return run(path, folder / "whole.arrow", n_predict=60, ignore_eos=True, scores_next=True)


def test_from_the_command_line(tmp_path: Path) -> None:
    from traces.commands.trace import trace

    path = write_tiny(tmp_path / "m.gguf")
    out = tmp_path / "t.arrow"
    words = ["--prompt", "abcdef", "--n-predict", "4", "--threads", "1", "--ignore-eos"]
    words += ["--scores-next", "--scores-pre", "--out", str(out)]
    result = CliRunner().invoke(command, ["llama-cpp", str(path), *words])
    assert result.exception is None, result.output
    t = open_routing(out)
    assert "--scores-next --scores-pre" in t.meta.command
    told = CliRunner().invoke(trace, ["info", str(out)]).output
    assert "next1" in told and "recall" in told
    told = json.loads(CliRunner().invoke(trace, ["stats", "--json", str(out)]).output)
    recall = told["traces"][0]["recall"]
    assert list(recall) == list(ALL)
    assert 0 < recall["pre"]["at_k"] <= recall["pre"]["at_2k"] <= 1
    told = CliRunner().invoke(trace, ["stats", "--phase", "decode", str(out)]).output
    assert "pre, 2k guesses" in told
