/* The whole block, and the next one from a work queue; in the order of loading. With one work item the
 * requests of a batch overwrite one another; with a ring of them (`ring` = 256) none is lost. */
#include "uvm.h"

struct request {
	u64 space;
	u64 address;
	struct bpf_wq work;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 256);
	__type(key, int);
	__type(value, struct request);
} requests SEC(".maps");

struct now {
	u64 space;
	u64 start;
	u64 last;
	u32 next;
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct now);
} current_block SEC(".maps");

const volatile u32 ring = 1;
u64 asked, failed;

SEC("kprobe/uvm_perf_prefetch_get_hint_va_block")
int on_hint(struct pt_regs *regs)
{
	u32 zero = 0;
	struct now *now = bpf_map_lookup_elem(&current_block, &zero);

	if (now) {
		now->start = start_of((void *)regs->di);
		now->space = (u64)space_of((void *)regs->di);
	}
	return 0;
}

static int bring(void *map, int *key, void *value)
{
	struct request *r = value;

	if (bpf_gpu_migrate_range(r->space, r->address, 2 << 20) < 0)
		failed += 1;
	return 0;
}

SEC("struct_ops/gpu_page_prefetch")
int on_fault(u64 *ctx)
{
	uvm_va_block_region_t *most = (void *)ctx[2], *result = (void *)ctx[3];
	u32 zero = 0;
	struct now *now = bpf_map_lookup_elem(&current_block, &zero);

	bpf_gpu_set_prefetch_region(result, most->first, most->outer);
	if (!now || now->start == now->last)
		return BYPASS;
	now->last = now->start;
	int at = now->next++ % ring;
	struct request *r = bpf_map_lookup_elem(&requests, &at);
	if (r) {
		r->space = now->space;
		r->address = now->start + (2 << 20);
		bpf_wq_init(&r->work, &requests, 0);
		bpf_wq_set_callback_impl(&r->work, bring, 0, 0);
		bpf_wq_start(&r->work, 0);
		asked += 1;
	}
	return BYPASS;
}

SEC("struct_ops/gpu_block_access")
int on_access(u64 *ctx)
{
	return BYPASS;
}

SEC(".struct_ops")
struct gpu_mem_ops cross_block = {
	.gpu_page_prefetch = (void *)on_fault,
	.gpu_block_access = (void *)on_access,
};
