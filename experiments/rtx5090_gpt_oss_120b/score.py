"""How far the page model is from the published rows: python experiments/rtx5090_gpt_oss_120b/score.py

Simulates each paging configuration of published.json once (half a minute, no GPU) and prints the error
of every row and of every configuration, whose rows are one simulated number: mean and worst error,
mean |ln(simulated / published)| and Kendall's tau. ``--a30`` adds the scan of experiments/a30_abab.

``--set KEY=VALUE`` changes a constant of the machine's [uvm] table (``entry_ns=1400``), ``--sigma X``
the router's popularity: to see what a change does before it is made.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from replay.validate.kendall import kendall
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.model import Model
from uvmsim.studies.llamabench.table import Options, run

HERE = Path(__file__).resolve().parent
TESTS = ("pp512", "tg128")
COUNTS = ("chunks_in", "services_per_chunk", "faulted_pages", "fault_entries", "fault_batches")


@dataclasses.dataclass(frozen=True)
class Row:
    """A published number beside the simulated one."""

    name: str
    configuration: str
    test: str
    published: float
    simulated: float

    @property
    def error(self) -> float:
        return self.simulated / self.published - 1

    @property
    def log(self) -> float:
        """ln(simulated / published): twice and half as fast are equally far off."""
        return math.log(self.simulated / self.published)


def simulate(
    published: dict[str, Any], hw: Hardware, model: Model, reps: int
) -> tuple[list[Row], dict[str, dict[str, Any]]]:
    """Rows, and the simulated runs by configuration and test."""
    rows, runs = [], {}
    for row in published["rows"]:
        name = row.get("policy") or row["mechanism"] + str(row.get("ncmoe", ""))
        if name not in runs:
            options = Options(
                mechanisms=(row["mechanism"],),
                policies=(row["policy"],) if "policy" in row else (), ncmoe=row.get("ncmoe"),
                hardware=hw, model=model, reps=reps,
            )  # fmt: skip
            runs[name] = {r["test"]: r for r in run(options).runs}
        for test in TESTS:
            rows.append(Row(row["row"], name, test, row[test], runs[name][test]["tokens_per_s"]))
    return rows, runs


def of_configurations(rows: list[Row]) -> list[Row]:
    """One row a configuration and test: published rows of it by their geometric mean."""
    by: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for r in rows:
        by[r.configuration, r.test].append(r)
    return [
        Row(name, name, test, math.exp(sum(math.log(r.published) for r in of) / len(of)),
            of[0].simulated)
        for (name, test), of in by.items()
    ]  # fmt: skip


def summary(rows: list[Row], test: str) -> dict[str, float]:
    """Mean and worst |error|, mean |ln ratio|, Kendall's tau of one column."""
    of = [r for r in rows if r.test == test]
    tau = kendall([r.published for r in of], [r.simulated for r in of]).tau
    return {
        "rows": len(of),
        "mean": sum(abs(r.error) for r in of) / len(of),
        "worst": max(abs(r.error) for r in of),
        "log": sum(abs(r.log) for r in of) / len(of),
        "tau": tau,
    }


def print_scores(rows: list[Row]) -> None:
    """Every row, then every configuration, then their sums."""
    for title, table in (("row", rows), ("configuration", of_configurations(rows))):
        print(f"| {title} | test | published | simulated | error | ln ratio |")
        print("|---|---|---|---|---|---|")
        for r in table:
            print(
                f"| {r.name} | {r.test} | {r.published:.2f} | {r.simulated:.2f} | {r.error:+.1%} "
                f"| {r.log:+.3f} |"
            )
        print()
    print("| over | test | n | mean error | worst | mean abs(ln ratio) | Kendall's tau |")
    print("|---|---|---|---|---|---|---|")
    for title, table in (("rows", rows), ("configurations", of_configurations(rows))):
        for test in TESTS:
            s = summary(table, test)
            print(
                f"| {title} | {test} | {s['rows']:.0f} | {s['mean']:.1%} | {s['worst']:.1%} "
                f"| {s['log']:.3f} | {s['tau']:.2f} |"
            )


def print_counts(runs: dict[str, dict[str, Any]]) -> None:
    """What the driver did, a repetition and, in decode, a token."""
    print("\n| configuration | test | chunks in | services | pages a service | entries | batches |")
    print("|---|---|---|---|---|---|---|")
    for name, tests in runs.items():
        for test, r in tests.items():
            if r.get("chunks_in") and "fault_entries" in r:
                chunks, services = r["chunks_in"], r["services"]
                print(
                    f"| {name} | {test} | {chunks:,.0f} | {services / chunks:.2f} "
                    f"| {r['faulted_pages'] / services:.1f} | {r['fault_entries'] / chunks:.1f} "
                    f"| {r['fault_batches'] / chunks:.2f} |"
                )


def changed(hw: Hardware, given: list[str]) -> Hardware:
    """The machine with some of its [uvm] constants replaced."""
    assert hw.uvm is not None
    values: dict[str, Any] = {}
    known = {f.name for f in dataclasses.fields(hw.uvm)}
    for text in given:
        key, _, value = text.partition("=")
        if key not in known or not value.isdigit():
            sys.exit(f"--set {text}: give KEY=WHOLE NUMBER with one of {', '.join(sorted(known))}")
        values[key] = bool(int(value)) if key == "duplex" else int(value)
    return dataclasses.replace(hw, uvm=dataclasses.replace(hw.uvm, **values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="given")
    parser.add_argument("--sigma", type=float, help="of the router's log-normal popularity")
    parser.add_argument("--paging", action="store_true", help="leave out what does not page")
    parser.add_argument("--a30", action="store_true", help="the A30's scan too")
    args = parser.parse_args()
    published = json.loads((HERE / "published.json").read_text())
    if args.paging:
        published["rows"] = [r for r in published["rows"] if r["mechanism"] == "uvm"]
    hw, model = changed(Hardware.load("rtx5090"), args.given), Model.load("gpt-oss-120b")
    if args.sigma is not None:
        model = dataclasses.replace(model, routing_sigma=(args.sigma, args.sigma))
    rows, runs = simulate(published, hw, model, args.reps)
    print_scores(rows)
    print_counts(runs)
    if args.a30:
        sys.path.insert(0, str(HERE.parent / "a30_abab"))
        from run import study, table

        print("\n" + table(study()))


if __name__ == "__main__":
    main()
