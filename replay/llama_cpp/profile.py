"""A llama.cpp engine profile: constants of a `Fit` as the ``[engine]`` table of a machine's file."""

from __future__ import annotations

import json
from collections.abc import Mapping

from replay.llama_cpp.collect import Collected
from replay.llama_cpp.fit import Fit, mean_error
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.llama_terms import COMPUTE, MEMORY, QUANTITIES, TERMS

BLOCK_KERNELS, EXPERT_KERNELS, CPU_NODES = 18, 6, 4
"""Kernels of a usual block outside its experts and for them, and operations of a block whose experts
the CPU computes: what the coarse constants are made of, for mechanisms that know no graph."""
SCORE_BYTES = 20
"""What a score moves at least without flash attention: written by the product, read and written by the
softmax, read and written again as float16, read by the second product."""
_PREFERRED = ("Q4_K", "MXFP4", "Q8_0", "F16", "Q6_K")


def floors(machine: Hardware) -> dict[str, float]:
    """The least a unit of each term can cost on a machine, by stem: bytes at the speed of its memory,
    operations at twice what its large float products reach (integer products are that fast)."""
    found: dict[str, float] = {}
    for key, term in TERMS.items():
        stem = key
        if term.unit == "byte" and term.with_ == MEMORY and "activations" not in key:
            found[stem] = 1e9 / machine.memory_bytes_per_s
        elif key == "scores":
            found[stem] = SCORE_BYTES * 1e9 / machine.memory_bytes_per_s
        elif key in ("remote", "remote_batch"):
            found[stem] = 1e9 / machine.zero_copy_bytes_per_s
        elif term.unit == "operation" and term.with_ == COMPUTE:
            found[stem] = 0.5e9 / machine.compute_flops
        elif key in ("cpu.row", "cpu.row_experts"):
            found[stem] = 0.5e9 / machine.cpu_bytes_per_s
        elif key == "cpu.activations":
            found[stem] = 1e9 / machine.cpu_bytes_per_s
    return found


def engine_table(
    found: Collected, fit: Fit, machine: Hardware, stamp: str,
    sharpened: Mapping[str, Mapping[str, float]], source: str = "",
) -> list[str]:  # fmt: skip
    """Lines of ``[engine]`` and ``[engine.terms]``. ``source``: of constants that were there before."""
    errors = [v for k, v in fit.errors.items() if not k.startswith("model ")]
    how = source or (
        f"{stamp}: fitted with the other terms to {len(errors)} runs of synthetic models "
        f"(mean error {mean_error(errors):.1%}, worst {max(map(abs, errors), default=0):.0%})"
    )
    out = [
        "", "[engine]",
        f"name = {_text('llama.cpp')}",
        f"summary = {_text('llama.cpp, calibrated; ' + found.build[:120])}",
    ]  # fmt: skip
    for key, (value, why) in coarse(fit.ns, found.gpu).items():
        out += ["", f"[engine.{key}]", f"value = {value}", f"source = {_text(f'{how}; {why}')}"]
    out += [
        "", "[engine.terms]",
        f"source = {_text(how)}",
        f"build = {_text(found.build)}",
        f"flash_attention = {str(found.flash).lower()}",
        f"gpu = {str(found.gpu).lower()}",
        "", "[engine.terms.ns]",
    ]  # fmt: skip
    out += [f"{_text(k)} = {v:.6g}" for k, v in sorted(fit.ns.items())]
    out += ["", "[engine.terms.found_on]"]
    out += [f"{q} = {getattr(machine, q)}" for q in QUANTITIES]
    for model, factors in sharpened.items():
        out += ["", f"[engine.terms.sharpened.{_text(model)}]"]
        out += [f"{k} = {v:.6g}" for k, v in factors.items()]
    return out


def coarse(ns: Mapping[str, float], gpu: bool) -> dict[str, tuple[int, str]]:
    """The constants every engine has, for what does not know the graph."""
    side, unit = ("", "kernel") if gpu else ("cpu.", "node")
    each = ns.get(f"{side}{unit}", 0.0)
    split = ns.get("split", 0.0)
    found = {
        "dense_launch_ns": (each * BLOCK_KERNELS, f"{BLOCK_KERNELS} {unit}s a block"),
        "expert_launch_ns": (each * EXPERT_KERNELS, f"{EXPERT_KERNELS} {unit}s a layer's experts"),
        "decision_ns": (split, "a wait for ids"),
        "cpu_sync_ns": (2 * split + CPU_NODES * ns.get("cpu.node", 0.0), "to the CPU and back"),
    }
    speeds = {
        "expert_bytes_per_s": f"{side}row_experts", "dense_bytes_per_s": f"{side}row",
        "compute_flops": f"{side}experts", "cpu_bytes_per_s": "cpu.row_experts",
    }  # fmt: skip
    for key, stem in speeds.items():
        kind = next((k for k in _PREFERRED if ns.get(f"{stem}.{k}")), None)
        if kind:
            found[key] = (1e9 / ns[f"{stem}.{kind}"], f"{kind} weights")
    return {k: (round(v), why) for k, (v, why) in found.items()}


def _text(x: str) -> str:
    return json.dumps(x, ensure_ascii=False)
