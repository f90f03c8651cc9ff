"""``uvmsim trace``: look at traces, check, measure, convert and make them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from traces.faults import FaultTrace

TRACE = click.Path(dir_okay=False)
JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead of tables."
)


@click.group()
def trace() -> None:
    """Look at traces, check, measure, convert and make them."""


@trace.command()
@click.argument("file", type=TRACE)
@JSON
def info(file: str, as_json: bool) -> None:
    """Say what a trace is: model, shape, tokens or events, columns, origin, hash."""
    _describe(file, as_json)


@trace.command("import")
@click.argument("file", type=TRACE)
@click.option("-o", "--out", required=True, type=TRACE, help="Trace to write (.arrow).")
@click.option(
    "--format",
    "format_",
    help="npz, jsonl, csv, parquet, gpu-ext-chunk, gpu-ext-prefetch or nsys; default: by the "
    "file's content and name.",
)
@click.option(
    "--model-name", help="Model that was recorded; default: from the file's path if known."
)
@click.option("--n-experts", type=click.IntRange(1), help="Routed experts a layer.")
@click.option(
    "--ids-order",
    type=click.Choice(["ranked", "sorted", "unknown"]),
    help="What the order of the ids in a row means; default: found out from weights and ids.",
)
@click.option("--sequences", help="Import these sequences only, e.g. 0,3,5-9.")
@JSON
def import_(
    file: str,
    out: str,
    format_: str | None,
    model_name: str | None,
    n_experts: int | None,
    ids_order: str | None,
    sequences: str | None,
    as_json: bool,
) -> None:
    """Bring in a routing dump, or page faults.

    Routing: NPZ, JSONL, CSV or Parquet. What the dump does not state is worked out from the
    published shape of the model, and said in the notes. Page faults: gpu_ext's chunk_trace and
    prefetch_trace CSV, and SQLite exports of Nsight Systems. Layouts: docs/traces.md.
    """
    from pathlib import Path

    from traces.errors import InputError
    from traces.files.ipc import require_file
    from traces.importers.dump import ImportOptions, import_routing
    from traces.importers.formats import import_faults, named, sniff

    options = ImportOptions(model_name, n_experts, ids_order, _ranges(sequences))
    require_file(Path(file))
    found = named(format_) if format_ else sniff(Path(file))
    name = found.name
    if found.faults:
        if model_name or n_experts or ids_order or sequences:
            raise InputError(
                f"{file}: holds page faults ({name}); --model-name, --n-experts, --ids-order and "
                "--sequences are for routing dumps: leave them out"
            )
        with _working("importing"):
            events = import_faults(Path(file), name)
            events.save(out, events.meta | {"tool": _tool(), "command": _command()})
    else:
        t = import_routing(file, options, format=name, tool=_tool(), command=_command())
        t.save(out)
    _describe(out, as_json)


@trace.command()
@click.argument("file", type=TRACE)
@click.option("--faults", type=TRACE, help="The fault trace of the same run: do they fit?")
@JSON
def check(file: str, faults: str | None, as_json: bool) -> None:
    """Look for what is wrong with a recording.

    Exit code 1 where an error is found, 0 where there are none (warnings and notes do not count).
    """
    from traces.errors import InputError
    from traces.faults import is_fault_trace, open_faults

    if is_fault_trace(file):
        from traces.faults.check import check_faults

        if faults:
            raise InputError(f"{file}: holds page faults; --faults goes with a routing trace")
        findings = check_faults(open_faults(file, checked=False))
    else:
        from traces.routing import open_routing
        from traces.routing.check import check as find

        findings = find(open_routing(file, checked=False))
        if faults:
            from traces.faults.beside_routing import check_beside

            findings += check_beside(open_routing(file), open_faults(faults))
    if as_json:
        _json({"file": file, "findings": [f.to_json() for f in findings]})
    else:
        from traces.routing.tables import print_findings

        print_findings(findings, file)
    if any(f.severity == "error" for f in findings):
        sys.exit(1)


@trace.command()
@click.argument("files", type=TRACE, nargs=-1, required=True)
@click.option("--phase", type=click.Choice(["all", "prefill", "decode"]), default="all")
@JSON
def stats(files: tuple[str, ...], phase: str, as_json: bool) -> None:
    """Print the locality tables of one trace, or of several side by side.

    Routing: overlap at lag d, distinct experts in a window, reuse intervals, skew, unions, recall of
    predictors where recorded, LRU and LFU hit rates as a yardstick, and the share of tokens in
    degenerate loops, by sequence. Faults: rates, reuse of
    physical chunks, refaults, runs, bytes each way, evictions. Definitions: docs/traces.md.
    """
    from pathlib import Path

    from traces.errors import InputError
    from traces.faults import is_fault_trace
    from traces.files.schema import PHASES
    from traces.routing import open_routing
    from traces.routing.loops import loops
    from traces.routing.recall import recall
    from traces.routing.stats import statistics

    if all(is_fault_trace(file) for file in files):
        _fault_stats(files, phase, as_json)
        return
    named = []
    for file in files:
        t = open_routing(file)
        if t.recorded_sha256 and t.recorded_sha256 != t.sha256:
            raise InputError(
                f"{file}: its rows are not those recorded (damaged?); see `trace check`"
            )
        d, counted = t.dense, None
        if phase != "all":
            counted = d.phase == PHASES.index(phase)
            d = d.take(counted)
            if not len(d.seq):
                raise InputError(f"{file}: has no {phase} tokens; leave out --phase {phase}")
        more = {"recall": recall(t, counted)} if t.predictions else {}
        named.append((Path(file).stem, statistics(d) | {"loops": loops(d)} | more))
    if as_json:
        _json({"traces": [{"file": f} | s for f, (_, s) in zip(files, named, strict=True)]})
    else:
        from traces.routing.tables import print_statistics

        print_statistics(named)


@trace.command("filter")
@click.argument("file", type=TRACE)
@click.option("-o", "--out", required=True, type=TRACE, help="Trace to write (.arrow).")
@click.option("--no-loops", is_flag=True, help="Leave out sequences with over 5% looped tokens.")
@click.option("--sequences", help="Keep these sequences only, e.g. 0,3,5-9.")
@click.option("--phase", type=click.Choice(["all", "prefill", "decode"]), default="all")
@click.option(
    "--length", metavar="MIN-MAX", help="Keep sequences of so many tokens, e.g. 64-512, 64-."
)
@JSON
def filter_(
    file: str, out: str, no_loops: bool, sequences: str | None, phase: str, length: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Make a trace of some sequences of another, of one phase, or without degenerate loops.

    What was left out is kept with the trace (`trace info`), so that a number says what it was measured
    on.

    \b
    uvmsim trace filter T.arrow -o clean.arrow --no-loops
    uvmsim trace filter T.arrow -o train.arrow --sequences 0-14 --phase decode
    """
    from traces.routing import open_routing
    from traces.routing.filter import filtered

    part, notes = filtered(
        open_routing(file), no_loops=no_loops, sequences=_ranges(sequences), phase=phase,
        length=_length(length),
    )  # fmt: skip
    from dataclasses import replace

    part.save(out, replace(part.meta, tool=_tool(), command=_command()))
    if not as_json:
        for note in notes:
            click.echo(note)
    _describe(out, as_json)


@trace.command()
@click.option("-o", "--out", required=True, type=TRACE, help="Trace to write (.arrow).")
@click.option("--like", type=TRACE, help="Fit to this trace: its skew, locality and sequences.")
@click.option(
    "--dependent", is_flag=True,
    help="With --like: choices depend on the token before and the layer before.",
)  # fmt: skip
@click.option("--shuffle", type=TRACE, help="Copy this trace, tokens shuffled in each sequence.")
@click.option("--llama-bench", "bench", help="Uniformly random tokens, e.g. pp512,tg128.")
@click.option("--shape", help="Shape of a published model, e.g. gpt-oss-120b.")
@click.option("--layers", type=click.IntRange(1), help="MoE layers, where no --shape is given.")
@click.option("--experts", type=click.IntRange(2), help="Routed experts a layer.")
@click.option("--top-k", type=click.IntRange(1), help="Experts a token uses in a layer.")
@click.option(
    "--zipf",
    type=click.FloatRange(0.0, 5.0),
    help="Popularity of the r-th hottest expert: r to the power of minus this.  [default: 0.6]",
)
@click.option(
    "--stickiness",
    type=click.FloatRange(0.0, 1.0),
    help="Share of a token's experts that the token before used too.  [default: 0.4]",
)
@click.option(
    "--topic",
    type=click.FloatRange(0.0, 1.0),
    help="The same share between any two tokens of a sequence.  [default: 0.25]",
)
@click.option(
    "--tokens", type=click.IntRange(1), help="Tokens.  [default: 4096, or as many as --like has]"
)
@click.option("--sequence", type=click.IntRange(1), help="Tokens a sequence.  [default: 512]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@JSON
def synth(as_json: bool, out: str, **options: Any) -> None:
    """Make a trace: like a real one, from a few numbers, or as a control.

    \b
    uvmsim trace synth --like REAL.arrow -o T.arrow        fitted, and judged against it
    uvmsim trace synth --like REAL.arrow --dependent -o T.arrow
    uvmsim trace synth --shape gpt-oss-120b -o T.arrow     from --zipf, --stickiness, --topic
    uvmsim trace synth --shape gpt-oss-120b --llama-bench pp512,tg128 -o T.arrow
    uvmsim trace synth --shuffle REAL.arrow -o T.arrow     time order removed
    """
    from dataclasses import replace

    from traces.routing import open_routing
    from traces.routing.describe import describe, print_description
    from traces.routing.stats import statistics
    from traces.synth.options import make

    with _working("making the trace"):
        made, real = make(**options)
    meta = replace(made.meta, tool=_tool(), command=_command(), prompt_source="synthetic")
    made.save(out, meta)
    t = open_routing(out)
    named = [(n, statistics(x.dense)) for n, x in (("real", real), ("synthetic", t)) if x]
    if as_json:
        _json({"trace": describe(t), "stats": dict(named)})
        return
    from traces.routing.tables import print_statistics

    print_description(describe(t))
    print_statistics(named)


@trace.command()
@click.argument("file", type=TRACE)
@click.option("-o", "--out", required=True, type=TRACE, help=".parquet, .csv, .jsonl or .npz")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["gpu-ext-chunk", "gpu-ext-prefetch"]),
    help="Fault traces: the CSV of gpu_ext's chunk_trace or prefetch_trace.",
)
@JSON
def export(file: str, out: str, format_: str | None, as_json: bool) -> None:
    """Write a trace in another format: Parquet, CSV, JSONL or NPZ (by the name's ending).

    A fault trace: Parquet, or one of gpu_ext's CSV formats (--format).
    """
    from traces.faults import is_fault_trace

    if is_fault_trace(file):
        from traces.export.faults import export_faults

        with _working("exporting"):
            result = export_faults(_undamaged(file), out, format_)
    else:
        from traces.errors import InputError
        from traces.export.routing import export_routing
        from traces.routing import open_routing

        t = open_routing(file)
        if format_:
            raise InputError(f"{file}: holds routing; --format {format_} is for fault traces")
        result = export_routing(t, out)
    if as_json:
        _json(result)
    else:
        click.echo(f"{result['out']}: {result['rows']:,} rows, {result['bytes'] / 1e6:,.2f} MB")
        for note in result["notes"]:
            click.echo(f"note: {note}")


def _describe(file: str, as_json: bool) -> None:
    """What `info` prints, and `import` of what it wrote."""
    from traces.faults import is_fault_trace, open_faults

    if is_fault_trace(file):
        from traces.faults.tables import describe_faults, print_fault_description

        d = describe_faults(open_faults(file))
        _json(d) if as_json else print_fault_description(d)
        return
    from traces.routing import open_routing
    from traces.routing.describe import describe, print_description

    d = describe(open_routing(file))
    _json(d) if as_json else print_description(d)


def _fault_stats(files: tuple[str, ...], phase: str, as_json: bool) -> None:
    from pathlib import Path

    from traces.errors import InputError
    from traces.faults.stats import fault_statistics
    from traces.faults.tables import print_fault_statistics

    if phase != "all":
        raise InputError(f"--phase {phase}: fault traces have no phases; leave it out")
    with _working("measuring"):
        named = [(Path(f).stem, fault_statistics(_undamaged(f))) for f in files]
    if as_json:
        _json({"traces": [{"file": f} | s for f, (_, s) in zip(files, named, strict=True)]})
    else:
        print_fault_statistics(named)


def _undamaged(file: str) -> FaultTrace:
    """A fault trace whose rows are those recorded."""
    from traces.errors import InputError
    from traces.faults import open_faults

    t = open_faults(file)
    if t.recorded_sha256 and t.recorded_sha256 != t.sha256:
        raise InputError(f"{file}: its rows are not those recorded (damaged?); see `trace check`")
    return t


@contextmanager
def _working(what: str) -> Iterator[None]:
    """A moving line on standard error while something long goes on; nothing where no one looks."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def _ranges(text: str | None) -> tuple[int, ...] | None:
    """``0,3,5-9`` as numbers."""
    if text is None:
        return None
    from traces.errors import InputError

    out: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise InputError(
                f"--sequences {text}: {part!r} is no number or range; use e.g. 0,3,5-9"
            )
        low, high = int(first), int(last or first)
        if not low <= high < low + 10_000_000:
            raise InputError(f"--sequences {text}: {part!r} is no sensible range; use e.g. 5-9")
        out += range(low, high + 1)
    return tuple(out)


def _length(text: str | None) -> tuple[int, int | None]:
    """``64-512``, ``64-`` or ``64`` as least and most."""
    if text is None:
        return 1, None
    from traces.errors import InputError

    first, dash, last = text.strip().partition("-")
    if not first.isdigit() or (last and not last.isdigit()) or (last and int(last) < int(first)):
        raise InputError(f"--length {text}: give least and most tokens, e.g. 64-512 or 64-")
    return int(first), int(last) if last else None if dash else int(first)


def _tool() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"uvmsim {version('uvmsim')}"
    except PackageNotFoundError:
        return "uvmsim (not installed)"


def _command() -> str:
    """The command line as typed, with every parameter of this command resolved."""
    import shlex

    context = click.get_current_context()
    words = ["uvmsim", "trace", str(context.info_name)]
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if value is None or value is False or parameter.name == "as_json":
            continue
        values = value if isinstance(value, tuple) else (value,)
        if not isinstance(parameter, click.Argument):
            words += [
                w for v in values for w in (parameter.opts[-1], *([] if v is True else [str(v)]))
            ]
        else:
            words += [str(v) for v in values]
    return shlex.join(words)


def _json(d: Any) -> None:
    json.dump(d, sys.stdout, indent=2, sort_keys=True)
    sys.stdout.write("\n")
