"""Fixed parts of emitted C."""

from __future__ import annotations

from dataclasses import dataclass

HEAD = """\
#define CHUNKS {chunks}
#define BLOCKS {blocks}

/* Process numbers (tgid) in the order of their priority, for the loader to set; the last stands for all
 * others. */
const volatile s32 processes[{processes}] = {{ 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007 }};
#define PROCESSES {processes}
"""

NUMBERS = """\
/* An index that the verifier sees is within bounds; one that is not ends the hook. */
#define AT(index, n) ({ \\
	u64 at_ = (u64)(index); \\
	asm volatile("" : "+r"(at_)); \\
	if (at_ >= (n)) \\
		return 0; \\
	at_; })
/* The same in functions that hooks call, and what ends the hook then. */
#define AT_IN(index, n) ({ \\
	u64 at_ = (u64)(index); \\
	asm volatile("" : "+r"(at_)); \\
	if (at_ >= (n)) { \\
		*lost = 1; \\
		return 0; \\
	} \\
	at_; })
#define CALL(call) ({ s64 c_ = (call); if (*lost) return 0; c_; })
#define min_of(a, b) ({ s64 a_ = (a), b_ = (b); a_ < b_ ? a_ : b_; })
#define max_of(a, b) ({ s64 a_ = (a), b_ = (b); a_ > b_ ? a_ : b_; })
#define abs_of(a) ({ s64 a_ = (a); a_ < 0 ? -a_ : a_; })

/* Python's division, towards less; by 0 it gives 0, and the rest is what was divided. */
static __always_inline s64 floor_div(s64 a, s64 b)
{
	u64 x = a < 0 ? -(u64)a : a, y = b < 0 ? -(u64)b : b;
	u64 q = y ? x / y : 0;

	if (b == 0)
		return 0;
	if ((a < 0) == (b < 0))
		return q;
	return -(s64)q - (q * y != x);
}

static __always_inline s64 floor_mod(s64 a, s64 b)
{
	return a - floor_div(a, b) * b;
}

static __always_inline s64 chunk_number(uvm_gpu_chunk_t *chunk)
{
	u64 address = 0;
	READ(address, chunk->address);
	return (address >> 21) & (CHUNKS - 1);
}

static __always_inline uvm_va_block_t *block_of(uvm_gpu_chunk_t *chunk)
{
	uvm_va_block_t *block = 0;
	READ(block, chunk->va_block);
	return block;
}

static __always_inline s64 block_number(uvm_va_block_t *block)
{
	return block ? (s64)((start_of(block) >> 21) & (BLOCKS - 1)) : -1;
}

static __always_inline s64 process_number(uvm_va_block_t *block)
{
	s32 tgid = process_of(block);

	for (s64 i = 0; i < PROCESSES - 1; i++)
		if (processes[i] == tgid)
			return i;
	return PROCESSES - 1;
}

static __always_inline void set_region(uvm_va_block_region_t *result,
	uvm_va_block_region_t *most, s64 first, s64 outer)
{
	s64 least = most->first, last = most->outer;

	first = first > least ? first : least;
	outer = outer < last ? outer : last;
	outer = outer > first ? outer : first;
	bpf_gpu_set_prefetch_region(result, first, outer);
}"""

ENDS = """\
/* The chunk at the head of the list, or at its tail; one past the last chunk where there is none. */
static __always_inline s64 end_of(struct list_head *list, s64 last)
{
	struct list_head *at = 0;

	if (last)
		READ(at, list->prev);
	else
		READ(at, list->next);
	return at == list ? CHUNKS : chunk_number(container_of(at, uvm_gpu_chunk_t, list));
}"""

ACTIVATES = """\
/* Chunks allocated so far. */
volatile u64 activates;"""

LAYERS = """\
/* Layer of a VA block by the first block of each, -1 outside. */
static __always_inline s64 layer_of(volatile s64 *first, s64 n, s64 block)
{
	s64 layer = -1;

	if (block >= first[n - 1])
		return -1;
	for (s64 i = 0; i < n - 1; i++)
		if (first[i] <= block)
			layer = i;
	return layer;
}"""

CURRENT = """\
/* The VA block that faults: no argument of the prefetch hooks names it. */
struct now {
	uvm_va_block_t *block;
	u64 start;
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct now);
} current_block SEC(".maps");

SEC("kprobe/uvm_perf_prefetch_get_hint_va_block")
int on_hint(struct pt_regs *regs)
{
	u32 zero = 0;
	struct now *now = bpf_map_lookup_elem(&current_block, &zero);

	if (now) {
		now->block = (void *)regs->di;
		now->start = start_of(now->block);
	}
	return 0;
}"""

REQUESTS = """\
/* Blocks to bring in, one work item each; the ring is as large as what one batch can ask for. */
struct request {
	u64 space;
	u64 address;
	u64 asked;
	struct bpf_wq work;
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 256);
	__type(key, int);
	__type(value, struct request);
} requests SEC(".maps");
u32 next_request;
/* How often the policy forgot what it had asked for. */
volatile u64 forgotten;

static int bring(void *map, int *key, void *value)
{
	struct request *r = value;

	if (r->asked == forgotten)
		bpf_gpu_migrate_range(r->space, r->address, 2 << 20);
	return 0;
}

static __always_inline void ask_for(struct now *now, s64 block)
{
	int at = next_request++ & 255;
	struct request *r = bpf_map_lookup_elem(&requests, &at);

	if (!r)
		return;
	r->asked = forgotten;
	r->space = (u64)space_of(now->block);
	r->address = now->start + ((block - block_number(now->block)) << 21);
	bpf_wq_init(&r->work, &requests, 0);
	bpf_wq_set_callback_impl(&r->work, bring, 0, 0);
	bpf_wq_start(&r->work, 0);
}"""

FOOT = """\
SEC(".struct_ops")
struct gpu_mem_ops policy = {{
{members}
}};"""

_CURRENT = """\
	u32 zero = 0;
	struct now *now = bpf_map_lookup_elem(&current_block, &zero);
	if (!now)
		return 0;
	s64 v_block = block_number(now->block);
"""
_CHUNK = """\
	uvm_gpu_chunk_t *chunk = (void *)ctx[1];
	struct list_head *list = (void *)ctx[2];
	s64 v_chunk = chunk_number(chunk);
"""


@dataclass(frozen=True)
class Hook:
    """A hook of the contract and its C function."""

    member: str
    """Of struct gpu_mem_ops."""
    parameters: tuple[str, ...]
    """What the contract's arguments are, in order."""
    head: str
    current: str = ""
    """What follows where the block that faulted is asked for."""
    name: str = ""

    @property
    def opening(self) -> str:
        """Section, name, argument."""
        return f'SEC("struct_ops/{self.member}")\nint {self.name}(u64 *ctx)\n{{'


HOOKS = {
    "page_prefetch": Hook(
        "gpu_page_prefetch", ("s", "d", "block", "page", "region"),
        "\tuvm_va_block_region_t *most = (void *)ctx[2], *result = (void *)ctx[3];\n"
        "\ts64 v_page = (u32)ctx[0];\n",
        _CURRENT, "page_prefetch",
    ),
    "page_prefetch_iter": Hook(
        "gpu_page_prefetch_iter", ("s", "d", "block", "first", "outer", "counter", "region"),
        "\tuvm_va_block_region_t *most = (void *)ctx[1], *at = (void *)ctx[2];\n"
        "\tuvm_va_block_region_t *result = (void *)ctx[4];\n"
        "\ts64 v_first = at->first, v_outer = at->outer, v_counter = (u32)ctx[3];\n",
        _CURRENT, "page_prefetch_iter",
    ),
    "block_activate": Hook(
        "gpu_block_activate", ("s", "d", "chunk"), _CHUNK, "", "block_activate",
    ),
    "block_access": Hook("gpu_block_access", ("s", "d", "chunk"), _CHUNK, "", "block_access"),
    "evict_prepare": Hook(
        "gpu_evict_prepare", ("s", "d"), "\tstruct list_head *list = (void *)ctx[1];\n", "",
        "evict_prepare",
    ),
}  # fmt: skip
"""Hooks that have a form in C. Of the list evict_prepare sees both ends."""
