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
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(path)
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
