"""The winner as a file: it says what it is, and `uvmsim sweep` runs it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uvmsim.studies.scenario import Scenario
from uvmsim.studies.search.arena import Score
from uvmsim.studies.search.cases import Case
from uvmsim.studies.sweep.config import beside

FILE = "best.toml"
OPTIONS = (
    "model", "expert_size", "hardware", "program", "vram", "link", "ram_bandwidth", "reserve", "ctx",
    "kv_type", "pool", "unit", "reset", "write_back", "pageable", "profile", "limit", "seed",
)  # fmt: skip
"""Of a scenario, those that bear on a run, as `uvmsim compare` and a sweep's file name them."""
USUAL: Mapping[str, Any] = {
    "hardware": "rtx5090",
    "pool": "global",
    "unit": "event",
    "reset": "never",
}


def asked(s: Scenario) -> dict[str, Any]:
    """The options that are not as `uvmsim compare` has them anyway."""
    told = s.to_json()
    return {
        k: told[k] for k in OPTIONS if told.get(k, USUAL.get(k)) not in (USUAL.get(k), False, 0)
    }


def command(case: Case, policy: str, s: Scenario) -> str:
    """The command line that runs a policy on a case's whole trace."""
    words = ["uvmsim", "compare", *([case.asked] if case.asked else [])]
    for key, value in asked(s).items():
        flag = "--" + key.replace("_", "-")
        words += [flag] if value is True else [flag, str(value)]
    words += ["--slots", ",".join(map(str, case.slots)), "--policy", policy]
    return shlex.join(words)


def write_best(
    folder: Path, cases: Sequence[Case], policy: str, commands: Sequence[str],
    scores: Mapping[str, Score], s: Scenario,
) -> None:  # fmt: skip
    """`FILE` in ``folder``, whole or not at all."""
    told = ", ".join(f"{part} {_said(score)}" for part, score in scores.items())
    lines = [
        f"# Found by uvmsim search for {', '.join(c.name for c in cases)}: {told}",
        *(f"# {c}" for c in commands),
        f"# or `uvmsim sweep {FILE} TRACE`",
        f"policy = [{json.dumps(_from_anywhere('policy', policy))}]",
        f"slots = {json.dumps(list(cases[0].shares))}",
    ]
    more = asked(s)
    if cases[0].scenario.expert_size is not None:
        more["expert_size"] = str(cases[0].scenario.expert_size)
    lines += [f"{key} = {json.dumps(_from_anywhere(key, value))}" for key, value in more.items()]
    target = folder / FILE
    temporary = target.with_name(f".tmp-{FILE}")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.rename(target)


def _from_anywhere(key: str, value: Any) -> Any:
    """Files by their whole path: a sweep's file is read from its own folder."""
    named = key in ("policy", "model", "hardware", "program", "profile")
    return beside(Path.cwd(), key, value) if named else value


def _said(score: Score) -> str:
    if score.speed is None or score.hits is None:
        return "failed"
    return f"{score.speed:,.1f} tok/s, {score.hits:.1%} hits"
