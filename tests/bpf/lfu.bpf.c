/* Chunks whose frame was served most often stay; new ones go to the head. */
#include "uvm.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, u32);
	__type(value, u8);
} freq SEC(".maps");

const volatile u32 cap = 255;

SEC("struct_ops/gpu_block_activate")
int on_activate(u64 *ctx)
{
	uvm_gpu_chunk_t *chunk = (void *)ctx[1];
	u32 slot = slot_of(chunk);
	u8 *count = bpf_map_lookup_elem(&freq, &slot);

	if (count)
		*count = 1;
	bpf_gpu_block_move_head(chunk, (void *)ctx[2]);
	return BYPASS;
}

SEC("struct_ops/gpu_block_access")
int on_access(u64 *ctx)
{
	uvm_gpu_chunk_t *chunk = (void *)ctx[1];
	u32 slot = slot_of(chunk);
	u8 *count = bpf_map_lookup_elem(&freq, &slot);

	if (count && *count < cap) {
		*count += 1;
		bpf_gpu_block_move_tail(chunk, (void *)ctx[2]);
	}
	return BYPASS;
}

SEC(".struct_ops")
struct gpu_mem_ops lfu = {
	.gpu_block_activate = (void *)on_activate,
	.gpu_block_access = (void *)on_access,
};
