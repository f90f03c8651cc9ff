"""What is captured against what the graph itself computed, architecture by architecture."""

from __future__ import annotations

import ctypes as C
import time
from pathlib import Path

import numpy as np
import pytest
from reference_qwen3moe import forward
from tiny_gguf import ARCHITECTURES, write_tiny

pytest.importorskip("xllamacpp", reason="the capture extra is not installed")

from traces.capture.find_library import find_library
from traces.capture.ggml_tensor import Tensor
from traces.capture.kept_memory import KeptMemory
from traces.capture.libllama import EVAL_CALLBACK, Library, LlamaContext, LlamaModel
from traces.capture.llama_cpp import capture
from traces.capture.llama_structs import find_cb_eval, find_swa_full
from traces.capture.options import CaptureOptions, Prompt
from traces.capture.routing_callback import MicroBatch, RoutingCallback
from traces.errors import InputError
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
    library: Library, path: Path, *, listen: bool = True, **options: bool
) -> tuple[MicroBatch | None, RoutingCallback, np.ndarray]:
    """One pass over the text, logits for all tokens: micro-batch, callback, logits [n, vocab]."""
    callback = RoutingCallback(library, describe(path).moe_layers, **options)
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


def converse(
    library: Library, path: Path, n_tokens: int = 24, n_seq: int = 2, **options: bool
) -> tuple[list[MicroBatch], np.ndarray, RoutingCallback]:
    """Two prompts in small micro-batches, the first without any logits, then many steps of one
    token each, in which llama.cpp uses its graph again; at the end one sequence alone. Returns the
    micro-batches, the logits of each step, and the callback."""
    callback = RoutingCallback(library, describe(path).moe_layers, **options)
    seen, logits = [], []
    with (
        LlamaModel(library, path) as model,
        LlamaContext(
            model, n_ctx=512, n_seq=n_seq, n_ubatch=16, n_threads=1, callback=callback.pointers
        ) as context,
    ):
        ids = model.tokenize(TEXT)
        context.decode(ids[:20], range(20), [0] * 20, [False] * 20)
        seen += callback.drain()
        rest = [*range(20, 50), *range(10)]
        of = [0] * 30 + [1] * 10 if n_seq > 1 else [0] * 40
        pos = rest if n_seq > 1 else range(20, 60)
        context.decode([ids[i] for i in rest], pos, of, [i in (29, 39) for i in range(40)])
        seen += callback.drain()
        at = [50, 10] if n_seq > 1 else [60]
        for i in range(n_tokens):
            both = [ids[(7 * i + s) % len(ids)] for s in range(n_seq)]
            context.decode(both, [a + i for a in at], range(n_seq), [True] * n_seq)
            logits.append(context.logits(0))
        context.decode(ids[:1], [at[0] + n_tokens], [0], [True])
        logits.append(context.logits(0))
        seen += callback.drain()
    return seen, np.stack(logits), callback


def test_ids_and_weights_are_the_graphs_own(library: Library, model: Path) -> None:
    seen, _, _ = decode(library, model, all_stages=True)
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
        # The weights are the last stage the graph computed, and follow from the probabilities.
        theirs = np.take_along_axis(seen.stages["probs", il], routing.experts, axis=1)
        theirs = theirs.astype(np.float64)
        if ("weights_softmax", il) in seen.stages:
            theirs = np.exp(theirs) / np.exp(theirs).sum(axis=1, keepdims=True)
        if ("weights_norm", il) in seen.stages:
            theirs /= theirs.sum(axis=1, keepdims=True)
        if ("weights_scaled", il) in seen.stages:
            theirs *= 2.5
        np.testing.assert_allclose(routing.weights, theirs, rtol=1e-5, atol=1e-7)


def test_scores_follow_from_the_router_logits(library: Library, model: Path) -> None:
    """The router recomputed from its logits, by each model's own formula."""
    seen, _, _ = decode(library, model, all_stages=True)
    assert seen is not None
    for il in seen.layers:
        logits = seen.stages["logits", il].astype(np.float64)
        if model.stem == "gpt-oss":
            continue  # its bias is added after `logits`; weights are checked above
        if model.stem in ("deepseek2", "glm4moe"):
            expected = 1 / (1 + np.exp(-logits))
        else:
            e = np.exp(logits - logits.max(axis=1, keepdims=True))
            expected = e / e.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(seen.stages["probs", il], expected, rtol=1e-4, atol=1e-7)


WAYS = ({}, {"stop_at_layers": True}, {"scores": True}, {"scores": True, "stop_at_layers": True})


def test_all_ways_of_reading_give_the_same(library: Library, model: Path) -> None:
    """After the graph, at every layer, and every tensor by Python alone: equal to the last bit."""
    python, plain, _ = converse(library, model, all_stages=True)
    for options in WAYS:
        compiled, logits, callback = converse(library, model, **options)
        assert (logits == plain).all()
        assert bool(callback.kept_memory) == ("stop_at_layers" not in options)
        assert_same(compiled, python, scores="scores" in options)


def assert_same(ours: list[MicroBatch], theirs: list[MicroBatch], *, scores: bool) -> None:
    assert len(ours) == len(theirs) > 25
    for our, their in zip(ours, theirs, strict=True):
        assert (our.tokens == their.tokens).all()
        assert (our.pos == their.pos).all()
        assert list(our.layers) == list(their.layers)
        for il, routing in their.layers.items():
            assert (our.layers[il].experts == routing.experts).all()
            assert (our.layers[il].weights == routing.weights).all()
            assert (our.layers[il].scores is not None) == scores
            if scores:
                assert (our.layers[il].scores == routing.scores).all()


def test_no_stop_is_asked_for(library: Library, tmp_path: Path) -> None:
    """Every question but those of a graph's scores is answered with no."""
    path = write_tiny(tmp_path / "m.gguf", "gpt-oss")
    for options, expected in (({}, 0), ({"scores": True}, 4), ({"stop_at_layers": True}, 12)):
        callback = RoutingCallback(library, describe(path).moe_layers, **options)
        stops = 0

        def count(address: int, ask: bool, user: int, callback: RoutingCallback = callback) -> bool:
            nonlocal stops
            stops += not ask
            return bool(callback._native(address, ask, user))

        wrapped = EVAL_CALLBACK(count)
        pointers = (C.cast(wrapped, C.c_void_p).value or 0, callback.pointers[1])
        with (
            LlamaModel(library, path) as model,
            LlamaContext(model, n_ctx=256, n_threads=1, callback=pointers) as context,
        ):
            context.decode([5], [0], [0], [True])
            assert len(callback.drain()) == 1
        # 4 layers; ids, weights and their softmax.
        assert stops == expected


def test_times_of_micro_batches(library: Library, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    before = time.monotonic_ns()
    seen, _, _ = converse(library, path)
    after = time.monotonic_ns()
    at = before
    for batch in seen:
        assert at <= batch.start_ns < batch.end_ns
        at = batch.end_ns
    assert at <= after


def test_one_sequence_needs_no_positions(library: Library, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    callback = RoutingCallback(library, describe(path).moe_layers)
    callback.need_positions(False)
    with (
        LlamaModel(library, path) as model,
        LlamaContext(model, n_ctx=256, n_threads=1, callback=callback.pointers) as context,
    ):
        context.decode([5, 6], [0, 1], [0, 0], [True, True])
        (batch,) = callback.drain()
    assert batch.pos is None and batch.tokens is not None and batch.tokens.tolist() == [5, 6]


def test_a_small_tape_grows(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny(tmp_path / "m.gguf", "deepseek2")
    large, _, _ = converse(library, path, all_stages=True)
    monkeypatch.setattr("traces.capture.routing_callback.PAYLOAD_BYTES", 64)
    monkeypatch.setattr("traces.capture.routing_callback.N_HEADS", 4096)
    for options in WAYS:
        small, _, _ = converse(library, path, **options)
        assert_same(small, large, scores="scores" in options)


def test_without_memory_to_keep_it_stops_at_layers(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny(tmp_path / "m.gguf", "gpt-oss")
    python, _, _ = converse(library, path, all_stages=True)
    # Room for a decode step and not for a prompt, then none at all.
    monkeypatch.setattr("traces.capture.kept_memory.SMALLEST", 2048)
    monkeypatch.setattr("traces.capture.kept_memory.TENSORS_A_BLOCK", 1)
    for blocks in (2, 0):
        monkeypatch.setattr("traces.capture.filter_state.MOST_BLOCKS", blocks)
        found, _, callback = converse(library, path)
        assert len(callback.kept_memory) == blocks
        assert_same(found, python, scores=False)


def test_logits_do_not_change(library: Library, model: Path) -> None:
    _, _, with_capture = decode(library, model)
    _, _, without = decode(library, model, listen=False)
    assert (with_capture == without).all()


def test_group_masks_are_seen_as_minus_infinity(library: Library, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "deepseek2.gguf", "deepseek2")
    seen, _, _ = decode(library, path, scores=True)
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

    def broken(self: RoutingCallback, *arguments: int) -> bool:
        raise RuntimeError("on purpose")

    for function, options in (("_take_routing", {"all_stages": True}), ("_add_memory", {})):
        monkeypatch.setattr(RoutingCallback, function, broken)
        with pytest.raises(RuntimeError, match="on purpose"):
            decode(library, path, **options)


def test_views_follow_what_is_kept_and_a_late_one_is_refused(library: Library) -> None:
    """A graph made by hand: start, argsort, its first columns, and more views of it."""
    callback = RoutingCallback(library, [0])
    host = library.c.ggml_backend_cpu_buffer_type
    host.restype = C.c_void_p
    buffer, base, _, _ = KeptMemory(library.c).add(host(), 4096) or (0, 0, 0, 0)

    def tensor(name: bytes, op: int, view_of: Tensor | None = None, offset: int = 0) -> Tensor:
        t = Tensor(type=26, buffer=buffer, op=op, data=base + offset, name=name)
        t.ne[:], t.nb[:] = (8, 2, 1, 1), (4, 32, 64, 64)
        if view_of is not None:
            t.view_src, t.view_offs = C.addressof(view_of), offset
        return t

    def ask(t: Tensor) -> bool:
        return bool(callback._native(C.addressof(t), True, callback.pointers[1]))

    start, argsort = tensor(b"embd", 1), tensor(b"ffn_moe_argsort-0", 2)
    topk = tensor(b"ffn_moe_topk-0", 3, argsort)
    topk.ne[0] = 3
    other = tensor(b"other", 3, argsort, 12)
    assert not any(map(ask, (start, argsort, topk, other)))
    ((kept, size),) = callback.kept_memory
    assert argsort.data == topk.data == kept and other.data == kept + 12
    assert argsort.buffer == topk.buffer == other.buffer != buffer
    C.memmove(kept, (C.c_int32 * 16)(*range(16)), 64)
    (batch,) = callback.drain()
    assert batch.layers[0].experts.tolist() == [[0, 1, 2], [8, 9, 10]]
    # Again, as a graph that is used again; then a view that comes long after.
    late = tensor(b"late", 3, argsort, 4)
    assert not any(map(ask, (start, argsort, topk, other)))
    assert argsort.data == kept and callback.kept_memory == [(kept, size)]
    for _ in range(300):
        ask(tensor(b"something", 5))
    ask(late)
    assert late.data == kept + 4
    with pytest.raises(InputError, match="--stops layer"):
        callback.drain()
    # A root that was not asked about just before may have been computed: a stop.
    root = tensor(b"ffn_moe_argsort-0", 2)
    orphan = tensor(b"ffn_moe_topk-0", 3, root)
    assert ask(start) is False and ask(orphan) is True


def test_a_cache_of_the_window_computes_the_same(library: Library, tmp_path: Path) -> None:
    """Blocks with a sliding window need no more than the window; elsewhere there is nothing to keep."""
    for arch, window in (("gpt-oss", 128), ("qwen3moe", 0)):
        path = write_tiny(tmp_path / f"{arch}.gguf", arch)
        found = []
        for whole in (True, False):
            with (
                LlamaModel(library, path) as model,
                LlamaContext(
                    model, n_ctx=1024, n_ubatch=64, n_threads=1, swa_full=whole
                ) as context,
            ):
                assert model.window == window
                ids = (model.tokenize(TEXT) * 20)[:800]
                context.decode(ids, range(800), [0] * 800, [i == 799 for i in range(800)])
                found.append(context.logits(799))
        np.testing.assert_allclose(found[1], found[0], atol=0.01)  # sums in half precision


def test_parameters_that_do_not_show_the_window_are_refused(library: Library) -> None:
    p = library.c.llama_context_default_params()
    at = find_cb_eval(p)
    assert p.boolean(find_swa_full(p, at)).value
    p.boolean(find_swa_full(p, at)).value = False  # no longer as by default
    with pytest.raises(InputError, match="sliding window"):
        find_swa_full(p, at)
