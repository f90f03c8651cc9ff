"""What to record, how, and what came of it: shared by the ways to capture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from traces.errors import InputError

STOPS = ("graph", "layer")


@dataclass(frozen=True)
class Prompt:
    """One sequence's start: text, or token ids; ``source`` says where it comes from."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    source: str = "text"


@dataclass(frozen=True)
class CaptureOptions:
    """How to run the model. Each prompt is one sequence; all of them run side by side."""

    n_predict: int = 128
    n_ctx: int | None = None
    """Context of all sequences together; None: as much as the prompts and ``n_predict`` need."""
    n_batch: int = 2048
    n_ubatch: int = 512
    threads: int | None = None
    n_gpu_layers: int = 0
    n_cpu_moe: int = 0
    """First blocks whose experts stay in host memory."""
    moe_cache_mib: int = 0
    """Size of llama.cpp's own expert cache on the GPU, for experts in host memory."""
    no_mmap: bool = False
    """Read the model into memory instead of mapping the file."""
    seed: int = 0
    temperature: float = 0.8
    """0 is greedy."""
    top_k: int = 40
    ignore_eos: bool = False
    all_outputs: bool = False
    """Ask for the logits of every prompt token: keeps the last layer's rows, costs the LM head."""
    scores: bool = False
    tokens: bool = False
    times: bool = False
    """Store when each step ran, and how long."""
    unified_memory: bool = False
    """A CUDA build keeps the model in managed memory, which the driver pages."""
    vram_left_mib: int = 0
    """Take all GPU memory but this before the run, as if the card were smaller; 0: take none."""
    warm_up: bool = False
    """Run the first prompt, and a token, before what is recorded, and forget them: kernels are loaded
    then, and caches filled."""
    cold: bool = False
    """Send all managed memory to the host before the first step, after a warm-up: every page comes by
    a fault then, and nothing else is slow."""
    stops: str = "graph"
    """``graph``: what was routed is read when the graph has run; ``layer``: at every layer."""
    scores_next: bool = False
    """Record what the routers of the next two MoE layers would choose already."""
    scores_pre: bool = False
    """Record what a layer's router would choose before its attention has run."""

    @property
    def predictors(self) -> tuple[str, ...]:
        """Those of `traces.files.schema.PREDICTORS` that are asked for."""
        ahead = ("next1", "next2") if self.scores_next else ()
        return (*ahead, "pre") if self.scores_pre else ahead


@dataclass
class CaptureResult:
    """What was recorded. Times are wall-clock, capture and writing included."""

    out: Path
    sequences: int
    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    rows: int = 0
    missing_rows: int = 0
    prefill_ns: int = 0
    decode_ns: int = 0
    file_bytes: int = 0
    notes: list[str] = field(default_factory=list)
    moe_cache: dict[str, Any] | None = None
    """llama.cpp's own counters of its expert cache, as in `MoeCacheCounts.to_json`."""
    faults: dict[str, Any] | None = None
    """The fault trace of the same run: ``out`` (a path; None where there was no event), ``rows``,
    ``dropped``."""

    def to_json(self) -> dict[str, Any]:
        """What is the same in every run; the times are left out."""
        names = "sequences steps prompt_tokens generated_tokens rows missing_rows file_bytes notes"
        found = {"out": self.out.name} | {n: getattr(self, n) for n in names.split()}
        found |= {"moe_cache": self.moe_cache} if self.moe_cache else {}
        if self.faults:
            out = self.faults["out"]
            found["faults"] = self.faults | {"out": out and out.name}
        return found


def check_options(options: CaptureOptions, prompts: Sequence[Prompt], out: Path) -> None:
    """Raise `InputError` for an option that cannot be, before any work is done."""
    if not prompts:
        raise InputError("no prompt: give --prompt-file or --prompt")
    for name, least in (("n_batch", 1), ("n_ubatch", 1), ("n_predict", 0), ("top_k", 0),
                        ("n_cpu_moe", 0), ("moe_cache_mib", 0), ("vram_left_mib", 0)):  # fmt: skip
        if getattr(options, name) < least:
            raise InputError(
                f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least {least}"
            )
    if options.stops not in STOPS:
        raise InputError(f"--stops {options.stops}: one of {', '.join(STOPS)}")
    if not options.temperature >= 0:
        raise InputError(f"--temperature {options.temperature}: must be 0 (greedy) or more")
    if not out.resolve().parent.is_dir():
        raise InputError(f"{out}: its folder does not exist; make it first")
