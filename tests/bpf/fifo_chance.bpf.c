/* FIFO; at the head a chunk is sent back while it has chances, as many as its process gets. Walks the used
 * list, which its own moves change. */
#include "uvm.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, u32);
	__type(value, u32);
} chances SEC(".maps");

const volatile u32 high = 3, low = 0, other = 1;
const volatile u32 high_pid = 1000, low_pid = 1001;

static __always_inline int give(uvm_gpu_chunk_t *chunk)
{
	uvm_va_block_t *block = 0;
	u32 slot = slot_of(chunk);

	READ(block, chunk->va_block);
	u32 tgid = process_of(block);
	u32 given = tgid == high_pid ? high : tgid == low_pid ? low : other;
	bpf_map_update_elem(&chances, &slot, &given, BPF_ANY);
	return BYPASS;
}

SEC("struct_ops/gpu_block_activate")
int on_activate(u64 *ctx)
{
	return give((void *)ctx[1]);
}

SEC("struct_ops/gpu_block_access")
int on_access(u64 *ctx)
{
	return give((void *)ctx[1]);
}

SEC("struct_ops/gpu_evict_prepare")
int on_prepare(u64 *ctx)
{
	struct list_head *used = (void *)ctx[1];

	for (int i = 0; i < 8; i++) {
		struct list_head *first = 0;
		READ(first, used->next);
		if (first == used)
			break;
		uvm_gpu_chunk_t *chunk = container_of(first, uvm_gpu_chunk_t, list);
		u32 slot = slot_of(chunk);
		u32 *left = bpf_map_lookup_elem(&chances, &slot);
		if (!left || *left == 0)
			break;
		*left -= 1;
		bpf_gpu_block_move_tail(chunk, used);
	}
	return 0;
}

SEC(".struct_ops")
struct gpu_mem_ops fifo_chance = {
	.gpu_block_activate = (void *)on_activate,
	.gpu_block_access = (void *)on_access,
	.gpu_evict_prepare = (void *)on_prepare,
};
