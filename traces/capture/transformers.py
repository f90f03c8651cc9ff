"""Record the expert routing of a Hugging Face model, through forward hooks on its routers.

Every Mixture-of-Experts model of transformers 5 has one module a layer whose class name holds
"Router" and which returns (scores, weights, ids). The ids are taken from there and never worked out
again from the scores: DeepSeek-V3 chooses within expert groups, with a bias.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from traces.capture.hf_gate_scores import HfGateScores
from traces.capture.options import CaptureOptions, CaptureResult, Prompt, check_options
from traces.capture.provenance import machine, prompt_source, tool
from traces.capture.recording import Recording
from traces.capture.sampling import Sampler
from traces.errors import InputError
from traces.files.schema import DECODE, PREDICTORS, PREFILL, RoutingMeta
from traces.models.info import ModelInfo
from traces.routing import RoutingWriter

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_ROUTED = re.compile(r"\.experts\.")
_ARCHITECTURES = {
    "gpt_oss": "gpt-oss",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "mixtral": "llama",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "glm4_moe": "glm4moe",
}
"""``model_type`` -> llama.cpp's name, where they differ."""


def capture(
    model_dir: str | Path,
    prompts: Sequence[Prompt],
    out: str | Path,
    options: CaptureOptions | None = None,
    *,
    device: str = "cpu",
    command: str = "",
    progress: Callable[[str, int, int], None] | None = None,
) -> CaptureResult:
    """Run the model in ``model_dir`` on each prompt in turn and write the routing trace ``out``.

    A step is one forward pass: ``n_batch`` prompt tokens, then one token at a time. Ids are written
    strongest first, by weight. ``scores`` are what the router module returns first (logits). The
    options that only llama.cpp has are ignored. A run that is broken off leaves ``out`` +
    ``.partial``, readable.

    Raises `InputError` where torch or transformers are missing, or the model cannot be used.
    """
    options, out, folder = options or CaptureOptions(), Path(out), Path(model_dir)
    check_options(options, prompts, out)
    torch, hf = _import()
    model = _load(torch, hf, folder, device)
    if options.threads:
        torch.set_num_threads(options.threads)
    ids = [_tokens_of(p, hf, folder, model.config.vocab_size) for p in prompts]
    hooks = _RouterHooks(model, folder)
    asked = options.predictors
    gates = HfGateScores(torch, hooks.blocks, hooks.routers, asked) if asked else None
    try:
        info = hooks.describe(torch, model, folder)
        meta = RoutingMeta(
            model=info,
            ids_order="ranked",
            tool=f"{tool()}, capture transformers",
            command=command,
            prompt_source=prompt_source(prompts),
            machine=machine(torch=torch.__version__, transformers=hf.__version__, device=device),
            extra={"options": {n: getattr(options, n) for n in options.__dataclass_fields__}}
            | ({"predictors": {name: PREDICTORS[name] for name in asked}} if asked else {}),
        )
        result = CaptureResult(out, len(prompts))
        writer = RoutingWriter(
            out,
            meta,
            weights=True,
            scores=options.scores,
            tokens=options.tokens,
            predictors=asked,
        )
        with Recording(writer) as recording:
            run = _Run(torch, model, hooks, gates, recording, options, result, progress)
            for seq, tokens in enumerate(ids):
                run.sequence(seq, tokens)
        result.notes += gates.notes if gates else []
    finally:
        hooks.remove()
        if gates:
            gates.remove()
    result.file_bytes = out.stat().st_size
    return result


class _Run:
    """Sequences through the model, one forward pass at a time."""

    def __init__(
        self,
        torch: Any,
        model: Any,
        hooks: _RouterHooks,
        gates: HfGateScores | None,
        recording: Recording,
        options: CaptureOptions,
        result: CaptureResult,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        self._torch, self._model, self._hooks, self._gates = torch, model, hooks, gates
        self._recording, self._options, self._result = recording, options, result
        self._progress = progress or (lambda phase, done, total: None)
        ends = _end_tokens(model)
        self._banned = np.array(sorted(ends), np.int64) if options.ignore_eos and ends else None
        self._ends = set() if options.ignore_eos else ends

    def sequence(self, seq: int, tokens: list[int]) -> None:
        """Prefill and generate one sequence."""
        o, result = self._options, self._result
        sampler = Sampler(seed=o.seed, seq=seq, temperature=o.temperature, top_k=o.top_k)
        start = time.monotonic_ns()
        logits, cache = np.empty(0, np.float32), None
        for at in range(0, len(tokens), o.n_batch):
            part = tokens[at : at + o.n_batch]
            logits, cache = self._forward(seq, at, part, PREFILL, cache)
            result.prompt_tokens += len(part)
            self._progress(f"prefill {seq}", at + len(part), len(tokens))
        prefilled = time.monotonic_ns()
        result.prefill_ns += prefilled - start
        for i in range(o.n_predict):
            token = sampler.next(logits, self._banned)
            if token in self._ends:
                break
            logits, cache = self._forward(seq, len(tokens) + i, [token], DECODE, cache)
            result.generated_tokens += 1
            self._progress(f"decode {seq}", i + 1, o.n_predict)
        result.decode_ns += time.monotonic_ns() - prefilled

    def _forward(
        self, seq: int, at: int, tokens: list[int], phase: int, cache: Any
    ) -> tuple[np.ndarray, Any]:
        """One step: run and write it. Returns the last token's logits, and the cache."""
        torch, n = self._torch, len(tokens)
        with torch.inference_mode():
            given = torch.tensor([tokens], device=self._model.device)
            out = self._model(given, past_key_values=cache, use_cache=True, logits_to_keep=1)
        guesses = self._gates.drain() if self._gates else {}
        for layer, (scores, weights, experts) in self._hooks.drain():
            if len(experts) != n:
                raise InputError(
                    f"layer {layer}'s router returned {len(experts)} rows for {n} tokens; this "
                    "model cannot be captured"
                )
            self._recording.append(
                seq=seq,
                pos=np.arange(at, at + n),
                step=self._result.steps,
                phase=phase,
                layer=layer,
                experts=experts,
                weights=weights,
                scores=scores if self._options.scores else None,
                token=np.array(tokens) if self._options.tokens else None,
                **{
                    f"{name}_{kind}": column
                    for (name, row), pair in guesses.items()
                    for kind, column in zip(("ids", "scores"), pair, strict=True)
                    if row == layer
                },
            )
            self._result.rows += n
        self._result.steps += 1
        return out.logits[0, -1].float().cpu().numpy(), out.past_key_values


class _RouterHooks:
    """Forward hooks on the routers of a model; keeps what they return until drained."""

    def __init__(self, model: Any, folder: Path) -> None:
        self._seen: list[tuple[int, Any]] = []
        self._handles: list[Any] = []
        self.layers: list[int] = []
        self.routers: dict[int, Any] = {}
        self.blocks: dict[int, Any] = {}
        """Decoder layers, by number, that have a router."""
        for name, module in model.named_modules():
            match = _LAYER.search(name)
            if match and "Router" in type(module).__name__:
                layer = int(match[1])
                self.layers.append(layer)
                self.routers[layer] = module
                self.blocks[layer] = model.get_submodule(name[: match.end() - 1])
                self._handles.append(module.register_forward_hook(self._hook(layer)))
        if not self.layers:
            raise InputError(
                f"{folder}: {type(model).__name__} has no router modules: not a "
                "Mixture-of-Experts model that transformers 5 or newer knows"
            )

    def _hook(self, layer: int) -> Callable[[Any, Any, Any], None]:
        def keep(module: Any, given: Any, returned: Any) -> None:
            self._seen.append((layer, returned))

        return keep

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def drain(self) -> list[tuple[int, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        """(layer, (scores [n, n_experts], weights [n, k], ids [n, k])) in the order they ran."""
        seen, self._seen = self._seen, []
        return [(layer, _ranked(*(_numpy(x) for x in returned))) for layer, returned in seen]

    def describe(self, torch: Any, model: Any, folder: Path) -> ModelInfo:
        """Shape and bytes of the loaded model; runs one token through it."""
        with torch.inference_mode():
            model(torch.zeros((1, 1), dtype=torch.long, device=model.device))
        scores, _, experts = self.drain()[0][1]
        n_experts, config = scores.shape[1], model.config
        n_layers = int(config.num_hidden_layers)
        routed, dense = [0] * n_layers, [0] * n_layers
        output = embedding = 0
        tied, dtype = True, None
        for name, parameter in model.named_parameters():
            n_bytes = parameter.numel() * parameter.element_size()
            match = _LAYER.search(name)
            if match and _ROUTED.search(name):
                routed[int(match[1])] += n_bytes
                dtype = parameter.dtype
            elif match:
                dense[int(match[1])] += n_bytes
            elif "embed_tokens" in name:
                embedding += n_bytes
            else:
                output += n_bytes
                tied = tied and "lm_head" not in name
        if tied:
            output, embedding = output + embedding, 0
        kind = str(config.model_type)
        return ModelInfo(
            name=str((getattr(config, "_name_or_path", "") and folder.resolve().name) or kind),
            n_layers=n_layers,
            moe_layers=tuple(self.layers),
            n_experts=n_experts,
            top_k=experts.shape[1],
            architecture=_ARCHITECTURES.get(kind, kind),
            quantisation=str(dtype).removeprefix("torch."),
            expert_bytes=tuple(routed[il] // n_experts for il in self.layers),
            dense_bytes=tuple(dense),
            output_bytes=output,
            embedding_bytes=embedding,
            n_embd=int(config.hidden_size),
            n_ff_expert=getattr(config, "moe_intermediate_size", None) or config.intermediate_size,
            n_vocab=int(config.vocab_size),
            kv_bytes_per_token=_kv_bytes(config),
            source=f"Hugging Face model {folder.resolve().name}",
        )


def _ranked(
    scores: np.ndarray, weights: np.ndarray, ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same with every row's ids in the order of falling weight."""
    if weights.shape[1] != ids.shape[1]:  # some routers spread the weights over all experts
        weights = np.take_along_axis(weights, ids, axis=1)
    order = np.argsort(-weights, axis=1, kind="stable")
    return scores, np.take_along_axis(weights, order, 1), np.take_along_axis(ids, order, 1)


def _numpy(x: Any) -> np.ndarray:
    x = x.detach()
    x = x.float() if x.is_floating_point() else x
    return x.reshape(-1, x.shape[-1]).cpu().numpy()


def _kv_bytes(config: Any) -> int | None:
    """f16 bytes of one token in the KV cache, all layers together."""
    if getattr(config, "kv_lora_rank", None):
        return 2 * (config.kv_lora_rank + config.qk_rope_head_dim) * config.num_hidden_layers
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * 2 * heads * width * config.num_hidden_layers


def _import() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as e:
        raise InputError(
            f"{e.name or 'torch'} is not installed: pip install 'uvmsim[transformers]'"
        ) from None
    return torch, transformers


def _load(torch: Any, hf: Any, folder: Path, device: str) -> Any:
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no config.json there; give a Hugging Face model directory")
    hf.utils.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    try:
        # Only weights that cannot carry code, and no code from the model's folder.
        model = hf.AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as e:
        why = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise InputError(f"{folder}: transformers cannot load it: {why}") from None
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as e:  # torch asserts that it was built for the device
        raise InputError(f"--device {device}: {str(e).splitlines()[0]}") from None


def _tokens_of(prompt: Prompt, hf: Any, folder: Path, n_vocab: int) -> list[int]:
    ids = list(prompt.tokens)
    if not ids:
        try:
            tokenizer = hf.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as e:
            why = str(e).strip().splitlines()[0]
            raise InputError(f"{folder}: its tokenizer cannot be loaded: {why}") from None
        ids = list(tokenizer(prompt.text)["input_ids"])
    if not ids:
        raise InputError(
            f"prompt {prompt.source}: no tokens (an empty prompt, or {folder} has no tokenizer); "
            "give it some text"
        )
    wrong = [t for t in ids if not 0 <= t < n_vocab]
    if wrong:
        raise InputError(
            f"prompt {prompt.source}: token {wrong[0]} is outside the vocabulary of {n_vocab}"
        )
    return ids


def _end_tokens(model: Any) -> set[int]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    return set(ends) if isinstance(ends, list) else {ends} if ends is not None else set()
