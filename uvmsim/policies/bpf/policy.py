"""A compiled object as a page policy."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from traces.errors import InputError
from uvmsim.bpf import live
from uvmsim.bpf import state as st
from uvmsim.bpf.layout import fields_read, fill_owners, layout_of, tree_bytes
from uvmsim.bpf.object import Code, Object
from uvmsim.bpf.object import load as load_object
from uvmsim.bpf.room import new_state, plan_of
from uvmsim.bpf.translate import Translated, calls_of, translate
from uvmsim.policies.bpf import hooks, settings
from uvmsim.policies.bpf.kernel_functions import KERNEL_FUNCTIONS, REGION_STEP
from uvmsim.policies.pages.base import PageContext, PagePolicy

OPERATIONS = {
    "uvm_prefetch_before_compute": "page_prefetch", "gpu_page_prefetch": "page_prefetch",
    "uvm_prefetch_on_tree_iter": "page_prefetch_iter", "gpu_page_prefetch_iter": "page_prefetch_iter",
    "uvm_pmm_chunk_activate": "block_activate", "gpu_block_activate": "block_activate",
    "uvm_pmm_chunk_used": "block_access", "gpu_block_access": "block_access",
    "uvm_pmm_eviction_prepare": "evict_prepare", "gpu_evict_prepare": "evict_prepare",
}  # fmt: skip
"""Members of struct uvm_gpu_ext and of struct gpu_mem_ops, and the hooks that they are."""
TESTS = frozenset({"uvm_bpf_test_trigger_kfunc", "gpu_test_trigger"})
"""Members that only a test calls."""
PROBES = {
    "uvm_perf_prefetch_get_hint_va_block": "probe_hint",
    "uvm_bpf_call_before_compute_prefetch": "probe_page_prefetch",
    "uvm_bpf_call_gpu_page_prefetch": "probe_page_prefetch",
    "uvm_bpf_call_pmm_chunk_activate": "probe_block_activate",
    "uvm_bpf_call_gpu_block_activate": "probe_block_activate",
    "uvm_bpf_call_pmm_chunk_used": "probe_block_access",
    "uvm_bpf_call_gpu_block_access": "probe_block_access",
    "uvm_bpf_call_pmm_eviction_prepare": "probe_evict_prepare",
    "uvm_bpf_call_gpu_evict_prepare": "probe_evict_prepare",
}
"""Functions of the driver whose kprobes are called, and when."""
SCHEDULING = ("bpf_nv_gpu_preempt_tsg", "bpf_nv_gpu_set_timeslice")
MIGRATE = "bpf_gpu_migrate_range"


class BpfPolicy(PagePolicy):
    """The programs of an object. Each object is a class of its own, made by `class_of`."""

    object: ClassVar[Object]
    translated: ClassVar[Translated]
    attached: ClassVar[dict[str, list[int]]]
    """Groups of functions that are called: hooks, and ``probe_...``."""
    silent: ClassVar[list[Code]]
    """Functions that nothing calls here: uprobes and the like."""

    def __init__(self) -> None:
        self.settings: list[settings.Setting] = []

    def state(self, ctx: PageContext) -> st.State:  # type: ignore[override]
        """The object's maps and data, with its settings."""
        made = self.object
        layout = layout_of(made.btf)
        sizes = (
            tree_bytes(made.btf), ctx.n_chunks * layout.chunk_bytes, 128,
            ctx.n_blocks * layout.block_bytes, ctx.n_tenants * layout.owner_bytes, 3 * REGION_STEP,
        )  # fmt: skip
        words = layout.words
        words[live.N_BLOCKS], words[live.N_CHUNKS] = ctx.n_blocks, ctx.n_chunks
        state = new_state(made, sizes, words, ctx.seed)
        fill_owners(state, made.btf, layout, ctx.n_tenants)
        for setting in self.settings:
            settings.apply(made, state, setting)
        return state

    def notes(self, state: Any) -> list[str]:
        """What a run of it did not do, and what it did that shows nowhere."""
        return list(_notes(self.object, self.silent, state))

    def explain(self, state: Any, err: Exception) -> str:
        """Where in the object a fault was."""
        kind = int(state.n[st.FAULT])
        if kind == st.NO_FAULT:
            return super().explain(state, err)
        number, at = int(state.n[st.FAULT_AT]) >> 20, int(state.n[st.FAULT_AT]) & 0xFFFFF
        place = self.object.place(self.object.functions[number], at)
        where = f"{int(state.n[st.FAULT_ADDRESS]) & (1 << 64) - 1:#x}"
        told = {
            st.BAD_ACCESS: f"reads beyond the end of its memory, at {where}",
            st.BAD_STORE: f"writes outside its memory, at {where}",
            st.NO_BUDGET: f"loops more than {hooks.LIMIT:,} times in one call",
            st.BAD_MAP: f"uses {where} as a map, which it is not",
        }[np.int64(kind)]
        return f"{place}: {told}"


def _notes(made: Object, silent: list[Code], s: st.State) -> Any:
    n = s.n
    if silent:
        named = ", ".join(sorted({f"{f.section} ({f.name})" for f in silent}))
        yield f"{made.path}: never called here: {named}"
    unknown = [name for name, known in fields_read(made).items() if not known]
    if unknown:
        yield f"{made.path}: reads what the model does not have, and gets 0: {', '.join(unknown)}"
    if n[st.MISSED]:
        yield f"{made.path}: {int(n[st.MISSED]):,} loads of addresses that hold nothing gave 0"
    if n[st.DENIED]:
        yield f"{made.path}: {int(n[st.DENIED]):,} updates of full maps were refused"
    if n[st.SENT]:
        yield f"{made.path}: {int(n[st.SENT]):,} ring-buffer records were sent, and read by nobody"
    if n[st.UNDONE]:
        yield f"{made.path}: more than {st.WORK_ITEMS} work items; the others never ran"


def load(text: str, given: list[str]) -> BpfPolicy:
    """The policy of an object, with ``NAME=VALUE`` settings. Raises `InputError`."""
    try:
        stamp = Path(text).stat()
    except OSError:
        raise InputError(f"policy {text}: no such file") from None
    policy = class_of(text, stamp.st_mtime_ns, stamp.st_size)()
    policy.settings = [settings.parse(policy.object, setting) for setting in given]
    return policy


@functools.lru_cache(maxsize=64)
def class_of(path: str, *stamp: int) -> type[BpfPolicy]:
    """The class of an object. ``stamp``: whatever changes when the file does."""
    made = load_object(path)
    attached, silent = attachments(made)
    plan = plan_of(made)
    translated = translate(made, attached, KERNEL_FUNCTIONS, plan.data)
    names = {g.removeprefix("probe_") for g in attached if g != "probe_hint"}
    if "probe_hint" in attached:
        names.add("page_prefetch")
    if translated.works:
        names.add("after_batch")
    body: dict[str, Any] = {
        name: staticmethod(hooks.bound(name, translated.groups, translated.work))
        for name in sorted(names)
    }
    calls = calls_of(made)
    body |= {
        "__doc__": f"The programs of {path}.", "__module__": __name__, "object": made,
        "translated": translated, "attached": attached, "silent": silent,
        "migrates": bool(translated.works) or any(
            MIGRATE in calls.kernel[n] for n in translated.functions
        ),
    }  # fmt: skip
    return type(Path(path).name, (BpfPolicy,), body)


def attachments(made: Object) -> tuple[dict[str, list[int]], list[Code]]:
    """Functions by when they are called, and those that nothing calls. Raises `InputError` where
    there is nothing to call."""
    groups: dict[str, list[int]] = {}
    used: set[int] = set()
    for member, number in made.hooks.items():
        if member in OPERATIONS:
            groups.setdefault(OPERATIONS[member], []).append(number)
        elif member not in TESTS:
            raise InputError(
                f"{made.path}: {made.operations or 'struct_ops'}.{member} is no hook of the memory "
                f"driver; it has {', '.join(m for m in OPERATIONS if m.startswith('gpu'))}"
            )
        used.add(number)
    for f in made.attached("kprobe"):
        target = f.section.partition("/")[2].partition("+")[0]
        if target in PROBES:
            groups.setdefault(PROBES[target], []).append(f.number)
            used.add(f.number)
    silent = [
        f for f in made.functions
        if f.number not in used and not f.section.startswith((".text", "struct_ops"))
    ]  # fmt: skip
    if not groups:
        named = ", ".join(sorted({f.section for f in silent})) or "nothing"
        why = "attaches to " + named + ": not a memory policy"
        raise InputError(f"{made.path}: {why}; it needs struct_ops of struct gpu_mem_ops")
    return dict(sorted(groups.items())), silent
