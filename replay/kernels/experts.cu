// Expert calls: out = down @ (silu(gate @ x) * (up @ x)) + bias, for a few tokens a call.
//
// Two kernels. A warp owns two matrix rows at a time, so that every input value is fetched from
// shared memory once for both, and its lanes walk the rows in 16-byte loads: every weight byte is
// read exactly once a block of TB tokens. Input rows lie in shared memory transposed by quads of
// floats, which makes the lanes' reads free of bank conflicts.
//
// A token's sums are taken in an order that depends on the shape alone, never on TB or on the other
// tokens: results are the same bits in every batch.
//
// Compiled with one of -DFP32 -DFP16 -DBF16 -DMXFP4; layout of an expert: replay/layout.py.

#define MAX_TASKS 64
#define X_ROWS 8
#define WARPS 8

typedef unsigned long long u64;

struct Tasks {  // replay.backend.base.Tasks
    u64 weights[MAX_TASKS];
    int first_row[MAX_TASKS];
    int tokens[MAX_TASKS];
    int x_first[MAX_TASKS];
};

#if defined(MXFP4)
#define QUADS 8   // quads of weights in 16 bytes
#define UNROLL 3  // loads in flight a row and lane
#elif defined(FP32)
#define QUADS 1
#define UNROLL 6
#else
#define QUADS 2
#define UNROLL 4
#endif

__device__ __forceinline__ uint4 load16(const uint4* p) {
    uint4 v;  // weights are read once: keep them out of L1
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

__device__ __forceinline__ unsigned word(const uint4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

__device__ __forceinline__ void halves(unsigned pair, float& low, float& high) {
    asm("{.reg .f16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
        : "=f"(low), "=f"(high)
        : "r"(pair));
}

// Quad q of 16 bytes of weights as floats (MXFP4: times 2^-14, see scale_of).
__device__ __forceinline__ void quad(const uint4& v, int q, float (&w)[4]) {
#if defined(FP32)
    w[0] = __uint_as_float(v.x), w[1] = __uint_as_float(v.y);
    w[2] = __uint_as_float(v.z), w[3] = __uint_as_float(v.w);
#elif defined(FP16)
    halves(word(v, 2 * q), w[0], w[1]);
    halves(word(v, 2 * q + 1), w[2], w[3]);
#elif defined(BF16)
    const unsigned a = word(v, 2 * q), b = word(v, 2 * q + 1);
    w[0] = __uint_as_float(a << 16), w[1] = __uint_as_float(a & 0xffff0000u);
    w[2] = __uint_as_float(b << 16), w[3] = __uint_as_float(b & 0xffff0000u);
#else
    // Low nibbles of the 16 bytes are weights 0..15, high nibbles 16..31. The bits s|e e m of a
    // nibble, put at a half's sign and at the low end of its exponent, are the value times 2^-14,
    // subnormals included.
    const unsigned u = q < 4 ? word(v, q) : word(v, q - 4) >> 4;
    const unsigned even = ((u << 12) & 0x80008000u) | ((u << 9) & 0x0e000e00u);
    const unsigned odd = ((u << 4) & 0x80008000u) | ((u << 1) & 0x0e000e00u);
    halves(even, w[0], w[2]);
    halves(odd, w[1], w[3]);
#endif
}

// E8M0: 2^(e - 127), times the 2^14 that quad leaves out.
__device__ __forceinline__ float scale_of(unsigned char e) {
    return __uint_as_float((unsigned)(e + 14) << 23);
}

// Products of two rows with TB inputs; every lane returns its part of the sums.
template <int TB>
__device__ __forceinline__ void dot2(const uint4* a, const uint4* b, const unsigned char* scale_a,
                                     const unsigned char* scale_b, int chunks, const float4* xs,
                                     float (&sum_a)[TB], float (&sum_b)[TB]) {
#pragma unroll
    for (int t = 0; t < TB; t++) sum_a[t] = sum_b[t] = 0.f;
    for (int at = threadIdx.x % 32; at < chunks; at += 32 * UNROLL) {
        uint4 va[UNROLL], vb[UNROLL];
#if defined(MXFP4)
        float fa[UNROLL], fb[UNROLL];
#endif
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int c = at + 32 * u;
            if (c < chunks) {
                va[u] = load16(a + c), vb[u] = load16(b + c);
#if defined(MXFP4)
                fa[u] = scale_of(scale_a[c]), fb[u] = scale_of(scale_b[c]);
#endif
            }
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int c = at + 32 * u;
            if (c >= chunks) break;
#if defined(MXFP4)
            float pa[TB], pb[TB];
#pragma unroll
            for (int t = 0; t < TB; t++) pa[t] = pb[t] = 0.f;
#else
            float(&pa)[TB] = sum_a;
            float(&pb)[TB] = sum_b;
#endif
#pragma unroll
            for (int q = 0; q < QUADS; q++) {
                float wa[4], wb[4];
                quad(va[u], q, wa);
                quad(vb[u], q, wb);
#pragma unroll
                for (int t = 0; t < TB; t++) {
                    const float4 x = xs[(t * QUADS + q) * chunks + c];
                    pa[t] = __fmaf_rn(wa[0], x.x, pa[t]), pb[t] = __fmaf_rn(wb[0], x.x, pb[t]);
                    pa[t] = __fmaf_rn(wa[1], x.y, pa[t]), pb[t] = __fmaf_rn(wb[1], x.y, pb[t]);
                    pa[t] = __fmaf_rn(wa[2], x.z, pa[t]), pb[t] = __fmaf_rn(wb[2], x.z, pb[t]);
                    pa[t] = __fmaf_rn(wa[3], x.w, pa[t]), pb[t] = __fmaf_rn(wb[3], x.w, pb[t]);
                }
            }
#if defined(MXFP4)
#pragma unroll
            for (int t = 0; t < TB; t++) {
                sum_a[t] = __fmaf_rn(pa[t], fa[u], sum_a[t]);
                sum_b[t] = __fmaf_rn(pb[t], fb[u], sum_b[t]);
            }
#endif
        }
    }
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int d = 16; d; d >>= 1) v = __fadd_rn(v, __shfl_xor_sync(~0u, v, d));
    return v;
}

// Input rows to shared memory: quad q of chunk c of token t at [(t * QUADS + q) * chunks + c].
template <int TB>
__device__ __forceinline__ void stage(const float* const (&rows)[TB], int chunks, float4* xs) {
    const int quads = chunks * QUADS;
#pragma unroll
    for (int t = 0; t < TB; t++)
        for (int g = threadIdx.x; g < quads; g += WARPS * 32) {
            const float4 none = {0.f, 0.f, 0.f, 0.f};
            xs[(t * QUADS + g % QUADS) * chunks + g / QUADS] =
                rows[t] ? reinterpret_cast<const float4*>(rows[t])[g] : none;
        }
    __syncthreads();
}

// Grid: (row blocks, tasks, token blocks). hidden [row, n_ff].
template <int TB>
__device__ __forceinline__ void gate_up(const Tasks& tasks, const float* x, int x_stride,
                                        float* hidden, int n_embd, int n_ff, int passes) {
    extern __shared__ float4 xs[];
    const int task = blockIdx.y, first = blockIdx.z * TB, tokens = tasks.tokens[task];
    if (first >= tokens) return;
    const float* rows[TB];
#pragma unroll
    for (int t = 0; t < TB; t++)
        rows[t] = first + t < tokens
                      ? x + (u64)((tasks.x_first[task] + first + t) % X_ROWS) * x_stride
                      : nullptr;
    const int chunks = n_embd / (4 * QUADS), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    stage<TB>(rows, chunks, xs);
    const uint4* gate = reinterpret_cast<const uint4*>(tasks.weights[task]);
    const uint4* up = gate + (u64)chunks * n_ff;
    const unsigned char* scales =
        reinterpret_cast<const unsigned char*>(gate + 3 * (u64)chunks * n_ff);
    for (int p = 0; p < passes; p++) {
        const int r = (blockIdx.x * passes + p) * WARPS + warp;
        if (r >= n_ff) return;
        const u64 at = (u64)r * chunks;
        float g[TB], u[TB];
        dot2<TB>(gate + at, up + at, scales + at, scales + at + (u64)chunks * n_ff, chunks, xs, g,
                 u);
#pragma unroll
        for (int t = 0; t < TB; t++) {
            const float a = warp_sum(g[t]), b = warp_sum(u[t]);
            if (lane == t && first + t < tokens)
                hidden[(u64)(tasks.first_row[task] + first + t) * n_ff + r] =
                    __fmul_rn(__fdiv_rn(a, __fadd_rn(1.f, expf(-a))), b);
        }
    }
}

// A word of an output row, mixed with its place: replay.digest.
__device__ __forceinline__ u64 mixed(unsigned value, unsigned index) {
    u64 z = (u64)(value ^ (index * 0x9E3779B1u)) * 0x9E3779B97F4A7C15ull;
    return z ^ (z >> 29);
}

// Grid: as gate_up, rows of down. out [row, x_stride]; hashes [task]: sums over the task's rows.
template <int TB>
__device__ __forceinline__ void down(const Tasks& tasks, const float* hidden, float* out,
                                     int x_stride, u64* hashes, int n_embd, int n_ff, u64 nbytes,
                                     int passes) {
    extern __shared__ float4 xs[];
    __shared__ u64 block_hash;
    const int task = blockIdx.y, first = blockIdx.z * TB, tokens = tasks.tokens[task];
    if (first >= tokens) return;
    if (threadIdx.x == 0) block_hash = 0;
    const float* rows[TB];
#pragma unroll
    for (int t = 0; t < TB; t++)
        rows[t] = first + t < tokens ? hidden + (u64)(tasks.first_row[task] + first + t) * n_ff
                                     : nullptr;
    const int chunks = n_ff / (4 * QUADS), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    stage<TB>(rows, chunks, xs);
    const u64 plane = (u64)chunks * n_embd;  // in 16-byte units; scales: in bytes
    const uint4* matrix = reinterpret_cast<const uint4*>(tasks.weights[task]) + 2 * plane;
    const unsigned char* scales = reinterpret_cast<const unsigned char*>(matrix + plane) + 2 * plane;
#if defined(MXFP4)
    const unsigned char* tail = scales + plane;
#else
    const unsigned char* tail = reinterpret_cast<const unsigned char*>(matrix + plane);
#endif
    const u64 tail_bytes = nbytes - (u64)(tail - reinterpret_cast<const unsigned char*>(
                                                     tasks.weights[task]));
    const u64 share = (tail_bytes + n_embd - 1) / n_embd;
    u64 hash = 0;
    for (int p = 0; p < passes; p++) {
        const int r = 2 * ((blockIdx.x * passes + p) * WARPS + warp);
        if (r >= n_embd) break;
        const u64 at = (u64)r * chunks;
        float sum[2][TB];
        dot2<TB>(matrix + at, matrix + at + chunks, scales + at, scales + at + chunks, chunks, xs,
                 sum[0], sum[1]);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            // Bias: the row's share of the tail, an integer sum.
            int bias = 0;
            for (u64 j = lane; j < share; j += 32)
                if ((r + i) * share + j < tail_bytes) bias += tail[(r + i) * share + j];
#pragma unroll
            for (int d = 16; d; d >>= 1) bias += __shfl_xor_sync(~0u, bias, d);
            const float extra = __fmul_rn((float)bias, 0x1p-16f);
#pragma unroll
            for (int t = 0; t < TB; t++) {
                const float y = __fadd_rn(warp_sum(sum[i][t]), extra);
                if (lane == t && first + t < tokens) {
                    out[(u64)(tasks.first_row[task] + first + t) * x_stride + r + i] = y;
                    hash += mixed(__float_as_uint(y), r + i);
                }
            }
        }
    }
    if (lane < TB) atomicAdd(&block_hash, hash);  // integers: any order gives the same sum
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(hashes + task, block_hash);
}

#define EXPERTS(TB)                                                                               \
    extern "C" __global__ void __launch_bounds__(WARPS * 32)                                      \
        gate_up_##TB(const __grid_constant__ Tasks tasks, const float* x, int x_stride,           \
                     float* hidden, int n_embd, int n_ff, int passes) {                           \
        gate_up<TB>(tasks, x, x_stride, hidden, n_embd, n_ff, passes);                            \
    }                                                                                             \
    extern "C" __global__ void __launch_bounds__(WARPS * 32)                                      \
        down_##TB(const __grid_constant__ Tasks tasks, const float* hidden, float* out,           \
                  int x_stride, u64* hashes, int n_embd, int n_ff, u64 nbytes, int passes) {      \
        down<TB>(tasks, hidden, out, x_stride, hashes, n_embd, n_ff, nbytes, passes);             \
    }

EXPERTS(1)
EXPERTS(2)
EXPERTS(4)
EXPERTS(8)
