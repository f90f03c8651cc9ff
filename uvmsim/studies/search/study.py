"""A whole search: traces cut, candidates tried, a winner chosen, explained and written down."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from traces.errors import InputError
from uvmsim.policies.kinds import EXPERTS
from uvmsim.policies.registry import parse
from uvmsim.studies.answer import Answer
from uvmsim.studies.scenario import DEFAULT_HARDWARE, Progress, Scenario, scenario_of
from uvmsim.studies.search.arena import Arena, Score, Until, check_objective
from uvmsim.studies.search.cases import Case, Stretch, case_of, other_case
from uvmsim.studies.search.explain import ablation, trimmed
from uvmsim.studies.search.halving import Found, halve, rungs_of
from uvmsim.studies.search.proof import Proof, prove
from uvmsim.studies.search.proposals import LEADS, Drawn
from uvmsim.studies.search.space import FUTURE, Candidate, Space, space_of
from uvmsim.studies.search.split import PARTS
from uvmsim.studies.search.write import command, write_best
from uvmsim.studies.sweep.study import named
from uvmsim.version import __version__

MINUTES = 10.0
SEARCHING = 0.8
"""Share of the time after which what was found is judged and explained."""
SHOWN = tuple(dict.fromkeys(("learned", *EXPERTS.defaults)))
"""Shown beside the winner, whatever was searched among."""
PAYS = 1e-3
"""What a part of the winner must be worth on validation, all put-backs together, to stay in it."""
FINALISTS = 8
"""Best candidates of train that are judged on validation, beside `uvmsim compare`'s and `LEADS`."""


@dataclass(frozen=True)
class Line:
    """A policy's scores by part."""

    policy: str
    bound: bool
    """It knows the future."""
    scores: dict[str, Score]


@dataclass(frozen=True)
class Effect:
    """What the winner is worth on the test part without something."""

    what: str
    policy: str
    score: Score


@dataclass(frozen=True, repr=False)
class Search(Answer):
    """What was found: the winner and the policies that `uvmsim compare` shows, on all parts."""

    printer: ClassVar[str] = "uvmsim.report.search_table:print_search"

    scenario: Scenario
    objective: str
    trials: int
    space: Space
    cases: list[Case]
    lines: list[Line]
    """The winner first."""
    effects: list[Effect]
    transfers: list[tuple[Case, list[Line]]]
    commands: list[str]
    """That run the winner, one a trace."""
    notes: list[str]
    folder: str | None = None
    ran: int = field(default=0, compare=False)
    """Runs made now; what the folder had was not run again."""

    @property
    def best(self) -> str:
        """The winner, as `uvmsim compare --policy` takes it."""
        return self.lines[0].policy

    @property
    def outcomes(self) -> Sequence[Line]:
        """One a policy, the winner first."""
        return self.lines

    def prove(self, backend: str = "cuda") -> Proof:
        """The winner and the fastest of the others replayed on the test part of the first trace: on the
        GPU, or one line that says why not."""
        rated = {x.policy: x.scores["test"].value or 0.0 for x in self.lines[1:] if not x.bound}
        case = self.cases[0]
        rival = max(rated, key=lambda p: rated[p])
        return prove(case.scenario, case.test, [self.best, rival], backend)

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a policy: its scores, speeds and hit rates by part."""
        return [_flat(line) for line in self.lines]

    def to_json(self) -> dict[str, Any]:
        """One object of plain JSON types; the same number of trials and seed give the same bytes."""
        asked = self.scenario.to_json()
        return {
            "uvmsim": __version__,
            "options": asked,
            "objective": self.objective,
            "trials": self.trials,
            "space": {
                "evictions": [p.head for p in self.space.evictions],
                "prefetches": [p.head for p in self.space.prefetches],
                "parameters": self.space.numbers,
            },
            "traces": [_case_json(c) for c in self.cases],
            "best": self.best,
            "commands": self.commands,
            "policies": self.rows(),
            "ablation": [
                {"without": e.what, "policy": e.policy, **_measures("test", e.score)}
                for e in self.effects
            ],
            "transfer": [
                _case_json(c) | {"policies": [_flat(line) for line in lines]}
                for c, lines in self.transfers
            ],
            "notes": self.notes,
        }


def search(
    scenario: Scenario | Any = None,
    *,
    traces: Sequence[Any] | None = None,
    minutes: float | None = None,
    trials: int | None = None,
    objective: str = "tokens",
    folder: str | os.PathLike[str] | None = None,
    transfer: Sequence[Any] = (),
    jobs: int = 1,
    dask: str | None = None,
    progress: Progress | None = None,
) -> Search:
    """Find a policy for a scenario's traces, and say what of it pays.

    ``scenario``: as for `uvmsim.compare` (or a trace alone); its ``policies`` are what is searched
    among, all that ship if left out, with their parameters. ``traces``: several in place of the
    scenario's. ``objective``: ``"tokens"`` a second, or ``"hits"``. ``minutes``: about how long, 10
    unless ``trials`` says how many candidates are tried; that number and the scenario's seed give the
    same answer every time. ``folder`` keeps every run: what is there is not run again, so the same
    call with more time goes on. ``transfer``: traces that only the outcome is shown on. ``jobs``:
    processes; above 1 a script needs an ``if __name__ == "__main__"`` around its work. ``dask``: a
    scheduler's address, which must see ``folder``. Raises `InputError`.
    """
    check_objective(objective)
    _check_limits(minutes, trials)
    if dask and folder is None:
        raise InputError(": the workers must see the parts of the traces; give one", "folder")
    s = _tidy(scenario_of(scenario))
    timed = minutes is not None or trials is None
    searching = Until(60 * (minutes or MINUTES) * SEARCHING if timed else None)
    with tempfile.TemporaryDirectory(prefix="uvmsim-") if folder is None else nullcontext(
        os.fspath(folder)
    ) as place:  # fmt: skip
        home = Path(place).resolve()
        parts = _folder(home / "parts")
        given = [s.with_(trace=t) for t in traces] if traces else [s]
        cases = [case_of(x, parts) for x in given]
        space = space_of(_policies(s), frozenset.intersection(*(c.offers for c in cases)))
        others = [other_case(s.with_(trace=t), cases[0].shares, parts) for t in transfer]
        with Arena(home / "rows", objective, jobs, dask) as arena:
            work = _Work(arena, cases, progress, trials, searching)
            found = halve(
                arena, Drawn(space, s.seed), rungs_of(cases), trials, searching, work.tick
            )
            work.tick(found)
            best = work.winner(space, found)
            if best is None:
                raise InputError(_nothing(found))
            lines = work.lines([best.text, *_shown(cases), *(t.text for t in space.given)])
            effects = work.effects(best)
            shown = [line.policy for line in lines]
            transfers = [(o, work.elsewhere(o, shown)) for o in others]
        notes = [c.note for c in cases] + [n for c in cases for n in c.notes]
        notes += _remarks(found, best, objective)
        commands = [command(c, best.text, s) for c in cases]
        if folder is not None:
            write_best(home, cases, best.text, commands, lines[0].scores, s)
    return Search(
        s, objective, found.trials, space, cases, lines, effects, transfers, commands,
        list(dict.fromkeys(notes)), None if folder is None else str(folder), arena.ran,
    )  # fmt: skip


class _Work:
    """What is asked of an arena, with a bar that shows the best so far."""

    def __init__(
        self, arena: Arena, cases: list[Case], progress: Progress | None, trials: int | None,
        until: Until,
    ):  # fmt: skip
        self.arena, self.cases, self.progress = arena, cases, progress
        self.trials, self.until = trials, until
        self.said = ""

    def tick(self, found: Found) -> None:
        """Tell how far the search is."""
        if not self.progress:
            return
        best = found.best(1)
        if best:
            value = found.ranks[best[0]][1]
            told = _said(value, self.arena.objective)
            self.said = f"{found.trials:,} tried, best so far {told} by {best[0].text}"
        done, total = self.until.seconds if self.trials is None else (found.trials, self.trials)
        self.progress(done, total, self.said)

    def scores(self, policies: Sequence[str], part: str) -> dict[str, Score]:
        """On a part of all traces, however long it takes."""
        where = [(c, c.parts[part]) for c in self.cases]
        return self.arena.scores(list(dict.fromkeys(policies)), where)

    def winner(self, space: Space, found: Found) -> Candidate | None:
        """The best of the finalists on validation, less what does not pay there; None where none could
        be run. What is shown in any case is judged in any case, however little there was time for."""
        compiled = {c.heads for c in found.ranks}
        texts = dict.fromkeys((*SHOWN, *LEADS))
        plain = [
            c for t in texts
            if (c := space.candidate(t)) is not None and (t in SHOWN or c.heads in compiled)
        ]  # fmt: skip
        known = {c.text: c for c in (*found.best(FINALISTS), *plain)}
        worth = {t: v for t, v in self.value(list(known.values())).items() if v is not None}
        if not worth:
            return None
        best = max(worth, key=lambda t: (worth[t], t))
        # Never below a policy that needs no search.
        usual = [worth.get(c.text) or 0.0 for c in plain if c.text != best]
        floor = max((1 - PAYS) * worth[best], *usual, 0.0)
        return trimmed(known[best], floor, self.value)

    def value(self, candidates: list[Candidate]) -> dict[str, float | None]:
        """On validation, by name."""
        scores = self.scores([c.text for c in candidates], "validation")
        return {text: score.value for text, score in scores.items()}

    def lines(self, policies: Sequence[str]) -> list[Line]:
        """Policies on all parts."""
        by_part = {part: self.scores(policies, part) for part in PARTS}
        return [
            Line(p, _knows(p), {part: by_part[part][p] for part in PARTS})
            for p in dict.fromkeys(policies)
        ]

    def effects(self, best: Candidate) -> list[Effect]:
        """The winner taken apart, on test."""
        less = ablation(best)
        scores = self.scores([w.candidate.text for w in less], "test")
        return [Effect(w.what, w.candidate.text, scores[w.candidate.text]) for w in less]

    def elsewhere(self, case: Case, policies: Sequence[str]) -> list[Line]:
        """Policies on a trace that nothing was chosen by."""
        where: list[tuple[Case, Stretch]] = [(case, case.parts["transfer"])]
        scores = self.arena.scores(list(policies), where)
        return [Line(p, _knows(p), {"transfer": scores[p]}) for p in policies]


def _tidy(s: Scenario) -> Scenario:
    for name, told in (("mechanisms", ("expert-cache",)), ("engine", "fast")):
        if getattr(s, name) not in (None, told):
            raise InputError(f"{getattr(s, name)}: a search is for {told}", argument=name)
    for name in ("gpus", "neighbour"):
        if getattr(s, name) not in (None, 1):
            raise InputError(": a search is of one model on one card; leave it out", name)
    if s.policy_time:
        raise InputError(": measured times differ from run to run; leave it out", "policy_time")
    return s.or_else(hardware=DEFAULT_HARDWARE, mechanisms="expert-cache", pool="global")


def _policies(s: Scenario) -> list[str] | None:
    return [p if isinstance(p, str) else named(p) for p in s.policies] if s.policies else None  # type: ignore[union-attr]


def _shown(cases: Sequence[Case]) -> list[str]:
    """What `uvmsim compare` shows, and `learned`, as far as all traces have what it needs."""
    offers = frozenset.intersection(*(c.offers for c in cases)) | {FUTURE}
    return [p for p in SHOWN if parse(p).needs <= offers]


def _knows(policy: str) -> bool:
    return FUTURE in parse(policy).needs


def _check_limits(minutes: float | None, trials: int | None) -> None:
    if minutes is not None and not 0 < minutes < 1e6:
        raise InputError(f"{minutes:g}: give minutes above 0", argument="minutes")
    if trials is not None and trials < 1:
        raise InputError(f"{trials}: give 1 or more", argument="trials")


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise InputError(f"{path}: cannot be made ({err.strerror})", argument="folder") from None
    return path


def _nothing(found: Found) -> str:
    if found.failed:
        policy, why = next(iter(found.failed.items()))
        return f"{policy}: {why}"
    return "no candidate was done in time; give more `minutes`"


def _remarks(found: Found, best: Candidate, objective: str) -> list[str]:
    notes = []
    if not found.ranks:
        notes.append("no candidate was done in time: only what needs no search was judged")
    if found.failed:
        policy, why = next(iter(found.failed.items()))
        notes.append(f"{len(found.failed)} candidates could not be run, {policy}: {why}")
    if found.cut:
        notes.append(f"{found.cut} after {found.trials} trials")
    if objective == "tokens" and any(h.startswith("learned") for h in best.heads):
        notes.append(
            "speeds leave out the policies' own host time, where the machine's description has none "
            "([policy_ns], of `uvmsim calibrate`; `uvmsim compare --policy-time` measures it)"
        )
    return notes


def _said(value: float, objective: str) -> str:
    return f"{value:.1%} hits" if objective == "hits" else f"{value:,.1f} tok/s"


def _measures(part: str, score: Score) -> dict[str, Any]:
    return {
        f"{part}_tokens_per_s": score.speed, f"{part}_hit_rate": score.hits,
        f"{part}_error": score.error,
    }  # fmt: skip


def _flat(line: Line) -> dict[str, Any]:
    row: dict[str, Any] = {"policy": line.policy, "bound": line.bound}
    for part, score in line.scores.items():
        row |= _measures(part, score)
    return row


def _case_json(c: Case) -> dict[str, Any]:
    return {
        "name": c.name, "split_by": c.by or None, "tokens": c.tokens,
        "rungs": [r.limit or c.tokens["train"] for r in c.rungs],
        "slots": list(c.slots), "experts": c.experts,
    }  # fmt: skip
