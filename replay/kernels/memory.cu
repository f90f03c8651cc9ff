// Reading memory: at full speed and for nothing, or to know what is in it.

typedef unsigned long long u64;

// Read n 16-byte units of a window of `size` units, from unit `at`, starting over at its end.
// `sink` is written only where a sum that never comes up comes up: so the reads cannot be left out.
extern "C" __global__ void __launch_bounds__(256)
    read_window(const uint4* window, u64 size, u64 at, u64 n, unsigned* sink) {
    const int UNROLL = 8;
    const u64 step = (u64)gridDim.x * blockDim.x;
    unsigned seen = 0;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step * UNROLL) {
        uint4 v[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            u64 j = i + u * step;
            v[u] = uint4{0, 0, 0, 0};
            if (j < n) {
                j += at;
                while (j >= size) j -= size;
                asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                             : "=r"(v[u].x), "=r"(v[u].y), "=r"(v[u].z), "=r"(v[u].w)
                             : "l"(window + j));
            }
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) seen |= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
    }
    if (seen == 0x5eedf00du) *sink = seen;
}

// replay.digest.checksum of nbytes from a 4-byte aligned address, added to *sum.
extern "C" __global__ void __launch_bounds__(256)
    checksum(const unsigned char* data, u64 nbytes, u64* sum) {
    __shared__ u64 block_sum;
    if (threadIdx.x == 0) block_sum = 0;
    __syncthreads();
    const u64 words = (nbytes + 3) / 4, step = (u64)gridDim.x * blockDim.x;
    u64 mine = 0;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < words; i += step) {
        unsigned w = 0;
        if (4 * i + 4 <= nbytes)
            w = reinterpret_cast<const unsigned*>(data)[i];
        else
            for (int b = 0; 4 * i + b < nbytes; b++) w |= (unsigned)data[4 * i + b] << (8 * b);
        u64 z = (u64)(w ^ ((unsigned)i * 0x9E3779B1u)) * 0x9E3779B97F4A7C15ull;
        mine += z ^ (z >> 29);
    }
    atomicAdd(&block_sum, mine);
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(sum, block_sum);
}
