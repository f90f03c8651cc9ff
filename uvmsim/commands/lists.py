"""`uvmsim models`, `uvmsim hardware`: what can be named, and where its numbers come from."""

from __future__ import annotations

from typing import Any

import click


def _print_json(data: dict[str, Any]) -> None:
    import json

    click.echo(json.dumps(data, indent=2, sort_keys=True))


def _table(title: str, *columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        # Names and numbers stay whole; the explanation is what folds on a narrow terminal.
        table.add_column(column, no_wrap=i < len(columns) - 1, overflow="fold")
    return table


def _show(*parts: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    for part in parts:
        console.print(part)


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def models(name: str | None, as_json: bool) -> None:
    """List the model presets, or describe one.

    NAME is a preset, a .toml description or a .gguf file: its layers, experts, bytes, and the
    source of each number.
    """
    from uvmsim.machine.model import Model

    if name is not None:
        model = Model.load(name)
        _print_json(model.to_json()) if as_json else _show_model(model)
        return
    presets = Model.list_presets()
    loaded = {key: Model.load(key) for key in presets}
    if as_json:
        _print_json({"models": {key: m.to_json() for key, m in loaded.items()}})
        return
    from uvmsim.core.units import format_bytes

    table = _table("Models (uvmsim models NAME for sizes and sources)",
                   "name", "weights", "one expert", "read a token", "what it is")  # fmt: skip
    for key, m in loaded.items():
        sizes = (m.total_bytes, max(m.expert_bytes), m.active_bytes_per_token)
        table.add_row(key, *map(format_bytes, sizes), presets[key])
    _show(table)


def _show_model(m: Any) -> None:
    from uvmsim.core.units import format_bytes

    def exact(n: int) -> str:
        return f"{format_bytes(n)} ({n:,} B)" if n else "none"

    def spread(sizes: tuple[int, ...]) -> str:
        low, high = min(sizes), max(sizes)
        return exact(low) if low == high else f"{exact(low)} to {exact(high)}"

    table = _table(f"{m.name}: {m.summary}" if m.summary else m.name, "what", "value")
    moe = f"{len(m.moe_layers)} of {m.n_layers} blocks"
    moe += f" (blocks {m.moe_layers[0]} to {m.moe_layers[-1]})"
    for row in (
        ("architecture", m.architecture),
        ("MoE layers", moe),
        ("experts a layer", f"{m.n_experts}, top-{m.top_k}"),
        ("expert quantisation", m.quantisation),
        ("one expert", spread(m.expert_bytes)),
        ("all experts", exact(m.moe_bytes)),
        ("a block without experts", spread(m.dense_bytes)),
        ("final norm and LM head", exact(m.output_bytes)),
        ("token embedding", exact(m.embedding_bytes)),
        ("all weights", exact(m.total_bytes)),
        ("read for one token", exact(m.active_bytes_per_token)),
        ("KV cache of one token", exact(m.kv_bytes_per_token)),
        ("parameters", f"{m.total_params:,} ({m.active_params:,} used for a token)"),
    ):
        table.add_row(*row)
    sources = _table("Sources", "part", "source")
    for part, text in m.sources.items():
        sources.add_row(part, text)
    _show(table, sources)


@click.command()
@click.argument("name", required=False)
@click.option("--program", metavar="E", help="Another engine profile on it: preset or TOML file.")
@click.option(
    "--detect", is_flag=True, help="This machine, from what it reports; NAME auto is the same."
)
@click.option("--toml", "as_toml", is_flag=True, help="Print a complete .toml file to edit.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def hardware(
    name: str | None, program: str | None, detect: bool, as_toml: bool, as_json: bool
) -> None:
    """List the presets of hardware, of parts and of engines, or describe a machine and what runs on it.

    NAME is a preset or a .toml file, maybe with parts around it (rtx3090+pcie3+ddr4-3200x2), or auto:
    memory, link and CPU, then launch costs and kernels of its engine (or of the one that --program
    names), each with its source. Sources that begin with "estimate:" mark numbers that nobody measured.

    \b
    Examples:
      uvmsim hardware rtx3090+pcie4x8
      uvmsim hardware --detect --toml > mine.toml
      uvmsim compare T.arrow --hardware ./mine.toml
    """
    from traces.errors import InputError
    from uvmsim.machine.engine import EngineProfile
    from uvmsim.machine.hardware import Hardware
    from uvmsim.machine.parts import list_parts

    if detect:
        if name is not None:
            raise InputError(f"--detect: describes this machine; leave out {name}")
        name = "auto"
    if as_toml and (name is None or as_json):
        raise InputError("--toml: of one machine; `uvmsim hardware NAME --toml`")
    if name is not None:
        h = Hardware.load(name, program)
        if as_toml:
            click.echo(h.to_toml(), nl=False)
            return
        if as_json:
            _print_json(h.to_json())
            return
        machine = _table(f"{h.name}: {h.gpu}", "quantity", "value", "source")
        for row in h.quantities():
            machine.add_row(*row)
        engine = _table(f"engine {h.engine.name}", "quantity", "value", "source")
        for row in h.engine.quantities():
            engine.add_row(*row)
        _show(h.summary, machine, h.engine.summary, engine)
        return
    if program is not None:
        raise InputError(f"--program {program}: on which machine? `uvmsim hardware NAME --program`")
    presets = Hardware.list_presets()
    loaded = {key: Hardware.load(key) for key in presets}
    if as_json:
        engines = {key: EngineProfile.load(key).to_json() for key in EngineProfile.list_presets()}
        machines = {key: h.to_json() for key, h in loaded.items()}
        _print_json({"hardware": machines, "engines": engines})
        return
    from uvmsim.core.units import format_bytes, format_rate

    table = _table("Hardware (uvmsim hardware NAME for every number and its source)",
                   "name", "VRAM", "memory", "link (to GPU)", "what it is, its engine")  # fmt: skip
    for key, h in loaded.items():
        rates = (h.memory_bytes_per_s, h.h2d_bytes_per_s)
        vram = format_bytes(h.vram_bytes, binary=True)
        told = f"{presets[key]}; {h.engine.name}"
        table.add_row(key, vram, *map(format_rate, rates), told)
    around = _table("Parts around a card (NAME+PART+PART)", "name", "what it is")
    for key, summary in list_parts().items():
        around.add_row(key, summary)
    engines = _table("Engines (--program NAME)", "name", "what it is")
    for key, summary in EngineProfile.list_presets().items():
        engines.add_row(key, summary)
    _show(table, around, engines)
