"""How many of the next layer's experts are among the first guesses: of its own router, of what is
learned, and of both; and what prefetching by them is worth.

    uvmsim capture llama-cpp experiments/tiny_moe/tiny-moe.gguf --prompt-file heldout.txt \\
        --ignore-eos --seed 0 --temperature 1.1 --n-predict 1536 --scores-next --scores-pre \\
        --out guesses.arrow
    python experiments/policy_lead/gate.py guesses.arrow

heldout.txt is that of experiments/tiny_moe (fetch_text.py --heldout); the routing is that of the
bundled trace. Writes gate.json and prints the tables of README.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from run import HERE, SLOTS

from traces.files.schema import DECODE
from traces.routing import RoutingTrace, open_routing
from uvmsim.policies.base import EVENT
from uvmsim.policies.prefetch_gate_next import GateNext
from uvmsim.policies.prefetch_learned import LearnedNext
from uvmsim.studies.compare import compare
from uvmsim.studies.scenario import Scenario
from uvmsim.workload import Workload, build_workload

WIDTHS = (4, 6, 8, 12)
SIZE = "13.3MB"
FETCHING = (
    "lru", "lru+gate-next", "learned", "learned+learned-next", "learned+gate-next",
    "learned+learned-next:ahead=2:budget=7.1e6", "learned+gate-next:ahead=2:budget=7.1e6",
)  # fmt: skip


class Logged(NamedTuple):
    """A prefetcher's state; ``chance``: float32 [events, experts], what it forecast at each event."""

    inner: Any
    chance: np.ndarray


_learned, _gate = LearnedNext.on_event, GateNext.on_event
_log: dict[str, np.ndarray] = {}


class Log:
    """A prefetcher that fetches nothing and keeps its forecasts."""

    name = ""

    def state(self, ctx):
        return Logged(super().state(ctx), _log["chance"])

    @staticmethod
    def prefetch(s, pool, ev, out):
        return 0


def keep(s, pool):
    """Write down what was forecast at this event."""
    for e in range(s.inner.left.size):
        s.chance[pool.clock[EVENT], e] = 1 - s.inner.left[e]


class LogLearned(Log, LearnedNext):
    """`learned-next`, logged."""

    @staticmethod
    def on_event(s, pool, ev):
        _learned(s.inner, pool, ev)
        keep(s, pool)


class LogGate(Log, GateNext):
    """`gate-next`, logged."""

    @staticmethod
    def on_event(s, pool, ev):
        _gate(s.inner, pool, ev)
        keep(s, pool)


def forecasts(trace: RoutingTrace, w: Workload, policy: type) -> np.ndarray:
    """float32 [events, experts]: chances of the layer after each event's."""
    _log["chance"] = np.zeros((w.n_events, w.n_experts), np.float32)
    compare(Scenario(trace, expert_size=SIZE, slots="25%", policies=[("lru", policy)]))
    return _log["chance"]


def recalls(trace: RoutingTrace) -> dict[str, dict[str, Any]]:
    """Of each predictor: recall by number of guesses, and, at two thresholds, how many experts have a
    chance above and how many of those were chosen. Decode tokens, all layers but the first (which no
    layer of the same token comes before)."""
    w = build_workload(trace)
    known = trace.experts[:, 0] >= 0
    pre = trace.predictions["pre"].ids[known]
    at = np.flatnonzero((w.step_phase[w.event_step] == DECODE) & (w.event_layer > 0))
    chosen = w.row_experts[w.row_lo[at]]
    orders: dict[str, np.ndarray] = {
        "gate (next1)": w.row_guesses[w.row_lo[at - 1], 0],
        "gate (pre)": pre[w.row_lo[at]],
    }
    found: dict[str, dict[str, Any]] = {}
    chances = {
        "learned-next": forecasts(trace, w, LogLearned),
        "gate-next": forecasts(trace, w, LogGate),
    }
    for name, chance in chances.items():
        mine = chance[at - 1]
        orders[name] = np.argsort(-mine, axis=1, kind="stable")
        right = np.take_along_axis(mine, chosen.astype(np.int64), axis=1)
        found[name] = {
            f"above {theta}": {
                "experts": float((mine >= theta).sum(axis=1).mean()),
                "chosen": float((right >= theta).sum() / max((mine >= theta).sum(), 1)),
                "recall": float((right >= theta).mean()),
            }
            for theta in (0.5, 0.8)
        }
    for name, order in orders.items():
        found.setdefault(name, {})["recall"] = {
            n: float((chosen[:, :, None] == order[:, None, :n]).any(axis=2).mean())
            for n in WIDTHS
            if n <= order.shape[1]
        }
    return found


def main(path: Path) -> None:
    trace = open_routing(path)
    found: dict[str, Any] = {"recall": recalls(trace), "runs": {}}
    for name, of in found["recall"].items():
        cells = [f"{of['recall'][n]:.1%}" if n in of["recall"] else "" for n in WIDTHS]
        for theta in (0.5, 0.8):
            more = of.get(f"above {theta}")
            told = (
                f"{more['experts']:.1f}, {more['chosen']:.0%}, {more['recall']:.0%}" if more else ""
            )
            cells.append(told)
        print(f"| {name} | " + " | ".join(cells) + " |")
    for pieces in (None, "2MiB"):
        for slots in SLOTS:
            s = Scenario(
                trace, expert_size=SIZE, slots=slots, policies=FETCHING, prefetch_pieces=pieces
            )
            for run in compare(s).to_json()["runs"]:
                of = run["prefetch"]
                found["runs"][f"{run['policy']} | {slots} | {pieces or 'whole'}"] = {
                    k: run[k] for k in ("decode_tokens_per_s", "hit_rate", "bytes_h2d", "prefetch")
                }
                n = max(of["issued"], 1)
                print(
                    f"| {run['policy']} | {pieces or 'whole'} | {slots} | "
                    f"{run['decode_tokens_per_s']:.1f} | {run['hit_rate']:.1%} | "
                    f"{run['bytes_h2d'] / 1e9:,.0f} | {of['useful'] / n:.0%}/{of['late'] / n:.0%}/"
                    f"{of['wasted'] / n:.0%} |"
                )
    (HERE / "gate.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
