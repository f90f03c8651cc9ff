/* What a tracer does: kprobes on the driver's calls of the hooks, counts, records in a ring buffer, an LRU
 * map, bpf_loop, functions of its own. Decides nothing. */
#include "uvm.h"

struct event {
	u64 time;
	u64 chunk;
	u64 start;
	u32 tgid;
	u32 kind;
};
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16);
	__type(key, u64);
	__type(value, u64);
} seen SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8);
	__type(key, u32);
	__type(value, u64);
} stats SEC(".maps");

static __noinline void count(u32 what, u64 n)
{
	u64 *total = bpf_map_lookup_elem(&stats, &what);
	if (total)
		__sync_fetch_and_add(total, n);
}

struct walk {
	u64 bitmap[8];
	u32 set;
};

static int each_word(u32 i, struct walk *w)
{
	u64 bits = w->bitmap[i & 7];
	while (bits) {
		bits &= bits - 1;
		w->set++;
	}
	return i == 7;
}

SEC("kprobe/uvm_bpf_call_gpu_page_prefetch")
int on_prefetch(struct pt_regs *regs)
{
	uvm_perf_prefetch_bitmap_tree_t *tree = (void *)regs->si;
	struct walk w = {};

	READ(w.bitmap, tree->pages.bitmap);
	bpf_loop(100, each_word, &w, 0);
	count(0, 1);
	count(1, w.set);
	return 0;
}

static __always_inline int record(struct pt_regs *regs, u32 kind)
{
	uvm_gpu_chunk_t *chunk = (void *)regs->si;
	uvm_va_block_t *block = 0;
	u64 key = (u64)chunk, one = 1;

	READ(block, chunk->va_block);
	u64 *times = bpf_map_lookup_elem(&seen, &key);
	if (times)
		*times += 1;
	else
		bpf_map_update_elem(&seen, &key, &one, BPF_NOEXIST);
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e)
		return 0;
	e->time = bpf_ktime_get_ns();
	e->chunk = key;
	e->start = start_of(block);
	e->tgid = process_of(block);
	e->kind = kind;
	count(2 + kind, 1);
	count(4, e->start >> 21);
	count(5, e->tgid);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

SEC("kprobe/uvm_bpf_call_gpu_block_activate")
int on_activate(struct pt_regs *regs)
{
	return record(regs, 0);
}

SEC("kprobe/uvm_bpf_call_gpu_block_access")
int on_access(struct pt_regs *regs)
{
	return record(regs, 1);
}

SEC("kprobe/uvm_bpf_call_gpu_evict_prepare")
int on_prepare(struct pt_regs *regs)
{
	count(6, 1);
	return 0;
}
