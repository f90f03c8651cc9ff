// A warp reads one byte of each page of its list. Memory holds ones (or anything below 128), so that
// `s & 0x80` is 0, which the compiler cannot know: with `chained` a load's address needs the last value.

extern "C" __global__ void walk(const unsigned char* base, const unsigned* pages, int turns,
                                int warps, int chained, unsigned* out) {
    const int warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (warp >= warps || threadIdx.x % 32) return;
    const unsigned* mine = pages + (unsigned long long)warp * turns;
    unsigned s = 0;
    if (chained) {
        for (int i = 0; i < turns; i++) {
            const unsigned p = mine[i];
            if (p != 0xFFFFFFFFu) {
                const volatile unsigned char* at = base + (unsigned long long)p * 4096;
                s = at[s & 0x80];
            }
        }
    } else {
#pragma unroll 8
        for (int i = 0; i < turns; i++) {
            const unsigned p = mine[i];
            if (p != 0xFFFFFFFFu) s += base[(unsigned long long)p * 4096];
        }
    }
    if (s == 0x7FFFFFFFu) out[0] = s;
}

extern "C" __global__ void write_all(uint4* p, unsigned long long n, unsigned v) {
    const unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += step)
        p[i] = make_uint4(v, v, v, v);
}
