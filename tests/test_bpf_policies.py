"""Compiled policies decide as the built-in ones of the same algorithm do, to the last count."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from bpf_programs import CLANG, SOURCES, compile_c, compiled, needs_clang

from uvmsim.policies.bpf.policy import load
from uvmsim.policies.pages.registry import parse_pages
from uvmsim.studies.decisions.info import info
from uvmsim.studies.decisions.parting import part
from uvmsim.studies.microbench.table import Options, run

KEPT = sorted(p.name.removesuffix(".bpf.o") for p in SOURCES.glob("*.o"))
"""Objects that are in the repository, so that something runs without clang."""


@pytest.fixture(scope="session")
def objects(tmp_path_factory):
    """An object by name: compiled now, or as it is kept."""
    folder = tmp_path_factory.mktemp("objects")

    def find(name):
        if CLANG is None and name in KEPT:
            return str(SOURCES / f"{name}.bpf.o")
        made = folder / f"{name}.bpf.o"
        return str(made if made.is_file() else compiled(name, folder))

    return find


PAIRS = [
    ("always_max", "", "prefetch_always_max"),
    ("stride", "", "prefetch_stride"),
    ("stride", ":options.threshold=1:options.pages=5:options.max_stride=16",
     "prefetch_stride:threshold=1:pages=5:max_stride=16"),
    ("lfu", "", "eviction_lfu"),
    ("fifo_chance", "", "eviction_fifo_chance"),
    ("fifo_chance", ":high=1:low=2:other=0", "eviction_fifo_chance:high=1:low=2:other=0"),
    ("pid_tree", ":thresholds[1000]=20:thresholds[1001]=80", "prefetch_pid_tree"),
    ("cross_block", "", "prefetch_cross_block_v2:mode=blind:evict=fifo"),
    ("tracer", "", "default"),
]  # fmt: skip


@pytest.mark.parametrize("name, settings, builtin", PAIRS, ids=[f"{a}{b}" for a, b, _ in PAIRS])
def test_decides_as_the_built_in_one(objects, name, settings, builtin):
    found = part(objects(name) + settings, builtin, events=50_000)
    assert found.first is None, found.first
    assert found.share == 1.0


@pytest.mark.parametrize("name", KEPT)
def test_kept_objects_decide_as_their_sources(name):
    twin = {a: c for a, b, c in PAIRS if not b}[name]
    assert part(str(SOURCES / f"{name}.bpf.o"), twin, events=20_000).first is None


RUNS = [
    (1, "stride", ":options.pages=4", "prefetch_stride:pages=4"),
    (1, "cross_block", "", "prefetch_cross_block_v2:mode=blind:evict=fifo"),
    (3, "fifo_chance", "", "eviction_fifo_chance"),
]


@pytest.mark.parametrize("tenants, name, settings, builtin", RUNS)
def test_same_run_of_the_driver(objects, tenants, name, settings, builtin):
    """Times and counters of a whole run, evictions among them."""
    policies = (objects(name) + settings, builtin)
    options = Options(
        policies=policies, vram="128MiB", ratios=(1.05 if tenants == 1 else 0.6,), tenants=tenants
    )
    mine, theirs = run(options).runs
    assert mine["evictions"] > 0
    assert {k: v for k, v in mine.items() if k not in ("policy", "notes")} == {
        k: v for k, v in theirs.items() if k not in ("policy", "notes")
    }


@needs_clang
def test_one_work_item_is_overwritten(objects):
    """With a single item a batch asks for one block: what it works on is what its map holds when it
    runs."""
    found = part(objects("cross_block"), objects("cross_block") + ":ring=256", events=20_000)
    assert found.equal["fault"] == found.questions["fault"]
    assert found.first["kind"] == "end of a batch"
    one, all_of_them = found.first["answers"]
    assert one.startswith("1 blocks")
    assert not all_of_them.startswith("1 blocks")


@needs_clang
def test_a_tracer_counts_and_decides_nothing(objects):
    policies = (objects("tracer"), "default")
    mine, theirs = run(Options(policies=policies, vram="128MiB", ratios=(1.05,))).runs
    assert mine["total_ms"] == theirs["total_ms"]
    records = mine["activations"] * 6  # a block is served six times, and accessed by the last five
    assert mine["notes"] == [
        f"{policies[0]}: {records:,} ring-buffer records were sent, and read by nobody"
    ]


@needs_clang
def test_info(objects):
    found = info(objects("fifo_chance"))
    assert found.operations == "gpu_mem_ops"
    assert {p["called"] for p in found.programs} == {
        "block_activate", "block_access", "evict_prepare",
    }  # fmt: skip
    assert found.maps == [
        {"name": "chances", "type": "ARRAY", "key": 4, "value": 4, "entries": 16384}
    ]
    assert found.helpers["bpf_gpu_block_move_tail"] >= 1
    assert found.fields["list_head.next"] and all(found.fields.values())
    assert found.resembles[0] == {"policy": "eviction_fifo_chance", "share": 1.0}


def test_joined_with_a_built_in_one(objects):
    spec = parse_pages(f"{objects('always_max')}+eviction_lfu")
    assert (spec.prefetch.object.operations, spec.order.name) == ("gpu_mem_ops", "eviction_lfu")


def test_commas_between_settings():
    from uvmsim.commands.flags import policy_list

    assert policy_list(["default,./x.bpf.o:a=1,b[2].c=0x3,lru", "./y.bpf.o"]) == (
        "default", "./x.bpf.o:a=1:b[2].c=0x3", "lru", "./y.bpf.o",
    )  # fmt: skip


def test_settings_reach_data_and_maps(objects):
    from uvmsim.policies.pages.base import PageContext

    policy = load(objects("stride"), ["options.pages=7", "current_block=0x1234"])
    import numpy as np

    state = policy.state(PageContext(4, 2, 1, np.zeros(1, np.int64), 0))
    assert (7).to_bytes(4, "little") in state.mem.tobytes()
    assert (0x1234).to_bytes(8, "little") in state.mem.tobytes()


def test_the_command_line(objects):
    """The installed command is tested by its module: exit code, one JSON object."""
    code = "import sys; from uvmsim.commands.bpf import bpf; bpf(sys.argv[1:])"
    command = [sys.executable, "-c", code, "diff", objects("always_max"), "prefetch_none",
               "--events", "1000", "--json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["first"]["event"] == 0
    assert told["equal"]["service"] == told["questions"]["service"]


FLAVOURS = """
#include "uvm.h"
struct uvm_va_block_struct___old {
	u64 padding[9];
	u64 end;
	u64 start;
} __attribute__((preserve_access_index));
u64 differs, same;

SEC("kprobe/uvm_perf_prefetch_get_hint_va_block")
int on_hint(struct pt_regs *regs)
{
	struct uvm_va_block_struct___old *old = (void *)regs->di;
	u64 start = 0;

	READ(start, old->start);
	if (start == start_of((void *)old) && start >> 40)
		same += 1;
	else
		differs += 1;
	return 0;
}

SEC("struct_ops/gpu_page_prefetch")
int on_fault(u64 *ctx)
{
	uvm_va_block_region_t *result = (void *)ctx[3];

	bpf_gpu_set_prefetch_region(result, 0, differs ? 1 : same ? 512 : 2);
	return BYPASS;
}

SEC(".struct_ops")
struct gpu_mem_ops flavours = { .gpu_page_prefetch = (void *)on_fault };
"""


@needs_clang
def test_flavours_of_a_structure_are_relocated(tmp_path):
    (tmp_path / "x.c").write_text(FLAVOURS)
    compile_c(tmp_path / "x.c", tmp_path / "x.bpf.o")
    assert part(str(tmp_path / "x.bpf.o"), "prefetch_always_max", events=2_000).first is None


JANUARY = """
#include "uvm.h"
extern void bpf_uvm_set_va_block_region(uvm_va_block_region_t *, u64, u64) __ksym;
extern void bpf_uvm_pmm_chunk_move_tail(uvm_gpu_chunk_t *, struct list_head *) __ksym;
extern void bpf_uvm_pmm_chunk_move_head(uvm_gpu_chunk_t *, struct list_head *) __ksym;
struct uvm_gpu_ext {
	int (*uvm_bpf_test_trigger_kfunc)(const char *, int);
	int (*uvm_prefetch_before_compute)(u64 *);
	int (*uvm_pmm_chunk_activate)(u64 *);
	int (*uvm_pmm_chunk_used)(u64 *);
};
SEC("struct_ops/uvm_bpf_test_trigger_kfunc") int test(u64 *ctx) { return 0; }
SEC("struct_ops/uvm_prefetch_before_compute") int fault(u64 *ctx)
{
	uvm_va_block_region_t *most = (void *)ctx[2];
	bpf_uvm_set_va_block_region((void *)ctx[3], most->first, most->outer);
	return 1;
}
SEC("struct_ops/uvm_pmm_chunk_activate") int activate(u64 *ctx)
{
	bpf_uvm_pmm_chunk_move_tail((void *)ctx[1], (void *)ctx[2]);
	return 1;
}
SEC("struct_ops/uvm_pmm_chunk_used") int access(u64 *ctx)
{
	bpf_uvm_pmm_chunk_move_head((void *)ctx[1], (void *)ctx[2]);
	return 1;
}
SEC("uprobe//usr/lib/libcuda.so:cuLaunchKernel") int launched(void *ctx) { return 0; }
SEC(".struct_ops") struct uvm_gpu_ext old = {
	.uvm_bpf_test_trigger_kfunc = (void *)test, .uvm_prefetch_before_compute = (void *)fault,
	.uvm_pmm_chunk_activate = (void *)activate, .uvm_pmm_chunk_used = (void *)access,
};
"""


@needs_clang
def test_names_of_january(tmp_path):
    """And what is never called is a note."""
    (tmp_path / "x.c").write_text(JANUARY)
    path = tmp_path / "x.bpf.o"
    compile_c(tmp_path / "x.c", path)
    policies = (str(path), "prefetch_always_max+eviction_mru")
    mine, theirs = run(Options(policies=policies, vram="128MiB", ratios=(1.05,))).runs
    assert (mine["total_ms"], mine["evictions"]) == (theirs["total_ms"], theirs["evictions"])
    (note,) = mine["notes"]
    assert (
        note == f"{path}: never called here: uprobe//usr/lib/libcuda.so:cuLaunchKernel (launched)"
    )


def test_compiled_code_is_kept_on_disk(objects):
    """Nothing of an object is unknown to the digest that names its entry."""
    from uvmsim.paging.bind import bind

    kind = type(parse_pages(objects("always_max")).prefetch)
    assert bind(kind, kind, False).note is None
