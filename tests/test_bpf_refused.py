"""Objects are anybody's: broken ones are one line, and no program leaves its memory or its budget."""

from __future__ import annotations

import random
import struct
import subprocess
import sys

import numpy as np
import pytest
from bpf_programs import EXIT, SOURCES, Both, compile_c, instruction, lddw, needs_clang
from naive_bpf import Fault

from traces.errors import InputError
from uvmsim.bpf.memory import BpfFault
from uvmsim.bpf.object import load as load_object
from uvmsim.bpf.places import CONTEXT, address_of
from uvmsim.policies.bpf.policy import class_of, load
from uvmsim.policies.pages.base import PageContext

WHOLE = (SOURCES / "fifo_chance.bpf.o").read_bytes()


def used(path) -> None:
    """All that happens to an object before it is compiled."""
    policy = class_of.__wrapped__(str(path))()
    policy.state(PageContext(4, 2, 1, np.zeros(1, np.int64), 0))


def test_broken_files_are_one_line(tmp_path):
    rng = random.Random(3)
    path = tmp_path / "x.bpf.o"
    refused = 0
    for i in range(400):
        data = bytearray(WHOLE)
        if i % 4 == 0:
            data = data[: rng.randrange(len(data))]
        for _ in range(rng.choice([1, 1, 3, 20])):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            used(path)
        except InputError as err:
            refused += 1
            assert "\n" not in str(err) and str(path) in str(err)
    assert refused > 100


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"#!/bin/sh\n", b"\x7fELF" + bytes(100)])
def test_what_is_no_object(tmp_path, data):
    path = tmp_path / "x.bpf.o"
    path.write_bytes(data)
    with pytest.raises(InputError, match="ELF"):
        load_object(path)


def test_the_command_line_says_it_in_one_line(tmp_path):
    path = tmp_path / "x.bpf.o"
    path.write_bytes(WHOLE[:700])
    code = "from uvmsim.cli import main; main()"
    command = [sys.executable, "-c", code, "microbench", "--policy", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


HEAD = '#include "uvm.h"\n'
HOOK = 'SEC("struct_ops/gpu_page_prefetch") int p(u64 *ctx) { %s }\n'
OPS = 'SEC(".struct_ops") struct gpu_mem_ops o = { .gpu_page_prefetch = (void *)p };\n'
REFUSED = {
    "stack trace": (
        "static long (*get_stack)(void *, void *, u32, u64) = (void *)67;\n"
        + HOOK % "return get_stack(ctx, ctx, 8, 0);" + OPS,
        "calls bpf_get_stack, which is not simulated",
    ),
    "unknown helper": (
        "static long (*x)(void) = (void *)999;\n" + HOOK % "return x();" + OPS,
        "calls helper number 999, which is not simulated",
    ),
    "kernel function": (
        "extern int bpf_nv_gpu_preempt_tsg(u64) __ksym;\n"
        + HOOK % "return bpf_nv_gpu_preempt_tsg(ctx[0]);" + OPS,
        "calls bpf_nv_gpu_preempt_tsg, which is not simulated",
    ),
    "map type": (
        "struct { __uint(type, 11); __uint(max_entries, 4); __type(key, u64); __type(value, u64); }"
        ' trie SEC(".maps");\n'
        + HOOK % "u64 k = 0; return bpf_map_lookup_elem(&trie, &k) != 0;" + OPS,
        "map 'trie': BPF_MAP_TYPE_LPM_TRIE is not supported",
    ),
    "uprobe": (
        'SEC("uprobe//usr/lib/libcuda.so:cuLaunchKernel") int u(void *ctx) { return 0; }\n',
        "attaches to uprobe//usr/lib/libcuda.so:cuLaunchKernel: not a memory policy",
    ),
    "recursion": (
        "static __noinline int f(u64 n) {"
        " return n > 99 ? 0 : f(n + n + 1) ^ f(n * 3 + bpf_get_prandom_u32()); }\n"
        + HOOK % "return f(ctx[0]);" + OPS,
        "calls itself",
    ),
    "other operations": (
        'struct tcp_ops { int (*init)(u64 *); };\nSEC("struct_ops/init") int p(u64 *c) { return 0; }\n'
        'SEC(".struct_ops") struct tcp_ops o = { .init = p };\n',
        "tcp_ops.init is no hook of the memory driver",
    ),
    "kernel variable": (
        "extern int jiffies_x __ksym;\n" + HOOK % "return jiffies_x;" + OPS, "needs 'jiffies_x'",
    ),
}  # fmt: skip


@needs_clang
@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_run_is_named(tmp_path, name):
    text, told = REFUSED[name]
    (tmp_path / "x.c").write_text(HEAD + text)
    compile_c(tmp_path / "x.c", tmp_path / "x.bpf.o")
    with pytest.raises(InputError) as err:
        used(tmp_path / "x.bpf.o")
    assert told in str(err.value) and "\n" not in str(err.value)


@pytest.mark.parametrize(
    "setting, told",
    [
        ("nothing=1", "no variable or map 'nothing'"), ("hihg=1", "did you mean 'high'?"),
        ("high=x", "'x' is not a whole number"), ("high", "expected NAME=NUMBER"),
        ("high=4294967296", "does not fit into 4 bytes"), ("chances[16384]=1", "elements 0 to 16383"),
        ("high[1]=1", "not an array"), ("chances.x=1", "no field 'x'"),
    ],
)  # fmt: skip
def test_settings_that_are_none(setting, told):
    with pytest.raises(InputError) as err:
        load(str(SOURCES / "fifo_chance.bpf.o"), [setting])
    assert told in str(err.value)


LEAVES = {
    "reads above the stack": instruction(0x79, 2, 4, 8 * 512),
    "writes above the stack": instruction(0x7B, 4, 2, 8 * 512),
    "reads beyond a value": instruction(0x79, 2, 0, 8),
    "writes beyond a value": instruction(0x7B, 0, 2, 8),
    "atomic beyond a value": instruction(0xDB, 0, 2, 8),
    "writes to the arguments": instruction(0x7B, 1, 2, 0),
    "writes through null": instruction(0xB7, 5) + instruction(0x7B, 5, 2, 0),
    "writes anywhere": lddw(5, 0x1234567812345678) + instruction(0x7B, 5, 2, 0),
    "writes to the driver's memory": lddw(5, 0xFFFF_8886_0000_0000) + instruction(0x7B, 5, 2, 0),
    "no map": lddw(1, 5) + instruction(0xBF, 2, 10) + instruction(0x07, 2, 0, 0, -8)
    + instruction(0x85, imm=1),
    "helper writes anywhere": instruction(0xB7, 1) + instruction(0xB7, 2, imm=8)
    + instruction(0xBF, 3, 10) + instruction(0x07, 3, 0, 0, -8) + instruction(0x85, imm=113),
}  # fmt: skip


@pytest.mark.parametrize("name", LEAVES)
def test_no_program_leaves_its_memory(name):
    code = [
        instruction(0xBF, 9, 1), instruction(0x62, 10, 0, -4, 0), lddw(1, 0), instruction(0xBF, 2, 10),
        instruction(0x07, 2, 0, 0, -4), instruction(0x85, imm=1), instruction(0xBF, 1, 9),
        instruction(0xBF, 4, 10), instruction(0xB7, 2, imm=7), LEAVES[name], instruction(0xB7, 0), EXIT,
    ]  # fmt: skip
    both = Both([b"".join(code)], {(0, 2): ("map", 0)}, [(2, 4, 8, 1)])
    before = both.state.mem.copy()
    with pytest.raises(BpfFault):
        both.call()
    with pytest.raises(Fault):
        both.naive.run(0, [address_of(CONTEXT)])
    changed = np.flatnonzero(both.state.mem != before)
    stack = both.state.seg[1]
    assert ((changed >= stack[0]) & (changed < stack[0] + stack[1])).all()


def hostile(rng: random.Random) -> list[bytes]:
    """Accesses through any register, helpers with anything as arguments, jumps over parts of it."""
    rows = [instruction(0xBF, 9, 1), instruction(0xBF, 8, 10)]
    rows += [instruction(0x79, r, 1, 8 * r) for r in (2, 3, 4, 5)]
    rows += [lddw(6, 0), instruction(0xBF, 7, 10), instruction(0x07, 7, imm=-16)]
    for _ in range(16):
        a, b, pick = rng.randrange(6), rng.choice([7, 7, 8, 8, 10, 2, 3, 0]), rng.random()
        off = rng.choice([-8, -8, -8, -16, -24, -512, 504, 4088, 32767])
        if pick < 0.35:
            frame = min(max(off, -512), -8) if b == 10 else off
            rows.append(instruction(rng.choice([0x61, 0x69, 0x71, 0x79]), a, b, frame))
        elif pick < 0.5:
            frame = min(max(off, -512), -8) if b == 10 else off
            rows.append(instruction(rng.choice([0x63, 0x6B, 0x73, 0x7B, 0xDB]), b, a, frame))
        elif pick < 0.7:
            rows.append(instruction(0xBF, a, b))
            rows.append(
                instruction(rng.choice([0x07, 0x67, 0x77, 0x57]), a, imm=rng.randrange(1, 60))
            )
        elif pick < 0.85:
            rows.append(instruction(0xBF, rng.choice([1, 2, 3]), rng.choice([6, 7, 8, 9, 10])))
        else:
            rows.append(instruction(0x15, a, 0, 1, 0))
            rows.append(instruction(0x85, imm=rng.choice([1, 2, 3, 113])))
    return [b"".join([*rows, EXIT])]


@pytest.mark.parametrize("seed", range(3))
def test_hostile_programs_do_what_the_interpreter_says(seed):
    """Fault for fault, and nothing changes that is not theirs."""
    rng = random.Random(seed)
    both = Both(hostile(rng), {(0, 6): ("map", 0)}, [(1, 8, 8, 4)])
    own = np.zeros(len(both.state.mem), bool)
    for start, _, n in both.state.seg:
        own[start : start + n] = True
    faults = 0
    for _ in range(300):
        pool = [0, 1, 8, 1 << 63, rng.getrandbits(64)]
        pool += [address_of(rng.randrange(14), rng.randrange(1 << 12)) for _ in range(8)]
        both.context(struct.pack("<16Q", *(rng.choice(pool) for _ in range(16))))
        before = both.state.mem.copy()
        try:
            both.naive.run(0, [address_of(CONTEXT)])
        except Fault:
            faults += 1
            with pytest.raises(BpfFault):
                both.run_translated()
        else:
            both.run_translated()
            both.compare()
        assert (before == both.state.mem)[~own].all()
        both.compare_memory()
    assert faults > 0


def test_loads_of_nothing_give_zero():
    code = lddw(2, 0xFFFF_0000_0000_0000) + instruction(0x79, 0, 2) + EXIT
    Both([code]).call()


def test_no_loop_is_endless():
    endless = instruction(0xB7, 0) + instruction(0x07, 0, imm=1) + instruction(0x05, off=-2)
    both = Both([endless], steps=1000)
    with pytest.raises(BpfFault):
        both.call()


@pytest.mark.parametrize(
    "code, told",
    [
        (instruction(0xB7, 0), "runs past its end"), (instruction(0x05, off=5) + EXIT, "jump out"),
        (instruction(0x05, off=1) + lddw(0, 1) + EXIT, "into an instruction"),
        (instruction(0xB7, 10) + EXIT, "frame pointer"), (instruction(0xB7, 11) + EXIT, "register r11"),
        (instruction(0x7B, 10, 1, -516) + EXIT, "outside the frame"),
        (instruction(0x7B, 10, 1, -4) + EXIT, "outside the frame"),
        (instruction(0x20) + EXIT, "read packets"), (instruction(0xF7) + EXIT, "unknown instruction"),
        (instruction(0x67, 1, imm=64) + EXIT, "shifts by 64"), (instruction(0xE5) + EXIT, "may_goto"),
        (instruction(0x85, src=1) + EXIT, "calls a kernel function without its name"),
    ],
)  # fmt: skip
def test_instructions_that_are_none(code, told):
    if "without its name" in told:
        code = instruction(0x85, src=3) + EXIT
        told = "a call of kind 3"
    with pytest.raises(InputError, match=told):
        Both([code])


def test_budget_in_a_real_run_names_the_line(tmp_path):
    """`explain` says where."""
    from uvmsim.bpf import state as st

    policy = load(str(SOURCES / "stride.bpf.o"), [])
    state = policy.state(PageContext(4, 2, 1, np.zeros(1, np.int64), 0))
    number = next(f.number for f in policy.object.functions if f.name == "on_fault")
    state.n[st.FAULT], state.n[st.FAULT_AT] = st.NO_BUDGET, number << 20 | 3
    told = policy.explain(state, BpfFault("x"))
    assert "on_fault, instruction 3 (source line " in told and "loops more than" in told
