/* A few pages a stride ahead, once a block has shown the same stride often enough. The block is known
 * from a kprobe on the function that asks for prefetch hints, as no argument of the hook names it. */
#include "uvm.h"

struct state {
	s32 last;
	s32 stride;
	s32 confidence;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, u64);
	__type(value, struct state);
} blocks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} current_block SEC(".maps");

struct options {
	s32 threshold;
	s32 pages;
	s32 max_stride;
};
volatile struct options options = { 2, 2, 128 };

SEC("kprobe/uvm_perf_prefetch_get_hint_va_block")
int on_hint(struct pt_regs *regs)
{
	u32 zero = 0;
	u64 *now = bpf_map_lookup_elem(&current_block, &zero);

	if (now)
		*now = start_of((void *)regs->di);
	return 0;
}

SEC("struct_ops/gpu_page_prefetch")
int on_fault(u64 *ctx)
{
	s32 page = (s32)ctx[0];
	uvm_va_block_region_t *most = (void *)ctx[2], *result = (void *)ctx[3];
	u32 zero = 0;
	u64 *block = bpf_map_lookup_elem(&current_block, &zero);

	if (!block)
		return BYPASS;
	u64 key = *block;
	struct state *s = bpf_map_lookup_elem(&blocks, &key);
	if (!s) {
		struct state first = { page, 0, 0 };
		bpf_map_update_elem(&blocks, &key, &first, BPF_ANY);
		return BYPASS;
	}
	s32 now = page - s->last, size = now < 0 ? -now : now;
	if (now == 0)
		return BYPASS;
	s->last = page;
	if (now == s->stride) {
		s->confidence += 1;
	} else {
		if (s->confidence > 0)
			s->confidence -= 1;
		if (size > options.max_stride)
			return BYPASS;
		s->stride = now;
	}
	if (s->confidence >= options.threshold) {
		s32 at = page + s->stride;
		s32 first = s->stride > 0 ? at : at + 1 - options.pages;
		s32 outer = s->stride > 0 ? at + options.pages : at + 1;
		if (first < most->first)
			first = most->first;
		if (outer > most->outer)
			outer = most->outer;
		if (outer > first)
			bpf_gpu_set_prefetch_region(result, first, outer);
	}
	return BYPASS;
}

SEC(".struct_ops")
struct gpu_mem_ops stride = { .gpu_page_prefetch = (void *)on_fault };
