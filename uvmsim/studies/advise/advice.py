"""What `uvmsim.advise` answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.studies.advise.better import Better
from uvmsim.studies.advise.candidate import Candidate
from uvmsim.studies.advise.emit import command
from uvmsim.studies.advise.intervals import calibrated, interval, row_for
from uvmsim.studies.advise.routing import Routed
from uvmsim.studies.advise.search import Choice
from uvmsim.studies.answer import Answer, flat
from uvmsim.version import __version__


@dataclass(frozen=True)
class At:
    """One context size: the best that fit, and why the plain one does not."""

    ctx: int
    best: list[Choice]
    refused: str | None
    """Why everything on the GPU is not among them; None where it is."""
    nothing: str | None = None
    """Why there is none at all; None where there is."""


@dataclass(frozen=True)
class WhatIf:
    """One change of the machine and the best configuration on it, at the first context size."""

    change: str
    best: Choice | None
    faster: float | None
    """Seconds of a request now over seconds then."""


@dataclass(frozen=True, repr=False)
class Advice(Answer):
    """What to run at each context size, how fast it will be, and why."""

    printer: ClassVar[str] = "uvmsim.report.advise_table:print_advice"

    model: Model
    model_file: str
    hardware: Hardware
    kv_type: str
    prompt: int
    generate: int
    routing: Routed | None
    contexts: list[At]
    what_ifs: list[WhatIf]
    better: Better | None
    notes: list[str]
    seed: int = 0

    @property
    def outcomes(self) -> Sequence[Choice]:
        """The configurations, those of the first context size first."""
        return [choice for at in self.contexts for choice in at.best]

    @property
    def best(self) -> Choice | None:
        """What to run at the first context size; None where nothing fits."""
        return self.contexts[0].best[0] if self.contexts[0].best else None

    def command(self, c: Candidate) -> str:
        """A configuration as llama.cpp's command line."""
        return command(c, self.model_file, self.model.n_layers)

    def commands(self) -> list[str]:
        """The best at each context size that has one."""
        return [self.command(at.best[0].candidate) for at in self.contexts if at.best]

    def choice_json(self, c: Choice) -> dict[str, Any]:
        """A configuration, what it takes, how fast it is, how sure that is."""
        kind = c.candidate.kind
        rows = {p: row_for(self.hardware, kind, p) for p in ("prefill", "decode")}
        p = c.prediction
        speeds = {"prefill": p.prefill_tokens_per_s, "decode": p.decode_tokens_per_s}
        return {
            "configuration": c.candidate.to_json(),
            "flags": c.candidate.flags(self.model.n_layers),
            "command": self.command(c.candidate),
            "needs": c.needs.to_json(),
            "prediction": p.to_json(),
            "interval": {k: interval(speeds[k], rows[k]) for k in rows},
            "interval_from": {k: row.model_dump() for k, row in rows.items()},
        }

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a configuration."""
        return [
            {"ctx": at.ctx, "rank": i + 1} | flat(_without_lists(self.choice_json(c)))
            for at in self.contexts
            for i, c in enumerate(at.best)
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        hw = self.hardware
        return {
            "uvmsim": __version__,
            "model": {
                "name": self.model.name, "architecture": self.model.architecture,
                "file": self.model_file, "bytes": self.model.total_bytes,
                "expert_bytes": self.model.moe_bytes, "layers": self.model.n_layers,
                "kv_bytes_per_token": self.model.kv_bytes_per_token,
            },
            "hardware": {
                "name": hw.name, "gpu": hw.gpu, "engine": hw.engine.name,
                "vram_bytes": hw.vram_bytes, "ram_bytes": hw.host_bytes,
                "calibrated": calibrated(hw),
            },
            "request": {"prompt": self.prompt, "generate": self.generate, "kv_type": self.kv_type},
            "routing": self.routing and {
                "source": self.routing.source, "recorded": self.routing.recorded,
            },
            "seed": self.seed,
            "contexts": [
                {"ctx": at.ctx, "refused": at.refused, "nothing_fits": at.nothing,
                 "best": [self.choice_json(c) for c in at.best]}
                for at in self.contexts
            ],
            "what_if": [
                {"change": w.change, "faster": w.faster,
                 "best": w.best and self.choice_json(w.best)}
                for w in self.what_ifs
            ],
            "better_policy": self.better and self.better.to_json(),
            "notes": self.notes,
        }  # fmt: skip


def _without_lists(d: dict[str, Any]) -> dict[str, Any]:
    """Lists joined to one text, for a flat row."""
    out: dict[str, Any] = {}
    for k, v in d.items():
        if isinstance(v, list):
            out[k] = " ".join(map(str, v))
        else:
            out[k] = _without_lists(v) if isinstance(v, dict) else v
    return out
