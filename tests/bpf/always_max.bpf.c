/* The whole block on any fault. */
#include "uvm.h"

SEC("struct_ops/gpu_page_prefetch")
int on_fault(u64 *ctx)
{
	uvm_va_block_region_t *most = (void *)ctx[2], *result = (void *)ctx[3];

	bpf_gpu_set_prefetch_region(result, most->first, most->outer);
	return BYPASS;
}

SEC(".struct_ops")
struct gpu_mem_ops always_max = { .gpu_page_prefetch = (void *)on_fault };
