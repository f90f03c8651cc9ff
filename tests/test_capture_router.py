"""What is captured against what the graph itself computed, architecture by architecture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reference_qwen3moe import forward
from tiny_gguf import ARCHITECTURES, write_tiny

pytest.importorskip("xllamacpp", reason="the capture extra is not installed")

from traces.capture.find_library import find_library
from traces.capture.libllama import Library, LlamaContext, LlamaModel
from traces.capture.llama_cpp import capture
from traces.capture.options import CaptureOptions, Prompt
from traces.capture.routing_callback import MicroBatch, RoutingCallback
from traces.models.gguf import describe
from traces.routing import open_routing

pytestmark = pytest.mark.llama

TEXT = "The quick brown fox jumps over the lazy dog; routing is captured 0123456789."


@pytest.fixture(scope="module")
def library() -> Library:
    return Library(find_library())


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / f"{request.param}.gguf", request.param)


def decode(
    library: Library, path: Path, *, listen: bool = True, all_stages: bool = False
) -> tuple[MicroBatch | None, RoutingCallback, np.ndarray]:
    """One pass over the text, logits for all tokens: micro-batch, callback, logits [n, vocab]."""
    callback = RoutingCallback(library, describe(path).moe_layers, all_stages=all_stages)
    with (
        LlamaModel(library, path) as model,
        LlamaContext(
            model, n_ctx=256, n_threads=1, callback=callback.pointers if listen else None
        ) as context,
    ):
        ids = model.tokenize(TEXT)
        n = len(ids)
        context.decode(ids, range(n), [0] * n, [True] * n)
        batches = callback.drain()
        logits = np.stack([context.logits(i) for i in range(n)])
        return (batches[0] if batches else None), callback, logits


def test_ids_and_weights_are_the_graphs_own(library: Library, model: Path) -> None:
    seen, callback, _ = decode(library, model, all_stages=True)
    assert seen is not None
    info = describe(model)
    assert tuple(seen.layers) == info.moe_layers
    for il, routing in seen.layers.items():
        assert routing.experts.shape == (len(TEXT), info.top_k)
        # The ids are the top k of the scores, strongest first.
        order = np.argsort(-routing.scores, axis=1, kind="stable")[:, : info.top_k]
        assert (order == routing.experts).all()
        # The scores are the last named tensor before the choice.
        for stage in ("probs_masked", "probs_biased", "probs"):
            if (stage, il) in seen.stages:
                assert (routing.scores == seen.stages[stage, il]).all()
                break
        assert (routing.probs == seen.stages["probs", il]).all()
        # The weights are the last stage the graph computed.
        for stage in ("weights_scaled", "weights_norm", "weights_softmax", "weights"):
            if (stage, il) in seen.stages:
                theirs = seen.stages[stage, il].reshape(routing.experts.shape)
                break
        ours = callback.rules[il].weights(routing.probs, routing.experts)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_scores_follow_from_the_router_logits(library: Library, model: Path) -> None:
    """The router recomputed from its logits, by each model's own formula."""
    seen, _, _ = decode(library, model, all_stages=True)
    assert seen is not None
    for il, routing in seen.layers.items():
        logits = seen.stages["logits", il].astype(np.float64)
        if model.stem == "gpt-oss":
            continue  # its bias is added after `logits`; weights are checked above
        if model.stem in ("deepseek2", "glm4moe"):
            expected = 1 / (1 + np.exp(-logits))
        else:
            e = np.exp(logits - logits.max(axis=1, keepdims=True))
            expected = e / e.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(routing.probs, expected, rtol=1e-4, atol=1e-7)


def test_lean_capture_equals_the_thorough_one(library: Library, model: Path) -> None:
    lean, lean_callback, _ = decode(library, model)
    full, full_callback, _ = decode(library, model, all_stages=True)
    assert lean is not None and full is not None
    assert lean_callback.rules == full_callback.rules
    for il, routing in full.layers.items():
        assert (lean.layers[il].experts == routing.experts).all()
        assert (lean.layers[il].scores == routing.scores).all()
        assert (lean.layers[il].probs == routing.probs).all()


@pytest.mark.parametrize("arch", ["qwen3moe", "gpt-oss", "deepseek2"])
def test_compiled_copying_equals_pythons(library: Library, tmp_path: Path, arch: str) -> None:
    """After a callback's first graph compiled code does the copying; a thorough capture keeps to
    Python. Prompt in two batches, the first without any logits, then single tokens."""
    path = write_tiny(tmp_path / "m.gguf", arch)
    seen = []
    for thorough in (False, True):
        callback = RoutingCallback(library, describe(path).moe_layers, all_stages=thorough)
        with (
            LlamaModel(library, path) as model,
            LlamaContext(model, n_ctx=256, n_threads=1, callback=callback.pointers) as context,
        ):
            ids = model.tokenize(TEXT)
            for part in (range(20), range(20, 50), *([i] for i in range(50, 60))):
                n = len(part)
                wanted = [n < 30 and i == n - 1 for i in range(n)]
                if n == 20:
                    wanted = [False] * n
                context.decode([ids[i] for i in part], part, [0] * n, wanted)
            seen.append(callback.drain())
    compiled, python = seen
    assert len(compiled) == len(python) == 12
    for ours, theirs in zip(compiled, python, strict=True):
        assert (ours.tokens == theirs.tokens).all()
        assert (ours.pos == theirs.pos).all()
        assert list(ours.layers) == list(theirs.layers)
        for il, routing in theirs.layers.items():
            assert (ours.layers[il].experts == routing.experts).all()
            assert (ours.layers[il].scores == routing.scores).all()
            assert (ours.layers[il].probs == routing.probs).all()


def test_a_full_tape_is_left_to_python(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    large, _, _ = decode(library, path)
    monkeypatch.setattr("traces.capture.routing_callback.TAPE_BYTES", 1000)
    info = describe(path)
    callback = RoutingCallback(library, info.moe_layers)
    with (
        LlamaModel(library, path) as model,
        LlamaContext(model, n_ctx=256, n_threads=1, callback=callback.pointers) as context,
    ):
        ids = model.tokenize(TEXT)
        context.decode(ids[:1], [0], [0], [True])
        context.decode(ids[1:], range(1, len(ids)), [0] * (len(ids) - 1), [True] * (len(ids) - 1))
    batch = callback.drain()[1]
    assert large is not None
    for il, routing in batch.layers.items():
        same = (np.sort(routing.experts) == np.sort(large.layers[il].experts[1:])).all(axis=1)
        assert same.mean() > 0.95


def test_logits_do_not_change(library: Library, model: Path) -> None:
    _, _, with_capture = decode(library, model)
    _, _, without = decode(library, model, listen=False)
    assert (with_capture == without).all()


def test_group_masks_are_seen_as_minus_infinity(library: Library, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "deepseek2.gguf", "deepseek2")
    seen, _, _ = decode(library, path)
    assert seen is not None
    scores = np.concatenate([r.scores for r in seen.layers.values()])
    assert (np.isneginf(scores).sum(axis=1) == scores.shape[1] // 2).all()  # 2 of 4 groups


def test_independent_forward_pass_agrees(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "qwen3moe.gguf", "qwen3moe")
    tokens = tuple(TEXT.encode())
    options = CaptureOptions(n_predict=0, all_outputs=True, scores=True)
    capture(path, [Prompt(tokens=tokens)], tmp_path / "t.arrow", options)
    captured = open_routing(tmp_path / "t.arrow").dense
    reference = forward(path, list(tokens))
    agree = np.mean(
        [
            [set(reference[il][0][t]) == set(captured.ids[t, il]) for il in range(len(reference))]
            for t in range(len(tokens))
        ]
    )
    # llama.cpp keeps keys and values in float16, so that near-ties may fall otherwise.
    assert agree > 0.99
    for il, (ids, weights) in enumerate(reference):
        same = (ids == captured.ids[:, il]).all(axis=1)
        np.testing.assert_allclose(captured.weights[same, il], weights[same], atol=2e-3)


def test_an_error_inside_the_callback_comes_out(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny(tmp_path / "olmoe.gguf", "olmoe")

    def broken(self: RoutingCallback, address: int, layer: int) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(RoutingCallback, "_take_routing", broken)
    with pytest.raises(RuntimeError, match="on purpose"):
        decode(library, path)
