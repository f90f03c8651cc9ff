"""`uvmsim memory`: where llama.cpp puts every byte of a model."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from traces.errors import InputError
from uvmsim.commands.flags import Command

if TYPE_CHECKING:
    from uvmsim.machine.hardware import Hardware
    from uvmsim.machine.llamacpp import Fit, MemoryPlan


def _numbers(text: str, flag: str) -> list[int]:
    """``"8k,32768"`` -> ``[8192, 32768]``"""
    out = []
    for part in text.split(","):
        digits, factor = part.strip().lower(), 1
        if digits.endswith("k"):
            digits, factor = digits[:-1], 1024
        if not digits.isdecimal():
            raise InputError(
                f"{flag} {text}: {part.strip()!r} is no whole number; like 8192 or 8k,32k"
            )
        out.append(int(digits) * factor)
    return out


def _override(text: str) -> tuple[str, str]:
    pattern, equals, device = text.rpartition("=")
    if not equals or not pattern:
        raise InputError(f"-ot {text}: like 'ffn_up_exps=CPU'")
    return pattern, device


@click.command(cls=Command)
@click.argument("model")
@click.option(
    "--ctx",
    "n_ctx",
    default="4096",
    metavar="N[,N...]",
    help="Positions of context over all sequences; 8k is 8,192. Several are compared.",
)
@click.option(
    "--ncmoe",
    "n_cpu_moe",
    default="0",
    metavar="N[,N...]",
    help="Experts of the first N blocks stay in host memory. Several are compared.",
)
@click.option("--ngl", "n_gpu_layers", type=int, help="Last blocks on the GPU; all by default.")
@click.option(
    "-ot",
    "--override-tensor",
    "overrides",
    multiple=True,
    metavar="REGEX=CPU|CUDA0",
    help="Tensors that go elsewhere, as llama.cpp's -ot. May be given several times.",
)
@click.option(
    "--moe-cache-mib",
    default="0",
    metavar="N[,N...]",
    help="llama.cpp's expert cache. Several are compared.",
)
@click.option("--ubatch", "n_ubatch", default=512, show_default=True, help="Tokens a micro-batch.")
@click.option("--batch", "n_batch", default=2048, show_default=True, help="Tokens a batch.")
@click.option(
    "--parallel", "n_seq_max", default=1, show_default=True, help="Sequences at once (-np)."
)
@click.option("--kv", "kv_type", metavar="TYPE", help="Type of the K and V cache, e.g. q8_0; f16.")
@click.option("--flash-attention", default="auto", type=click.Choice(("auto", "on", "off")))
@click.option("--no-mmap", is_flag=True, help="Weights in host memory are read and page-locked.")
@click.option(
    "--no-op-offload", is_flag=True, help="Prefill on weights in host memory: on the CPU."
)
@click.option(
    "--server", is_flag=True, help="Logits for one token a sequence, as llama-server asks."
)
@click.option("--no-flash-kernels", is_flag=True, help="A build with -DGGML_CUDA_FA=OFF.")
@click.option("--cpu-only", is_flag=True, help="A build without CUDA.")
@click.option("--hardware", metavar="H", help="Does it fit? A preset or a .toml description.")
@click.option(
    "--reserve",
    metavar="SIZE",
    help="Left free on the GPU; 1GiB, more for micro-batches above 512.",
)
@click.option("--tensors", is_flag=True, help="List every tensor with its place and why.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def memory(
    model: str, n_ctx: str, n_cpu_moe: str, n_gpu_layers: int | None, overrides: tuple[str, ...],
    moe_cache_mib: str, n_ubatch: int, n_batch: int, n_seq_max: int, kv_type: str | None,
    flash_attention: str, no_mmap: bool, no_op_offload: bool, server: bool, no_flash_kernels: bool,
    cpu_only: bool,
    hardware: str | None, reserve: str | None, tensors: bool, as_json: bool,
) -> None:  # fmt: skip
    """What llama.cpp (b11549) allocates for MODEL, on the GPU and in host memory, without running it.

    MODEL is a .gguf file (the first part of a split one), a preset or a .toml description. Weights,
    KV cache, compute buffers, logits and the expert cache's banks are those llama.cpp reports; what the
    driver takes beside them is not in it: that is what --reserve is for.

    \b
      uvmsim memory M.gguf --ctx 32k --ncmoe 24
      uvmsim memory gpt-oss-120b --ncmoe 0,18,36 --ctx 8k,32k --hardware rtx4090
    """
    from uvmsim.core.units import parse_bytes
    from uvmsim.machine.hardware import Hardware
    from uvmsim.machine.llamacpp import LlamaConfig, LlamaModel, fits
    from uvmsim.machine.llamacpp import memory as plan_of

    loaded = LlamaModel.load(model)
    kind = (kv_type or "f16").lower()
    plans = [
        plan_of(
            loaded,
            LlamaConfig(
                n_gpu_layers=n_gpu_layers, n_cpu_moe=ncmoe, n_ctx=ctx, n_ubatch=n_ubatch,
                overrides=tuple(map(_override, overrides)), n_batch=n_batch, n_seq_max=n_seq_max,
                type_k=kind, type_v=kind, flash_attention=flash_attention, mmap=not no_mmap,
                op_offload=not no_op_offload, moe_cache_mib=cache, gpu=not cpu_only,
                flash_kernels=not no_flash_kernels,
                n_outputs_max=n_seq_max if server else 0,
            ),
        )
        for ctx, ncmoe, cache in itertools.product(
            _numbers(n_ctx, "--ctx"), _numbers(n_cpu_moe, "--ncmoe"),
            _numbers(moe_cache_mib, "--moe-cache-mib"),
        )
    ]  # fmt: skip
    left = None if reserve is None else parse_bytes(reserve)
    machine = None if hardware is None else Hardware.load(hardware)
    fitted = [None if machine is None else fits(p, machine, left) for p in plans]
    if as_json:
        _print_json(plans, fitted, machine)
    elif len(plans) == 1:
        _show_one(plans[0], fitted[0], machine, tensors)
    else:
        _show_many(plans, fitted, machine)


def _print_json(
    plans: list[MemoryPlan], fitted: list[Fit | None], machine: Hardware | None
) -> None:
    import json

    told = [
        p.to_json() | ({"fit": asdict(f)} if f else {}) for p, f in zip(plans, fitted, strict=True)
    ]
    data: dict[str, Any] = {"plans": told}
    if machine is not None:
        data["hardware"] = machine.name
    click.echo(json.dumps(data, indent=2, sort_keys=True))


def _table(*columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def _mib(n: int) -> str:
    return f"{n / (1 << 20):,.2f}" if n else "-"


def _whole(n: int) -> str:
    """MiB, rounded up."""
    return f"{-(-n // (1 << 20)):,}" if n else "-"


def _verdict(f: Fit, machine: Hardware) -> str:
    from uvmsim.core.units import format_bytes

    def size(n: int) -> str:
        return format_bytes(n, binary=True)

    total = f"{machine.name}: {size(machine.vram_bytes)} of VRAM, {size(f.reserve)} set aside"
    if f.spare < 0:
        return f"does not fit {total}: {size(-f.spare)} too much"
    if f.host_spare is not None and f.host_spare < 0:
        return f"fits {total}, but host memory lacks {size(-f.host_spare)}"
    return f"fits {total}: {size(f.spare)} to spare"


def _show_one(p: MemoryPlan, f: Fit | None, machine: Hardware | None, tensors: bool) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    c = p.config
    each = f"{c.n_ctx:,} positions, micro-batches of {c.n_ubatch}"
    console.print(f"{p.model.name} in llama.cpp, {each}; MiB")
    table = _table("what", "GPU", "host")
    for name, kind in (
        ("weights", "weights"), ("KV cache", "kv_cache"), ("compute buffers", "compute"),
        ("logits", "output"), ("expert cache", "moe_cache"), ("all", "total"),
    ):  # fmt: skip
        table.add_row(name, _mib(getattr(p.gpu, kind)), _mib(getattr(p.host, kind)))
    console.print(table)
    lines = [f"flash attention {'on' if p.flash_attention else 'off'}"]
    if p.mapped_bytes:
        lines.append(
            f"host weights are mapped; llama.cpp reports {_mib(p.mapped_bytes)} MiB of the file"
        )
    lines += _experts_told(p)
    copied = _copied(p)
    if copied:
        lines.append(f"a prompt copies up to {_mib(copied)} MiB of weights at a time to the GPU")
    for g in p.cache.groups:
        blocks = f"{len(g.blocks)} blocks of the expert cache"
        lines.append(f"{blocks}: {g.slots:,} slots, {_mib(g.bank_bytes)} MiB")
    for line in lines:
        console.print(line)
    if f is not None and machine is not None:
        console.print(_verdict(f, machine))
    for note in p.notes:
        console.print(f"note: {note}")
    if tensors:
        listed = _table("tensor", "type", "MiB", "where", "why")
        for t in p.placed:
            listed.add_row(t.tensor.name, t.tensor.type, _mib(t.n_bytes), t.device, t.rule)
        console.print(listed)


def _experts_told(p: MemoryPlan) -> list[str]:
    """Experts by side, blocks that are alike together."""
    out = []
    for side in ("gpu", "host"):
        blocks = [e for e in p.experts if getattr(e, side)]
        if blocks:
            total = sum(getattr(e, side) for e in blocks)
            spans = _spans([e.block for e in blocks])
            out.append(f"experts {'on the GPU' if side == 'gpu' else 'in host memory'}: "
                       f"{_mib(total)} MiB of blocks {spans}")  # fmt: skip
    return out


def _spans(blocks: list[int]) -> str:
    parts: list[list[int]] = []
    for b in blocks:
        if parts and b == parts[-1][1] + 1:
            parts[-1][1] = b
        else:
            parts.append([b, b])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _copied(p: MemoryPlan) -> int:
    """The most weight bytes that one split copies to the GPU."""
    names = {t.tensor.name for t in p.placed if t.device == "host"}
    return max(
        (sum(n for name, n in s.inputs if name in names) for s in p.prompt.splits if s.gpu),
        default=0,
    )


def _show_many(plans: list[MemoryPlan], fitted: list[Fit | None], machine: Hardware | None) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.print(f"{plans[0].model.name} in llama.cpp, MiB on the GPU and in host memory")
    columns: dict[str, list[str]] = {
        "ctx": [f"{p.config.n_ctx:,}" for p in plans],
        "ncmoe": [str(p.config.n_cpu_moe) for p in plans],
        "cache": [str(p.config.moe_cache_mib) for p in plans],
        "weights": [_whole(p.gpu.weights) for p in plans],
        "KV": [_whole(p.gpu.kv_cache) for p in plans],
        "compute": [_whole(p.gpu.compute) for p in plans],
        "banks": [_whole(p.gpu.moe_cache) for p in plans],
        "VRAM": [_whole(p.vram_bytes) for p in plans],
        "host": [_whole(p.host_bytes) for p in plans],
    }
    if machine is not None:
        columns["fits"] = ["yes" if f and f.fits else "no" for f in fitted]
    for name in ("cache", "banks"):
        if not any(p.config.moe_cache_mib for p in plans):
            del columns[name]
    table = _table(*columns)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    console.print(table)
    if machine is not None and fitted[0] is not None:
        vram, kept = machine.vram_bytes >> 20, fitted[0].reserve >> 20
        console.print(f"{machine.name}: {vram:,} MiB of VRAM, {kept:,} MiB set aside")
    for note in plans[0].notes:
        console.print(f"note: {note}")
