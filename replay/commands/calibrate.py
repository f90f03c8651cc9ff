"""`uvmsim calibrate`: measure this machine and write the profile the simulator reads."""

from __future__ import annotations

import json
from pathlib import Path

import click

from uvmsim.commands.flags import Command


@click.command(
    cls=Command, short_help="Measure this machine; write a hardware profile for --hardware."
)
@click.option(
    "-o", "--output", default="hardware.toml", show_default=True, metavar="FILE.toml",
    help="The profile; its raw tables go beside it as FILE.measurements.json.",
)  # fmt: skip
@click.option(
    "--backend", default="cuda", metavar="cuda|host",
    help="cuda (default), or host: memcpy in place of a GPU, to see that it all works.",
)  # fmt: skip
@click.option(
    "--base", default=None, metavar="H",
    help="Profile whose values stand in for what cannot be measured; h100 or the one like the GPU.",
)  # fmt: skip
@click.option("--quick", is_flag=True, help="Small sizes and few repetitions.")
@click.option(
    "--no-engine", is_flag=True,
    help="Leave out the replay engine's own runs: launches and waits are then sums of their parts.",
)  # fmt: skip
@click.option(
    "--no-policies", is_flag=True,
    help="Leave out the policies' own host time: they then decide in no time.",
)  # fmt: skip
@click.option(
    "--engine", default="replay", metavar="replay|llama.cpp",
    help="What runs on the machine: the replay engine (default), or llama.cpp itself.",
)  # fmt: skip
@click.option("--lib", metavar="PATH", help="llama.cpp: a libllama or its folder (a CUDA build); "
              "default: the capture extra's, which computes on the CPU.")  # fmt: skip
@click.option("--model", metavar="M.gguf", help="llama.cpp: sharpen the constants for this model "
              "by a few runs of it.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="llama.cpp: CPU threads; all cores.")
@click.option("--force", is_flag=True, help="Overwrite FILE.toml.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def calibrate(
    output: str, backend: str, base: str | None, quick: bool, no_engine: bool, no_policies: bool,
    engine: str, lib: str | None, model: str | None, threads: int | None, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Measure link, memory, kernels, faults, CPU and policies' host time of this machine (under 2
    minutes on a GPU; where policies were never run, two more to compile them).

    With --engine llama.cpp, llama.cpp itself then runs small models that uvmsim writes (random
    weights, several shapes and types), and the profile predicts llama.cpp: under 4 minutes.

    \b
    Examples:
      uvmsim calibrate -o mine.toml
      uvmsim compare T.arrow --hardware ./mine.toml
      uvmsim calibrate --backend host -o host.toml
      uvmsim calibrate --engine llama.cpp --lib build/bin --model M.gguf -o mine.toml
    """
    from replay.calibrate.calibration import calibrate as measure
    from replay.calibrate.calibration import write
    from replay.calibrate.policy_rows import TABLE as POLICIES
    from replay.calibrate.report import closest_preset, print_calibration
    from traces.errors import InputError
    from uvmsim.commands.compare import choose
    from uvmsim.machine.hardware import Hardware
    from uvmsim.report.progress import bar

    target = Path(output)
    if target.suffix != ".toml":
        raise InputError(f"-o {output}: the name must end in .toml")
    if not target.absolute().parent.is_dir():
        raise InputError(f"-o {output}: no such folder")
    if target.exists() and not force:
        raise InputError(f"-o {output}: is there already; give another name or --force")
    if base:
        Hardware.load(base)
    choose("--engine", engine, ("replay", "llama.cpp"))
    if engine == "llama.cpp":
        from replay.llama_cpp.command import calibrate as of_llama_cpp

        if backend != "cuda" or no_engine or no_policies:
            raise InputError(
                "--backend, --no-engine and --no-policies are for --engine replay; leave them out"
            )
        of_llama_cpp(target, lib, model, base, threads, quick, as_json)
        return
    given = {"--lib": lib, "--model": model, "--threads": threads}
    for flag, value in given.items():
        if value is not None:
            raise InputError(f"{flag}: is for --engine llama.cpp")
    with bar("calibrating") as progress:
        found = measure(
            backend, quick=quick or None, engine=not no_engine,
            without=(POLICIES,) if no_policies else (), progress=progress,
        )  # fmt: skip
    base = base or closest_preset(str(found.machine.get("gpu", "")))
    profile, tables = write(found, target, base)
    if as_json:
        made = {"profile": str(profile), "tables": str(tables), "base": base}
        click.echo(json.dumps(found.to_json() | made, sort_keys=True))
        return
    print_calibration(found, Hardware.load(str(profile)))
    seconds = sum(found.seconds.values())
    click.echo(f"measured in {seconds:.0f} s; wrote {profile} and {tables}")
