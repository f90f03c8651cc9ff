"""What llama.cpp says it allocates: every buffer by device and kind, for a grid of configurations.

    python memory_cells.py --lib DIR MODEL.gguf ... --out memory.json

A child process loads a model once a placement (``-ngl``, ``-ncmoe``, ``-ot``, mmap) and makes the
contexts one after another; bytes come from `llama_get_memory_breakdown` (exact) and from the log (MiB
with two decimals), used memory from the device. ``--decode`` also runs, at 4,096 positions and all
layers on the GPU, a prompt of a micro-batch and one token, and records what the device lost to pools
and libraries.
"""

from __future__ import annotations

import argparse
import ctypes as C
import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# ---- llama.cpp b11549: as much of its C API as asking for its memory takes (include/llama.h) -------

PTR = C.c_void_p
LOG = C.CFUNCTYPE(None, C.c_int, C.c_char_p, PTR)


class ModelParams(C.Structure):
    """`struct llama_model_params`"""

    _fields_ = (
        ("devices", PTR),
        ("overrides", PTR),
        ("n_gpu_layers", C.c_int32),
        ("split_mode", C.c_int),
        ("load_mode", C.c_int),
        ("lazy_mode", C.c_int),
        ("main_gpu", C.c_int32),
        ("tensor_split", PTR),
        ("progress", PTR),
        ("progress_data", PTR),
        ("kv_overrides", PTR),
        *((name, C.c_bool) for name in (
            "vocab_only", "check_tensors", "use_extra_bufts", "no_host", "no_alloc", "load_mtp",
        )),
    )  # fmt: skip


class ContextParams(C.Structure):
    """`struct llama_context_params`"""

    _fields_ = (
        *((name, C.c_uint32) for name in (
            "n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq", "n_outputs_max",
            "n_outputs_max_per_seq",
        )),
        *((name, C.c_int32) for name in (
            "n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type", "pooling_type",
            "attention_type", "flash_attn_type",
        )),
        *((name, C.c_float) for name in (
            "rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor",
            "yarn_beta_fast", "yarn_beta_slow",
        )),
        ("yarn_orig_ctx", C.c_uint32),
        ("defrag_thold", C.c_float),
        ("cb_eval", PTR),
        ("cb_eval_data", PTR),
        ("type_k", C.c_int),
        ("type_v", C.c_int),
        ("moe_cache_size", C.c_size_t),
        ("abort", PTR),
        ("abort_data", PTR),
        *((name, C.c_bool) for name in (
            "embeddings", "offload_kqv", "no_perf", "op_offload", "swa_full", "kv_unified",
        )),
        ("samplers", PTR),
        ("n_samplers", C.c_size_t),
        ("ctx_other", PTR),
    )  # fmt: skip


class Override(C.Structure):
    """`struct llama_model_tensor_buft_override`"""

    _fields_ = (("pattern", C.c_char_p), ("buft", PTR))


class Batch(C.Structure):
    """`struct llama_batch`"""

    _fields_ = (
        ("n_tokens", C.c_int32), ("token", PTR), ("embd", PTR), ("pos", PTR), ("n_seq_id", PTR),
        ("seq_id", PTR), ("logits", PTR),
    )  # fmt: skip


_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (PTR, PTR)),
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_model_load_from_file": (PTR, (C.c_char_p, ModelParams)),
    "llama_init_from_model": (PTR, (PTR, ContextParams)),
    "llama_model_free": (None, (PTR,)),
    "llama_free": (None, (PTR,)),
    "llama_decode": (C.c_int32, (PTR, Batch)),
    "llama_synchronize": (None, (PTR,)),
    "ggml_backend_buft_name": (C.c_char_p, (PTR,)),
    "ggml_backend_cpu_buffer_type": (PTR, ()),
    "ggml_backend_dev_count": (C.c_size_t, ()),
    "ggml_backend_dev_get": (PTR, (C.c_size_t,)),
    "ggml_backend_dev_name": (C.c_char_p, (PTR,)),
    "ggml_backend_dev_description": (C.c_char_p, (PTR,)),
    "ggml_backend_dev_type": (C.c_int, (PTR,)),
    "ggml_backend_dev_memory": (None, (PTR, PTR, PTR)),
}

_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|output|compute) buffer size = +([\d.]+) MiB")
_GRAPH = re.compile(r"graph.*?nodes = ([\d /]+), splits = ([\d /]+)")
_CACHE = re.compile(r"(\S+) MoE cache size = +([\d.]+) MiB")
_SLOTS = re.compile(r"(\d+) layers, (\S+): +(\d+) slots")


@dataclass
class Llama:
    """A loaded libllama; ``lines`` holds what it logged since the last `take`."""

    path: Path
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        self.c = C.CDLL(str(self.path), mode=os.RTLD_LOCAL | os.RTLD_NOW)
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(self.c, name)
            function.restype, function.argtypes = result, arguments
        self._log = LOG(
            lambda _, text, __: self.lines.append((text or b"").decode("utf-8", "replace"))
        )
        self.c.llama_log_set(C.cast(self._log, PTR), None)
        if any(self.path.parent.glob("libggml-cpu-*")):
            load = self.c.ggml_backend_load_all_from_path
            load.restype, load.argtypes = None, (C.c_char_p,)
            load(str(self.path.parent).encode())
        self.c.llama_backend_init()
        m, c = self.c.llama_model_default_params(), self.c.llama_context_default_params()
        seen = (m.split_mode, m.load_mode, m.lazy_mode, c.n_ctx, c.n_ubatch, c.flash_attn_type)
        seen += (c.type_k, c.type_v, c.moe_cache_size, c.offload_kqv, c.op_offload, c.kv_unified)
        if seen != (1, -1, 1, 512, 512, -1, 1, 1, 0, True, True, False):
            raise SystemExit(f"{self.path}: not the structs of llama.cpp b11549 ({seen})")

    def take(self) -> str:
        text, self.lines = "".join(self.lines), []
        return text

    def devices(self) -> list[dict[str, Any]]:
        """Every device with its free and total memory, bytes; type 0 is the CPU."""
        found = []
        for i in range(self.c.ggml_backend_dev_count()):
            device, free, total = self.c.ggml_backend_dev_get(i), C.c_size_t(), C.c_size_t()
            self.c.ggml_backend_dev_memory(device, C.byref(free), C.byref(total))
            found.append({
                "name": self.c.ggml_backend_dev_name(device).decode(),
                "description": self.c.ggml_backend_dev_description(device).decode(),
                "type": self.c.ggml_backend_dev_type(device),
                "free": free.value, "total": total.value,
            })  # fmt: skip
        return found

    def breakdown(self, context: int) -> dict[str, dict[str, int]]:
        """`llama_get_memory_breakdown`: buffer type -> exact bytes of model, context, compute.

        A C++ function that returns a `std::map`: its red-black tree (libstdc++) is walked here.
        """
        function = self.c._Z26llama_get_memory_breakdownPK13llama_context
        function.restype, function.argtypes = PTR, (PTR, PTR)
        tree = (C.c_size_t * 8)()  # compare, header {colour, parent, left, right}, count
        function(C.addressof(tree), context)
        out: dict[str, dict[str, int]] = {}

        def visit(node: int) -> None:
            if not node:
                return
            words = (C.c_size_t * 8).from_address(node)
            name = self.c.ggml_backend_buft_name(words[4]).decode()
            out[name] = dict(zip(("model", "context", "compute"), words[5:8], strict=True))
            visit(words[2])
            visit(words[3])

        visit(tree[2])
        return out


def logged(text: str) -> dict[str, Any]:
    """Sizes as logged (MiB, two decimals), by buffer and kind; splits and nodes of the graph."""
    sizes: dict[str, dict[str, float]] = {}
    for buffer, kind, mib in _BUFFER.findall(text):
        sizes.setdefault(kind, {})
        sizes[kind][buffer] = round(sizes[kind].get(buffer, 0.0) + float(mib), 2)
    out: dict[str, Any] = {"MiB": sizes}
    if found := _GRAPH.search(text):
        out |= {"nodes": found[1].strip(), "splits": found[2].strip()}
    if found := _CACHE.search(text):
        out["moe_cache"] = {"buffer": found[1], "MiB": float(found[2])}
        out["moe_cache"]["groups"] = [(int(n), t, int(s)) for n, t, s in _SLOTS.findall(text)]
    out["flash_attention"] = "Flash Attention enabled" in text
    out["notes"] = [
        line.strip() for line in text.splitlines()
        if "not supported, set to disabled" in line or "does not match expectation" in line
    ]  # fmt: skip
    return out


# ---- the grid ------------------------------------------------------------------------------------

TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q5_0": 6, "q8_0": 8, "bf16": 30}
FLASH = {"auto": -1, "off": 0, "on": 1}
EXPERTS = r"blk\.%d\.ffn_(up|down|gate|gate_up)_(ch|)exps"


def placements(n_layers: int) -> list[dict[str, Any]]:
    """How the weights are spread: one load of the model each."""
    half = n_layers // 2
    return [
        {"ngl": 99},
        {"ngl": 99, "ncmoe": half},
        {"ngl": 99, "ncmoe": n_layers},
        {"ngl": 99, "ncmoe": n_layers, "no_mmap": True},
        {"ngl": half},
        {"ngl": 99, "ot": [[r"ffn_up_exps", "CPU"]]},
        {"ngl": 0},
    ]


def contexts(place: dict[str, Any]) -> list[dict[str, Any]]:
    """What is tried with each placement."""
    out = [
        {"n_ctx": ctx, "n_ubatch": ub, "flash": fa}
        for ctx, ub, fa in itertools.product((512, 4096, 32768), (128, 512, 2048), ("auto", "off"))
        if not (fa == "off" and ctx == 32768 and ub == 2048)
    ]
    base = {"n_ctx": 4096, "n_ubatch": 512}
    out += [base | {"flash": "on", "type_k": t, "type_v": t} for t in ("q8_0", "q4_0")]
    out += [base | {"flash": "on"}, base | {"n_seq": 4}, base | {"n_seq": 4, "flash": "off"}]
    out += [base | {"n_seq": 4, "kv_unified": True}, base | {"op_offload": False}]
    out += [base | {"n_outputs_max": 4}]
    if place.get("ncmoe") or place.get("ot"):
        out += [base | {"moe_cache_mib": mib} for mib in (300, 1200)]
    return out


def run_child(specs: list[dict[str, Any]]) -> None:
    """Load a model with a placement, one after another; print a JSON line a load and a context."""
    llama = Llama(Path(specs[0]["lib"]))
    gpu = None
    if specs[0].get("device"):
        sys.path.insert(0, str(Path(__file__).resolve().parent))
        from virtual_gpu import VirtualGpu

        gpu = VirtualGpu(llama, **specs[0]["device"])
    for spec in specs:
        one_model(llama, spec)
    del gpu


def one_model(llama: Llama, spec: dict[str, Any]) -> None:
    place = spec["place"]
    before = llama.devices()
    p = llama.c.llama_model_default_params()
    p.n_gpu_layers = place["ngl"]
    p.load_mode = 0 if place.get("no_mmap") else 1
    rules = [(EXPERTS % i, "CPU") for i in range(place.get("ncmoe", 0))] + place.get("ot", [])
    if rules:
        host = llama.c.ggml_backend_cpu_buffer_type()
        keep = (Override * (len(rules) + 1))(*[Override(r.encode(), host) for r, _ in rules])
        p.overrides = C.addressof(keep)
    model = llama.c.llama_model_load_from_file(os.fsencode(spec["model"]), p)
    text = llama.take()
    if not model:
        emit({"place": place, "error": text.strip().splitlines()[-3:]})
        return
    loaded = logged(text)["MiB"]
    emit({"place": place, "loaded": loaded, "before": before, "after_load": llama.devices()})
    for config in spec["contexts"]:
        decode = spec.get("decode", False) and place["ngl"] == 99 and config["n_ctx"] == 4096
        one_context(llama, model, config, decode)
    llama.c.llama_model_free(model)


def one_context(llama: Any, model: int, config: dict[str, Any], decode: bool) -> None:

    llama.take()
    p = llama.c.llama_context_default_params()
    p.n_ctx, p.n_ubatch = config["n_ctx"], config["n_ubatch"]
    p.n_batch = max(2048, p.n_ubatch)
    p.n_seq_max = config.get("n_seq", 1)
    p.n_outputs_max = config.get("n_outputs_max", 0)
    p.flash_attn_type = FLASH[config.get("flash", "auto")]
    p.type_k, p.type_v = TYPES[config.get("type_k", "f16")], TYPES[config.get("type_v", "f16")]
    p.op_offload = config.get("op_offload", True)
    p.kv_unified = config.get("kv_unified", False)
    p.swa_full = config.get("swa_full", False)
    p.moe_cache_size = config.get("moe_cache_mib", 0) << 20
    context = llama.c.llama_init_from_model(model, p)
    text = llama.take()
    if not context:
        emit({"config": config, "error": text.strip().splitlines()[-3:]})
        return
    out = {"config": config, "bytes": llama.breakdown(context), "logged": logged(text)}
    out["devices"] = llama.devices()
    if decode:
        n = min(p.n_ubatch, p.n_ctx)
        codes = [run(llama, context, n, 0)]
        out["devices_after_prompt"] = llama.devices()
        if n < p.n_ctx:
            codes.append(run(llama, context, 1, n))
        out |= {"decode": codes, "devices_after_token": llama.devices()}
    llama.c.llama_free(context)
    out["freed"] = logged(llama.take())["notes"]
    emit(out)


def run(llama: Any, context: int, n: int, start: int) -> int:
    """One batch of ``n`` tokens of sequence 0 from position ``start``."""

    token, pos = (C.c_int32 * n)(*([1] * n)), (C.c_int32 * n)(*range(start, start + n))
    ones, zero = (C.c_int32 * n)(*([1] * n)), C.c_int32(0)
    seqs = (C.c_void_p * n)(*([C.addressof(zero)] * n))
    wanted = (C.c_int8 * n)(*([0] * (n - 1)), 1)
    at = C.addressof
    code = llama.c.llama_decode(
        context, Batch(n, at(token), None, at(pos), at(ones), at(seqs), at(wanted))
    )
    llama.c.llama_synchronize(context)
    return int(code)


def emit(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--lib", help="libllama.so or its folder; default: the capture extra's")
    parser.add_argument("--out", type=Path, help="JSON file; default: standard output")
    parser.add_argument("--decode", action="store_true", help="also run a prompt and a token")
    parser.add_argument("--limit", type=int, default=0, help="contexts a placement (0: all)")
    arguments = parser.parse_args()
    for folder in (Path.cwd(), *Path(__file__).resolve().parents[1:3]):
        sys.path.insert(0, str(folder))
    from traces.capture.find_library import find_library, preload_environment
    from traces.models.gguf_header import read_header

    library = find_library(arguments.lib)
    environment = preload_environment(library) or dict(os.environ)
    results = []
    for model in arguments.models:
        meta = read_header(model).metadata
        n_layers = int(meta[f"{meta['general.architecture']}.block_count"])
        for place in placements(n_layers):
            cells = contexts(place)[: arguments.limit or None]
            spec = {"lib": str(library.path), "model": str(model), "place": place}
            spec |= {"contexts": cells, "decode": arguments.decode}
            child = subprocess.run(
                [sys.executable, __file__, "--child", json.dumps([spec])],
                env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            lines = [json.loads(x) for x in child.stdout.splitlines() if x.startswith("{")]
            found = {"model": model.name, "place": place, "records": lines}
            if child.returncode and not lines:
                raise SystemExit(f"{model} {place}: {child.stderr[-1500:]}")
            if child.returncode:
                found |= {"returncode": child.returncode, "stderr": child.stderr[-800:]}
            results.append(found)
            done = sum("bytes" in x for x in lines)
            print(f"{model.name} {place}: {done} of {len(cells)} contexts", file=sys.stderr)
    report = {"library": str(library.path.name), "results": results}
    text = json.dumps(report, indent=None)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_child(json.loads(sys.argv[2]))
    else:
        main()
