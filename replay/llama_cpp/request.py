"""What a worker is asked to do, as plain data that crosses to another process."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

PP, TG = "pp", "tg"


@dataclass(frozen=True)
class Test:
    """One of llama-bench's tests, on uniformly random tokens that a seed fixes."""

    kind: Literal["pp", "tg"]
    n: int
    """``pp``: tokens of the prompt; ``tg``: tokens generated one by one."""
    depth: int = 0
    """Tokens already in the context; they are not timed."""
    reps: int = 3
    seconds: float = 0.0
    """No further repetition begins after this time, two apart; 0: no limit."""

    @property
    def name(self) -> str:
        """``pp512``, ``tg128``, ``tg64@d4096``."""
        return f"{self.kind}{self.n}" + (f"@d{self.depth}" if self.depth else "")


@dataclass(frozen=True)
class Context:
    """One llama_context and the tests that run in it, in order."""

    tests: tuple[Test, ...]
    n_ubatch: int = 512
    n_batch: int = 2048
    moe_cache_mib: int = 0
    trace: str | None = None
    """A routing trace to write of all that runs; the tests are then not timed."""
    exact: bool = True
    """With ``trace``: what a run without capture would choose, to the last id. False is quicker for a
    few prompts (a stop at the router rounds otherwise, which shows in near-ties)."""
    on_host: bool = False
    """With ``unified``: all managed memory is advised to stay in host memory, mapped on the GPU, and
    prefetched there, before anything is timed; later contexts find the weights there too."""
    n_ctx: int | None = None
    """None: what the longest test needs."""

    def context_tokens(self) -> int:
        """``n_ctx``, as a multiple of 256."""
        longest = max((t.n + t.depth for t in self.tests), default=1)
        return self.n_ctx or -(-longest // 256) * 256


@dataclass(frozen=True)
class Request:
    """A model, where its weights go, and what runs."""

    library: str | None
    """Folder or file of a libllama, or a package; None: the capture extra's."""
    model: str
    contexts: tuple[Context, ...]
    n_gpu_layers: int = 0
    n_cpu_moe: int = 0
    no_mmap: bool = False
    unified: bool = False
    """GGML_CUDA_ENABLE_UNIFIED_MEMORY"""
    threads: int | None = None
    census: tuple[int, ...] = ()
    """Count the graph's nodes for micro-batches of so many tokens."""
    seed: int = 0
    environment: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Request:
        contexts = tuple(
            Context(**c | {"tests": tuple(Test(**t) for t in c["tests"])}) for c in data["contexts"]
        )
        return cls(**data | {"contexts": contexts, "census": tuple(data["census"])})
