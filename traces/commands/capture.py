"""`uvmsim capture`: record the expert routing, or the page faults, of real runs."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from traces.capture.options import CaptureResult, Prompt


@click.group()
def capture() -> None:
    """Record which experts each token of a real run uses, or which pages fault."""


class _Temperature(click.ParamType):
    name = "number or 'greedy'"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        if value == "greedy":
            return 0.0
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor 'greedy'", param, ctx)


def _options(*options: Any) -> Any:
    """Several click options as one decorator, in the order given."""

    def decorate(f: Any) -> Any:
        for option in reversed(options):
            f = option(f)
        return f

    return decorate


_PROMPT = _options(
    click.option(
        "--prompt-file",
        "prompt_files",
        multiple=True,
        type=click.Path(path_type=Path),
        help="A UTF-8 text file. May be given several times: one sequence each.",
    ),
    click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="A prompt itself."),
    click.option(
        "--sequences",
        default=1,
        type=click.IntRange(min=1),
        show_default=True,
        help="Sequences made from each prompt.",
    ),
    click.option("--n-predict", default=128, show_default=True, help="Tokens each one generates."),
)
_TRACE = _options(
    click.option("--out", required=True, type=click.Path(path_type=Path), help="Trace to write."),
    click.option("--scores", is_flag=True, help="Store the router's score of every expert too."),
    click.option(
        "--scores-next",
        is_flag=True,
        help="Store what the routers of the next two MoE layers would choose already.",
    ),
    click.option(
        "--scores-pre",
        is_flag=True,
        help="Store what a layer's router would choose before its attention.",
    ),
    click.option("--tokens", is_flag=True, help="Store token ids too."),
)
_SAMPLING = _options(
    click.option("--seed", default=0, show_default=True, help="Seed of the sampler."),
    click.option(
        "--temperature",
        type=_Temperature(),
        default="0.8",
        show_default=True,
        metavar="NUMBER|greedy",
        help="0 or greedy: always the likeliest token.",
    ),
    click.option(
        "--top-k", default=40, show_default=True, help="Sample among the k likeliest; 0: all."
    ),
    click.option("--ignore-eos", is_flag=True, help="Never sample an end-of-generation token."),
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@capture.command("llama-cpp")
@click.argument("model", type=click.Path(path_type=Path))
@_PROMPT
@_TRACE
@click.option("--lib", metavar="PATH", help="A libllama.so of your own (e.g. a CUDA build).")
@click.option("--n-ctx", type=int, help="Context of all sequences together [default: as needed].")
@click.option("--n-batch", default=2048, show_default=True, help="Tokens a llama_decode call.")
@click.option("--n-ubatch", default=512, show_default=True, help="Tokens a micro-batch (a step).")
@click.option("--threads", type=int, help="CPU threads [default: all cores].")
@click.option("--n-gpu-layers", default=0, show_default=True, help="Blocks to put on the GPU.")
@click.option(
    "--n-cpu-moe", default=0, show_default=True, help="First blocks whose experts stay off the GPU."
)
@click.option(
    "--moe-cache-mib",
    default=0,
    show_default=True,
    help="llama.cpp's own expert cache on the GPU (with --n-cpu-moe); its counters are printed.",
)
@click.option(
    "--faults",
    type=click.Path(path_type=Path),
    help="Write the page faults and migrations of the same run there, on the same time axis "
    "(a CUDA build, in managed memory).",
)
@click.option(
    "--unified-memory",
    is_flag=True,
    help="Keep the model in managed memory, which the driver pages. [with --faults: always]",
)
@click.option(
    "--vram-left-mib",
    default=0,
    help="Take all GPU memory but this beforehand: with --faults, a card too small for the model.",
)
@click.option(
    "--tracer",
    type=click.Choice(["auto", "cupti", "driver"]),
    default="auto",
    show_default=True,
    help="What records --faults: CUPTI, or the driver's own event queue (each entry and batch). "
    "auto: the queue, where the driver gives one that can be made whole.",
)
@click.option(
    "--cold",
    is_flag=True,
    help="Send all managed memory to the host before the first step.",
)
@click.option(
    "--warm-up", is_flag=True, help="Run the first prompt before, unrecorded. [with --cold: always]"
)
@click.option("--times", is_flag=True, help="Store when each step ran. [with --faults: always]")
@click.option(
    "--stops",
    type=click.Choice(["graph", "layer"]),
    default="graph",
    hidden=True,
    help="Read what was routed after each graph, or at every layer of it.",
)
@click.option("--no-mmap", is_flag=True, help="Read the model into memory; do not map the file.")
@_SAMPLING
@click.option(
    "--all-outputs",
    is_flag=True,
    help="Compute the logits of every prompt token, so that the prefill's last layer is complete.",
)
@_JSON
def llama_cpp(**given: Any) -> None:
    """Run a GGUF model with llama.cpp and record its expert routing.

    Several prompts run side by side, as parallel sequences.

    \b
    uvmsim capture llama-cpp model.gguf --prompt-file text.txt --n-predict 128 --out run.arrow
    """
    from traces.capture.find_library import find_library, preload_environment

    # Before anything else is loaded: a CUDA libllama needs a process made for it.
    environment = preload_environment(find_library(given["lib"]))
    if environment is not None:
        os.execve(sys.executable, sys.orig_argv, environment)

    from traces.capture.llama_cpp import capture as run

    _run(run, given, library=given["lib"], faults=given["faults"], tracer=given["tracer"])


@capture.command()
@click.argument("model", metavar="MODEL_DIR", type=click.Path(path_type=Path))
@_PROMPT
@_TRACE
@click.option("--n-batch", default=2048, show_default=True, help="Prompt tokens a forward pass.")
@click.option("--threads", type=int, help="CPU threads [default: PyTorch's choice].")
@click.option("--device", default="cpu", show_default=True, help="A PyTorch device, e.g. cuda:0.")
@_SAMPLING
@_JSON
def transformers(**given: Any) -> None:
    """Run a Hugging Face model directory with transformers and record its expert routing.

    Several prompts run one after the other. Nothing is downloaded.

    \b
    uvmsim capture transformers ./OLMoE-1B-7B --prompt-file text.txt --out run.arrow
    """
    from traces.capture.transformers import capture as run

    _run(run, given, device=given["device"])


@capture.command("cupti", context_settings={"allow_interspersed_args": False})
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Trace to write [default: the script's name, .faults.arrow].",
)
@_JSON
def cupti(program: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Run a Python program and record its page faults and migrations (CUDA managed memory).

    The program runs in this process. Its exit code is passed on. With --json, what it prints goes
    to standard error.

    \b
    uvmsim capture cupti -o run.arrow -- python script.py --its-options
    """
    from contextlib import nullcontext, redirect_stdout

    from traces.capture.cupti import FaultRecording
    from traces.capture.python_program import check_program, run_program
    from traces.capture.replaced import watch_exec
    from traces.errors import InputError

    words = check_program(program)
    out = out or Path(f"{Path(words[1] if words[0] == '-m' else words[0]).stem}.faults.arrow")
    recording = FaultRecording(out, meta={"command": _program_command(words)})
    try:
        with (
            recording,
            watch_exec(recording.replaced),
            redirect_stdout(sys.stderr) if as_json else nullcontext(),
        ):
            code = run_program(words)
    except KeyboardInterrupt:
        kept = f"what was recorded until then is in {out}.partial and can be read"
        raise InputError(
            f"interrupted; {kept if recording.rows else 'nothing was recorded yet'}"
        ) from None
    if as_json:
        result: dict[str, Any] = {
            "out": str(out) if recording.rows else None,
            "rows": recording.rows,
        }
        result |= {"exit_code": code, "dropped": recording.dropped, "notes": recording.notes}
        click.echo(json.dumps(result, sort_keys=True))
    for note in recording.notes:
        click.echo(f"note: {note}", err=True)
    if code:
        click.echo(f"note: the program ended with exit code {code}", err=True)
    if recording.rows:
        size = out.stat().st_size / 1e6
        click.echo(f"{recording.rows:,} events; {out}: {size:,.2f} MB", err=True)
        click.echo(f"next: uvmsim trace stats {shlex.quote(str(out))}", err=True)
    elif not code:
        raise InputError(
            "no unified-memory event was seen, so no trace is written: does the program use "
            "managed memory (cudaMallocManaged)?"
        )
    sys.exit(code)


def _program_command(words: list[str]) -> str:
    """The command line, without folders, which may name people."""
    script = words if words[0] == "-m" else [Path(words[0]).name, *words[1:]]
    return shlex.join(["uvmsim", "capture", "cupti", "--", "python", *script])


def _run(run: Any, given: dict[str, Any], **more: Any) -> None:
    """Do what both commands do around the capture itself."""
    from traces.capture.options import CaptureOptions
    from traces.errors import InputError

    prompts = _read_prompts(given["prompt_files"], given["prompts"]) * given["sequences"]
    names = CaptureOptions.__dataclass_fields__.keys()
    options = CaptureOptions(**{n: v for n, v in given.items() if n in names})
    with _Progress() as progress:
        try:
            result = run(
                given["model"],
                prompts,
                given["out"],
                options,
                command=_resolved(),
                progress=progress.update,
                **more,
            )
        except KeyboardInterrupt:
            partial = given["out"].with_name(given["out"].name + ".partial")
            kept = f"what was recorded until then is in {partial} and can be read"
            raise InputError(
                f"interrupted; {kept if partial.exists() else 'nothing was recorded yet'}"
            ) from None
    _print(result, as_json=given["as_json"])


def _read_prompts(files: tuple[Path, ...], texts: tuple[str, ...]) -> list[Prompt]:
    from traces.capture.options import Prompt
    from traces.errors import InputError

    prompts = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise InputError(f"--prompt-file {path}: no such file") from None
        except (OSError, UnicodeDecodeError) as e:
            raise InputError(f"--prompt-file {path}: cannot be read as UTF-8 text: {e}") from None
        prompts.append(Prompt(text=text, source=path.name))
    return prompts + [Prompt(text=text, source="--prompt") for text in texts]


def _resolved() -> str:
    """This command line with every default filled in; folders are left out of paths, since they
    may name people."""
    context = click.get_current_context()
    words = [*context.command_path.split()]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        values = value if isinstance(value, tuple) else (value,)
        for v in values:
            if v is None or v is False or parameter.name == "as_json":
                continue
            if isinstance(v, Path) or parameter.name == "lib":
                v = Path(v).name
            flag = [] if isinstance(parameter, click.Argument) else [parameter.opts[0]]
            words += flag if v is True else [*flag, str(v)]
    return shlex.join(words)


class _Progress:
    """A bar on standard error, where that is a terminal."""

    def __enter__(self) -> _Progress:
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.start()
        return self

    def update(self, phase: str, done: int, total: int) -> None:
        if self._bar is None:
            return
        if phase not in self._tasks:
            self._tasks[phase] = self._bar.add_task(phase, total=total)
        self._bar.update(self._tasks[phase], completed=done)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _print(result: CaptureResult, *, as_json: bool) -> None:
    def speed(tokens: int, ns: int) -> str:
        return f"{tokens / ns * 1e9:,.1f} tokens/s" if ns and tokens else "-"

    prefill = speed(result.prompt_tokens, result.prefill_ns)
    decode = speed(result.generated_tokens, result.decode_ns)
    if as_json:
        click.echo(json.dumps(result.to_json(), sort_keys=True))
        click.echo(f"prefill {prefill}, decode {decode}", err=True)
        return
    click.echo(
        f"{result.prompt_tokens:,} prompt tokens ({prefill}), {result.generated_tokens:,} "
        f"generated ({decode}), {result.sequences} sequence(s), {result.steps:,} steps"
    )
    missing = f", {result.missing_rows:,} of them missing" if result.missing_rows else ""
    click.echo(f"{result.rows:,} rows{missing}; {result.out}: {result.file_bytes / 1e6:,.2f} MB")
    if result.faults and result.faults["out"]:
        f = result.faults
        click.echo(f"{f['rows']:,} page faults, migrations and the like; {f['out']}")
    if result.moe_cache:
        c = result.moe_cache
        slots = " + ".join(f"{n:,}" for n in c["slots"]) or "0"
        click.echo(
            f"llama.cpp's expert cache: {slots} slots, {c['hits']:,} hits, {c['misses']:,} misses, "
            f"{c['uploaded_mib']:,.2f} MiB uploaded"
        )
    for note in result.notes:
        click.echo(f"note: {note}")
    if result.faults and result.faults["out"]:
        pair = shlex.join([str(result.out), "--faults", str(result.faults["out"])])
        click.echo(f"next: uvmsim trace check {pair}")
    click.echo(f"next: uvmsim compare {shlex.quote(str(result.out))} --slots 25%")
