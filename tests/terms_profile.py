"""An engine profile with all of llama.cpp's terms, for tests: plausible constants, measured nowhere."""

from __future__ import annotations

from pathlib import Path

from uvmsim.machine.llama_terms import TERMS

TB, GB = 1e12, 1e9
FIXED = {
    "step": 40e3, "batch": 300e3, "embed": 0.02, "mask": 0.05, "kernel": 2e3, "batch_kernel": 3e3,
    "launch": 3e3, "attend": 1e9 / (1.5 * TB), "tiles": 20.0, "sorted": 1e9 / 300e12,
    "sorted_call": 15e3, "activations": 1e9 / (1.5 * TB), "scores": 1e9 / (4 * TB), "split": 30e3,
    "flash": 1e9 / 300e12, "batch_split": 60e3, "copy": 8e3, "upload": 9e3, "pinned": 1e9 / (50 * GB),
    "pageable": 1e9 / (12 * GB), "remote_kernel": 4e3, "managed_kernel": 1e3, "cpu.step": 30e3,
    "cpu.batch": 200e3, "cpu.node": 4e3, "cpu.attend": 1e9 / (40 * GB), "cpu.batch_node": 10e3,
    "row_depth": 0.2, "depth": 1.0, "sort": 5.0, "output": 0.5, "row_tile": 4e3, "row_tiles": 0.4,
    "argsort": 3e3, "mask_window": 0.1, "flash_call": 12e3, "tile_output": 2e-3, "fixup": 9e3,
    "cpu.activations": 1e9 / (30 * GB), "cpu.scores": 0.5,
}  # fmt: skip
TYPED = {
    "row": 1e9 / (2 * TB), "row_experts": 1e9 / (1.6 * TB), "dense": 1e9 / 400e12,
    "dense_bytes": 1e9 / (2 * TB), "experts": 1e9 / 200e12, "expert_bytes": 1e9 / (2 * TB),
    "remote": 1e9 / (45 * GB), "remote_batch": 1e9 / (40 * GB), "cpu.row": 1e9 / (50 * GB),
    "cpu.row_experts": 1e9 / (45 * GB), "cpu.dense": 1e9 / 800e9, "cpu.experts": 1e9 / 600e9,
}  # fmt: skip
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_K", "Q6_K", "MXFP4")
assert {*FIXED, *TYPED} == set(TERMS)


def constants() -> dict[str, float]:
    """Nanoseconds a unit, by term."""
    return FIXED | {f"{k}.{t}": ns for k, ns in TYPED.items() for t in TYPES}


def write_engine(path: Path, *, gpu: bool = True, machine: str = "rtx4090") -> Path:
    """A file for ``program``."""
    coarse = {
        "dense_launch_ns": 30_000, "expert_launch_ns": 10_000, "decision_ns": 30_000,
        "cpu_sync_ns": 60_000,
    }  # fmt: skip
    lines = ['name = "terms"', 'summary = "a test\'s"', f'machine = "{machine}"']
    for key, value in coarse.items():
        lines += [f"[{key}]", f"value = {value}", 'source = "a test"']
    lines += ["[terms]", 'source = "a test"', f"gpu = {str(gpu).lower()}", "[terms.ns]"]
    wanted = {k: v for k, v in constants().items() if gpu or k.startswith("cpu.") or k == "embed"}
    lines += [f'"{k}" = {ns}' for k, ns in wanted.items()]
    path.write_text("\n".join(lines))
    return path
