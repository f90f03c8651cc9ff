"""Capture from transformers, on small random models of the families that matter."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from traces.capture.options import CaptureOptions, Prompt
from traces.capture.transformers import capture
from traces.errors import InputError
from traces.routing import open_routing
from traces.routing.check import check

COMMON = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "num_experts_per_tok": 2,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "olmoe": ("OlmoeConfig", {"num_experts": 8}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 8}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {"num_experts": 8, "moe_intermediate_size": 16, "head_dim": 8, "norm_topk_prob": True},
    ),
    "gpt_oss": (
        "GptOssConfig",
        {"num_local_experts": 8, "head_dim": 8, "layer_types": ["full_attention"] * 3},
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            "n_routed_experts": 8, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
            "n_group": 4, "topk_group": 2, "kv_lora_rank": 16, "q_lora_rank": 16,
            "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
            "num_key_value_heads": 4,
        },
    ),
}  # fmt: skip
PROMPT = Prompt(tokens=tuple(range(3, 27)))


@pytest.fixture(scope="module", params=MODELS)
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch", reason="the transformers extra is not installed")
    hf = pytest.importorskip("transformers", reason="the transformers extra is not installed")
    name, settings = MODELS[request.param]
    torch.manual_seed(0)
    config = getattr(hf, name)(**(COMMON | settings))
    path = tmp_path_factory.mktemp("hf") / request.param
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if "layernorm" in key:
                value.uniform_(0.5, 1.5)
            elif key.endswith(("router.bias", "e_score_correction_bias")):
                value.normal_(std=0.3)
    model.save_pretrained(path)
    return path


def test_prefill_rows_equal_the_routers_own(model_dir: Path, tmp_path: Path) -> None:
    """One forward pass outside the capture, hooked afresh, against the trace of the same tokens."""
    import torch
    import transformers as hf

    options = CaptureOptions(n_predict=0, scores=True, tokens=True)
    result = capture(model_dir, [PROMPT], tmp_path / "t.arrow", options)
    assert (result.prompt_tokens, result.generated_tokens, result.steps) == (24, 0, 1)
    d = open_routing(tmp_path / "t.arrow").dense

    model = hf.AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto").eval()
    routers = [m for m in model.modules() if "Router" in type(m).__name__]
    seen: list[Any] = []
    for m in routers:
        m.register_forward_hook(lambda m, i, o: seen.append(o))
    with torch.no_grad():
        model(torch.tensor([PROMPT.tokens]))
    assert d.ids.shape == (24, len(routers), 2)
    for layer, (_, weights, ids) in enumerate(seen):
        for t in range(24):
            theirs = dict(zip(ids[t].tolist(), weights[t].tolist(), strict=True))
            ours = dict(zip(d.ids[t, layer].tolist(), d.weights[t, layer].tolist(), strict=True))
            assert ours == pytest.approx(theirs)
    assert (np.diff(d.weights, axis=2) <= 0).all()


def test_generation_and_description(model_dir: Path, tmp_path: Path) -> None:
    options = CaptureOptions(n_predict=5, n_batch=10, ignore_eos=True, temperature=0)
    capture(model_dir, [PROMPT, PROMPT], tmp_path / "t.arrow", options)
    trace = open_routing(tmp_path / "t.arrow")
    d = trace.dense
    assert trace.complete
    assert d.pos.tolist() == [*range(29)] * 2
    assert d.seq.tolist() == [0] * 29 + [1] * 29
    assert np.unique(d.step, return_counts=True)[1].tolist() == [10, 10, 4, 1, 1, 1, 1, 1] * 2
    assert (d.ids[:29] == d.ids[29:]).all()
    info = trace.meta.model
    assert (info.n_layers, info.n_experts, info.top_k) == (3, 8, 2)
    assert info.moe_layers == ((1, 2) if model_dir.name == "deepseek_v3" else (0, 1, 2))
    ff = 16 if model_dir.name in ("qwen3_moe", "deepseek_v3") else 48
    biases = 3 * ff + 32 - ff if model_dir.name == "gpt_oss" else 0
    assert set(info.expert_bytes) == {4 * (3 * 32 * ff + biases)}


def test_guesses_equal_routers_written_by_hand(model_dir: Path, tmp_path: Path) -> None:
    """Residual streams from one pass hooked afresh; norm and router in NumPy, from the weights."""
    import torch
    import transformers as hf

    options = CaptureOptions(n_predict=0, scores_next=True, scores_pre=True)
    result = capture(model_dir, [PROMPT], tmp_path / "t.arrow", options)
    assert result.notes == []
    t = open_routing(tmp_path / "t.arrow")
    assert [f for f in check(t) if f.severity == "error"] == []

    model = hf.AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto").eval()
    before, after = {}, {}
    for i, block in enumerate(model.model.layers):
        block.input_layernorm.register_forward_pre_hook(
            lambda m, x, i=i: before.update({i: x[0][0].double().numpy().copy()})
        )
        block.post_attention_layernorm.register_forward_pre_hook(
            lambda m, x, i=i: after.update({i: x[0][0].double().numpy().copy()})
        )
    with torch.no_grad():
        model(torch.tensor([PROMPT.tokens]))
    w = {name: x.double().numpy() for name, x in model.state_dict().items()}

    def by_hand(layer: int, x: np.ndarray) -> np.ndarray:
        p = f"model.layers.{layer}."
        epsilon = model.config.rms_norm_eps
        normed = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + epsilon)
        normed = normed * w[p + "post_attention_layernorm.weight"]
        gate = p + ("mlp.router" if model_dir.name == "gpt_oss" else "mlp.gate")
        logits = normed @ w[gate + ".weight"].T
        if model_dir.name == "gpt_oss":
            return logits + w[gate + ".bias"]
        if model_dir.name != "deepseek_v3":
            return logits
        scores = 1 / (1 + np.exp(-logits)) + w[gate + ".e_score_correction_bias"]
        for row in scores:
            groups = row.reshape(4, 2)
            for g in np.argsort(groups.sum(axis=1))[:2]:
                groups[g] = -np.inf
        return scores

    compared = 0
    for layer in t.layers:
        rows = t.layer == layer
        for name, about, x in (
            ("next1", layer + 1, after[layer]),
            ("next2", layer + 2, after[layer]),
            ("pre", layer, before[layer]),
        ):
            guess = t.predictions[name]
            if about not in t.layers:
                assert (guess.ids[rows] == -1).all()
                continue
            expected = by_hand(about, x)
            order = np.argsort(-expected, axis=1, kind="stable")[:, :4]
            found = np.take_along_axis(expected, order, axis=1)
            finite = np.isfinite(found)
            assert (guess.ids[rows] == order)[finite].all()
            close = np.abs(guess.scores[rows][finite] - found[finite])
            assert (close <= 1e-4 + np.abs(found[finite]) * 2.0**-11).all()
            assert (np.isneginf(guess.scores[rows]) == ~finite).all()
            compared += int(rows.sum())
    assert compared == 24 * (3 if model_dir.name == "deepseek_v3" else 6)


def test_guesses_of_single_tokens_and_only_those_asked_for(model_dir: Path, tmp_path: Path) -> None:
    kinds = {}
    for more in ({}, {"scores_next": True}, {"scores_pre": True}):
        options = CaptureOptions(n_predict=4, n_batch=10, ignore_eos=True, temperature=0, **more)
        capture(model_dir, [PROMPT], tmp_path / "t.arrow", options)
        kinds[(*more,)] = open_routing(tmp_path / "t.arrow")
    plain, ahead, pre = kinds.values()
    assert [list(t.predictions) for t in kinds.values()] == [[], ["next1", "next2"], ["pre"]]
    assert (plain.experts == ahead.experts).all() and (plain.experts == pre.experts).all()
    assert (pre.predictions["pre"].ids >= 0).all()
    last = ahead.layer == ahead.layers[-1]
    assert ((ahead.predictions["next1"].ids >= 0).all(axis=1) == ~last).all()


def test_a_router_of_another_kind_is_missing_and_said(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from traces.capture.hf_gate_scores import HfGateScores

    monkeypatch.setattr(HfGateScores, "_scores", lambda self, layer, x: np.tile(
        np.arange(8.0, dtype=np.float32), (x.numel() // x.shape[-1], 1)))  # fmt: skip
    options = CaptureOptions(n_predict=0, scores_pre=True)
    result = capture(model_dir, [PROMPT], tmp_path / "t.arrow", options)
    t = open_routing(tmp_path / "t.arrow")
    assert len(result.notes) == 1
    assert "chooses by something else than its scores" in result.notes[0]
    said = {int(x) for x in result.notes[0].split(":")[0].split("layer ")[1].split(", ")}
    missing = (t.predictions["pre"].ids < 0).all(axis=1)
    assert set(t.layer[missing].tolist()) == said


def test_same_seed_same_trace(model_dir: Path, tmp_path: Path) -> None:
    hashes = []
    for seed in (1, 1, 2):
        options = CaptureOptions(n_predict=12, seed=seed, ignore_eos=True, temperature=2.0)
        capture(model_dir, [PROMPT], tmp_path / "t.arrow", options)
        hashes.append(open_routing(tmp_path / "t.arrow").sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_missing_packages_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = builtins.__import__

    def without_torch(name: str, *rest: Any, **more: Any) -> Any:
        if name == "torch":
            raise ImportError("no", name=name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(InputError, match=r"pip install 'uvmsim\[transformers\]'"):
        capture(tmp_path, [PROMPT], tmp_path / "t.arrow")


def test_wrong_folders_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the transformers extra is not installed")
    pytest.importorskip("transformers", reason="the transformers extra is not installed")
    with pytest.raises(InputError, match=r"config\.json"):
        capture(tmp_path, [PROMPT], tmp_path / "t.arrow")
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(InputError, match="cannot load it") as e:
        capture(tmp_path, [PROMPT], tmp_path / "t.arrow")
    assert "\n" not in str(e.value)
