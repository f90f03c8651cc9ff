"""Numbers of the kernel's interface and what they are called (include/uapi/linux/bpf.h)."""

from __future__ import annotations

ARRAY, HASH, LRU_HASH = 2, 1, 9
PERCPU_ARRAY, PERCPU_HASH, LRU_PERCPU_HASH, RINGBUF = 6, 5, 10, 27

MAP_TYPES = {
    1: "HASH", 2: "ARRAY", 3: "PROG_ARRAY", 4: "PERF_EVENT_ARRAY", 5: "PERCPU_HASH",
    6: "PERCPU_ARRAY", 7: "STACK_TRACE", 8: "CGROUP_ARRAY", 9: "LRU_HASH", 10: "LRU_PERCPU_HASH",
    11: "LPM_TRIE", 12: "ARRAY_OF_MAPS", 13: "HASH_OF_MAPS", 14: "DEVMAP", 15: "SOCKMAP",
    16: "CPUMAP", 17: "XSKMAP", 18: "SOCKHASH", 22: "QUEUE", 23: "STACK", 24: "SK_STORAGE",
    26: "STRUCT_OPS", 27: "RINGBUF", 28: "INODE_STORAGE", 29: "TASK_STORAGE", 30: "BLOOM_FILTER",
    31: "USER_RINGBUF", 32: "CGRP_STORAGE", 33: "ARENA",
}  # fmt: skip
HASHES = frozenset({HASH, LRU_HASH, PERCPU_HASH, LRU_PERCPU_HASH})
ARRAYS = frozenset({ARRAY, PERCPU_ARRAY})
LRUS = frozenset({LRU_HASH, LRU_PERCPU_HASH})
SUPPORTED_MAPS = HASHES | ARRAYS | {RINGBUF}

LOOP = 181
"""bpf_loop, which calls back."""

HELPERS = {
    1: "map_lookup_elem", 2: "map_update_elem", 3: "map_delete_elem", 4: "probe_read",
    5: "ktime_get_ns", 6: "trace_printk", 7: "get_prandom_u32", 8: "get_smp_processor_id",
    9: "skb_store_bytes", 12: "tail_call", 14: "get_current_pid_tgid", 15: "get_current_uid_gid",
    16: "get_current_comm", 25: "perf_event_output", 27: "get_stackid", 35: "get_current_task",
    36: "probe_write_user", 42: "get_numa_node_id", 45: "probe_read_str", 51: "redirect_map",
    67: "get_stack", 80: "get_current_cgroup_id", 87: "map_push_elem", 88: "map_pop_elem",
    89: "map_peek_elem", 93: "spin_lock", 94: "spin_unlock", 109: "send_signal",
    112: "probe_read_user", 113: "probe_read_kernel", 114: "probe_read_user_str",
    115: "probe_read_kernel_str", 118: "jiffies64", 125: "ktime_get_boot_ns",
    130: "ringbuf_output", 131: "ringbuf_reserve", 132: "ringbuf_submit", 133: "ringbuf_discard",
    134: "ringbuf_query", 148: "copy_from_user", 156: "task_storage_get", 158: "get_current_task_btf",
    160: "ktime_get_coarse_ns", 164: "for_each_map_elem", 165: "snprintf", 169: "timer_init",
    170: "timer_set_callback", 171: "timer_start", 172: "timer_cancel", 173: "get_func_ip",
    174: "get_attach_cookie", 177: "trace_vprintk", 180: "find_vma", 181: "loop", 182: "strncmp",
    194: "kptr_xchg", 195: "map_lookup_percpu_elem", 208: "ktime_get_tai_ns",
    209: "user_ringbuf_drain",
}  # fmt: skip
"""Helpers by number, without ``bpf_``; those that run are in `uvmsim.bpf.helpers`."""


def helper_name(number: int) -> str:
    """``bpf_loop`` for 181; the number for one that has no name here."""
    return f"bpf_{HELPERS[number]}" if number in HELPERS else f"helper number {number}"


def map_type(number: int) -> str:
    """``LRU_HASH`` for 9."""
    return MAP_TYPES.get(number, f"type {number}")
