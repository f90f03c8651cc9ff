/* The tree walk with a threshold for each process, whose number is read off the VA block. */
#include "uvm.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, u32);
	__type(value, u32);
} thresholds SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u32);
} current_threshold SEC(".maps");

const volatile u32 other = 50;

SEC("kprobe/uvm_perf_prefetch_get_hint_va_block")
int on_hint(struct pt_regs *regs)
{
	u32 zero = 0, tgid = process_of((void *)regs->di);
	u32 *now = bpf_map_lookup_elem(&current_threshold, &zero);
	u32 *own = bpf_map_lookup_elem(&thresholds, &tgid);

	if (now)
		*now = own ? *own : other;
	return 0;
}

SEC("struct_ops/gpu_page_prefetch")
int on_fault(u64 *ctx)
{
	return ENTER_LOOP;
}

SEC("struct_ops/gpu_page_prefetch_iter")
int on_level(u64 *ctx)
{
	uvm_va_block_region_t *at = (void *)ctx[2], *result = (void *)ctx[4];
	u32 counter = (u32)ctx[3], zero = 0;
	u32 *threshold = bpf_map_lookup_elem(&current_threshold, &zero);

	if (threshold && counter * 100 > (u32)(at->outer - at->first) * *threshold)
		bpf_gpu_set_prefetch_region(result, at->first, at->outer);
	return 0;
}

SEC(".struct_ops")
struct gpu_mem_ops pid_tree = {
	.gpu_page_prefetch = (void *)on_fault,
	.gpu_page_prefetch_iter = (void *)on_level,
};
