/* What a memory policy of the driver is compiled against: the helpers it may call, the driver's
 * structures (only the fields that are read; libbpf finds them in the running kernel), hooks and kernel
 * functions. Needs no other header. */
#ifndef UVM_H
#define UVM_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;
typedef short s16;
typedef int s32;
typedef long long s64;
typedef int bool;

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name
#define __ksym __attribute__((section(".ksyms")))
#define __always_inline inline __attribute__((always_inline))
#define __noinline __attribute__((noinline))
#define container_of(pointer, type, member) \
	((type *)((char *)(pointer)-__builtin_offsetof(type, member)))

enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_HASH = 5,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
};
enum { BPF_ANY = 0, BPF_NOEXIST = 1, BPF_EXIST = 2 };

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value, u64 flags) =
	(void *)2;
static long (*const bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static u64 (*const bpf_ktime_get_ns)(void) = (void *)5;
static long (*const bpf_trace_printk)(const char *text, u32 size, ...) = (void *)6;
static u32 (*const bpf_get_prandom_u32)(void) = (void *)7;
static u32 (*const bpf_get_smp_processor_id)(void) = (void *)8;
static u64 (*const bpf_get_current_pid_tgid)(void) = (void *)14;
static long (*const bpf_get_current_comm)(void *to, u32 size) = (void *)16;
static long (*const bpf_probe_read_user)(void *to, u32 size, const void *from) = (void *)112;
static long (*const bpf_probe_read_kernel)(void *to, u32 size, const void *from) = (void *)113;
static void *(*const bpf_ringbuf_reserve)(void *map, u64 size, u64 flags) = (void *)131;
static void (*const bpf_ringbuf_submit)(void *record, u64 flags) = (void *)132;
static void (*const bpf_ringbuf_discard)(void *record, u64 flags) = (void *)133;
static long (*const bpf_loop)(u32 n, void *callback, void *context, u64 flags) = (void *)181;

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct list_head {
	struct list_head *next, *prev;
};
struct task_struct {
	int pid;
	int tgid;
};
struct mm_struct {
	struct task_struct *owner;
};
typedef struct uvm_va_space_struct {
	struct {
		struct mm_struct *mm;
	} va_space_mm;
} uvm_va_space_t;
typedef struct uvm_va_range_struct {
	uvm_va_space_t *va_space;
} uvm_va_range_t;
typedef struct uvm_va_range_managed_struct {
	uvm_va_range_t va_range;
} uvm_va_range_managed_t;
typedef struct uvm_va_block_struct {
	uvm_va_range_managed_t *managed_range;
	u64 start;
	u64 end;
} uvm_va_block_t;
typedef struct uvm_gpu_chunk_struct {
	u64 address;
	u32 state : 3;
	u32 log2_size : 6;
	u32 va_block_page_index : 10;
	struct list_head list;
	uvm_va_block_t *va_block;
} uvm_gpu_chunk_t;
typedef struct {
	u16 first;
	u16 outer;
} uvm_va_block_region_t;
typedef struct {
	u64 bitmap[8];
} uvm_page_mask_t;
typedef struct uvm_perf_prefetch_bitmap_tree {
	uvm_page_mask_t pages;
	u16 offset;
	u16 leaf_count;
	u8 level_count;
} uvm_perf_prefetch_bitmap_tree_t;
struct pt_regs {
	u64 r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
	u64 orig_ax, ip, cs, flags, sp, ss;
};

#pragma clang attribute pop

typedef struct uvm_pmm_gpu_struct uvm_pmm_gpu_t;
typedef u32 uvm_page_index_t;

struct gpu_mem_ops {
	int (*gpu_test_trigger)(const char *text, int n);
	int (*gpu_page_prefetch)(uvm_page_index_t page, uvm_perf_prefetch_bitmap_tree_t *tree,
				 uvm_va_block_region_t *max_region, uvm_va_block_region_t *result);
	int (*gpu_page_prefetch_iter)(uvm_perf_prefetch_bitmap_tree_t *tree,
				      uvm_va_block_region_t *max_region,
				      uvm_va_block_region_t *current, u32 counter,
				      uvm_va_block_region_t *result);
	int (*gpu_block_activate)(uvm_pmm_gpu_t *pmm, uvm_gpu_chunk_t *chunk, struct list_head *list);
	int (*gpu_block_access)(uvm_pmm_gpu_t *pmm, uvm_gpu_chunk_t *chunk, struct list_head *list);
	int (*gpu_evict_prepare)(uvm_pmm_gpu_t *pmm, struct list_head *used,
				 struct list_head *unused);
};
enum { DEFAULT = 0, BYPASS = 1, ENTER_LOOP = 2 };

struct bpf_wq {
	u64 opaque[2];
};

extern void bpf_gpu_set_prefetch_region(uvm_va_block_region_t *region, u64 first, u64 outer) __ksym;
extern void bpf_gpu_block_move_head(uvm_gpu_chunk_t *chunk, struct list_head *list) __ksym;
extern void bpf_gpu_block_move_tail(uvm_gpu_chunk_t *chunk, struct list_head *list) __ksym;
extern int bpf_gpu_migrate_range(u64 va_space, u64 address, u64 length) __ksym;
extern int bpf_wq_init(struct bpf_wq *wq, void *map, u32 flags) __ksym;
extern int bpf_wq_set_callback_impl(struct bpf_wq *wq, int(callback)(void *map, int *key, void *value),
				    u32 flags, void *aux) __ksym;
extern int bpf_wq_start(struct bpf_wq *wq, u32 flags) __ksym;

/* Reading a field of the kernel's: where it lies is found when the object is loaded. */
#define READ(to, from) \
	bpf_probe_read_kernel(&(to), sizeof(to), __builtin_preserve_access_index(&(from)))

static __always_inline u64 start_of(uvm_va_block_t *block)
{
	u64 start = 0;
	READ(start, block->start);
	return start;
}

static __always_inline uvm_va_space_t *space_of(uvm_va_block_t *block)
{
	uvm_va_range_managed_t *range = 0;
	uvm_va_space_t *space = 0;
	READ(range, block->managed_range);
	READ(space, range->va_range.va_space);
	return space;
}

static __always_inline int process_of(uvm_va_block_t *block)
{
	struct mm_struct *mm = 0;
	struct task_struct *task = 0;
	int tgid = 0;
	uvm_va_space_t *space = space_of(block);
	READ(mm, space->va_space_mm.mm);
	READ(task, mm->owner);
	READ(tgid, task->tgid);
	return tgid;
}

/* The slot that a chunk has in an array: its number, for its address is a multiple of 64. */
#define SLOTS 16384
static __always_inline u32 slot_of(uvm_gpu_chunk_t *chunk)
{
	u64 address = (u64)chunk;
	return ((address >> 6) ^ (address >> 20)) & (SLOTS - 1);
}

char LICENSE[] SEC("license") = "GPL";

#endif
