// A GPU that has no cores: a ggml device with the buffer rules of llama.cpp's CUDA back end (build
// b11549), so that the real scheduler and allocator of a CPU-only libllama say what a CUDA build would
// allocate. Buffers are address space without memory; nothing is ever computed.
//
//   c++ -std=c++17 -O1 -shared -fPIC -o virtual_gpu.so virtual_gpu.cpp -ldl
//
// Parts marked [ggml-cuda] are copied from llama.cpp's ggml/src/ggml-cuda (MIT, the ggml authors).

#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

// ---- as much of ggml.h, ggml-impl.h and ggml-backend-impl.h as is needed ------------------------

#define GGML_MAX_DIMS 4
#define GGML_MAX_SRC 10
#define GGML_PAD(x, n) (((x) + (n) - 1) & ~((n) - 1))
#define GGML_ASSERT(x) do { if (!(x)) abort(); } while (0)

enum ggml_op {
    GGML_OP_NONE = 0,

    GGML_OP_DUP,
    GGML_OP_ADD,
    GGML_OP_ADD_ID,
    GGML_OP_ADD1,
    GGML_OP_ACC,
    GGML_OP_SUB,
    GGML_OP_MUL,
    GGML_OP_DIV,
    GGML_OP_SQR,
    GGML_OP_SQRT,
    GGML_OP_LOG,
    GGML_OP_SIN,
    GGML_OP_COS,
    GGML_OP_SUM,
    GGML_OP_SUM_ROWS,
    GGML_OP_CUMSUM,
    GGML_OP_MEAN,
    GGML_OP_ARGMAX,
    GGML_OP_COUNT_EQUAL,
    GGML_OP_REPEAT,
    GGML_OP_REPEAT_BACK,
    GGML_OP_CONCAT,
    GGML_OP_SILU_BACK,
    GGML_OP_NORM, // normalize
    GGML_OP_RMS_NORM,
    GGML_OP_RMS_NORM_BACK,
    GGML_OP_GROUP_NORM,
    GGML_OP_L2_NORM,

    GGML_OP_MUL_MAT,
    GGML_OP_MUL_MAT_ID,
    GGML_OP_OUT_PROD,

    GGML_OP_SCALE,
    GGML_OP_SET,
    GGML_OP_CPY,
    GGML_OP_CONT,
    GGML_OP_RESHAPE,
    GGML_OP_VIEW,
    GGML_OP_PERMUTE,
    GGML_OP_TRANSPOSE,
    GGML_OP_GET_ROWS,
    GGML_OP_GET_ROWS_BACK,
    GGML_OP_SET_ROWS,
    GGML_OP_DIAG,
    GGML_OP_DIAG_MASK_INF,
    GGML_OP_DIAG_MASK_ZERO,
    GGML_OP_SOFT_MAX,
    GGML_OP_SOFT_MAX_BACK,
    GGML_OP_ROPE,
    GGML_OP_ROPE_BACK,
    GGML_OP_CLAMP,
    GGML_OP_CONV_TRANSPOSE_1D,
    GGML_OP_IM2COL,
    GGML_OP_IM2COL_BACK,
    GGML_OP_IM2COL_3D,
    GGML_OP_COL2IM_1D,
    GGML_OP_CONV_2D,
    GGML_OP_CONV_3D,
    GGML_OP_CONV_2D_DW,
    GGML_OP_CONV_TRANSPOSE_2D,
    GGML_OP_POOL_1D,
    GGML_OP_POOL_2D,
    GGML_OP_POOL_2D_BACK,
    GGML_OP_UPSCALE,
    GGML_OP_PAD,
    GGML_OP_PAD_REFLECT_1D,
    GGML_OP_ROLL,
    GGML_OP_ARANGE,
    GGML_OP_TIMESTEP_EMBEDDING,
    GGML_OP_ARGSORT,
    GGML_OP_TOP_K,
    GGML_OP_LEAKY_RELU,
    GGML_OP_TRI,
    GGML_OP_FILL,

    GGML_OP_FLASH_ATTN_EXT,
    GGML_OP_FLASH_ATTN_BACK,
    GGML_OP_SSM_CONV,
    GGML_OP_SSM_SCAN,
    GGML_OP_WIN_PART,
    GGML_OP_WIN_UNPART,
    GGML_OP_GET_REL_POS,
    GGML_OP_ADD_REL_POS,
    GGML_OP_RWKV_WKV6,
    GGML_OP_GATED_LINEAR_ATTN,
    GGML_OP_RWKV_WKV7,
    GGML_OP_SOLVE_TRI,
    GGML_OP_GATED_DELTA_NET,
    GGML_OP_LIGHTNING_INDEXER,
    GGML_OP_DSV4_HC_COMB,
    GGML_OP_DSV4_HC_PRE,
    GGML_OP_DSV4_HC_POST,

    GGML_OP_UNARY,

    GGML_OP_MAP_CUSTOM1,
    GGML_OP_MAP_CUSTOM2,
    GGML_OP_MAP_CUSTOM3,

    GGML_OP_CUSTOM,

    GGML_OP_CROSS_ENTROPY_LOSS,
    GGML_OP_CROSS_ENTROPY_LOSS_BACK,
    GGML_OP_OPT_STEP_ADAMW,
    GGML_OP_OPT_STEP_SGD,

    GGML_OP_GLU,

    GGML_OP_COUNT,
};
enum ggml_unary_op {
    GGML_UNARY_OP_ABS,
    GGML_UNARY_OP_SGN,
    GGML_UNARY_OP_NEG,
    GGML_UNARY_OP_STEP,
    GGML_UNARY_OP_TANH,
    GGML_UNARY_OP_ELU,
    GGML_UNARY_OP_RELU,
    GGML_UNARY_OP_SIGMOID,
    GGML_UNARY_OP_GELU,
    GGML_UNARY_OP_GELU_QUICK,
    GGML_UNARY_OP_SILU,
    GGML_UNARY_OP_HARDSWISH,
    GGML_UNARY_OP_HARDSIGMOID,
    GGML_UNARY_OP_EXP,
    GGML_UNARY_OP_EXPM1,
    GGML_UNARY_OP_SOFTPLUS,
    GGML_UNARY_OP_GELU_ERF,
    GGML_UNARY_OP_XIELU,
    GGML_UNARY_OP_FLOOR,
    GGML_UNARY_OP_CEIL,
    GGML_UNARY_OP_ROUND,
    GGML_UNARY_OP_TRUNC,

    GGML_UNARY_OP_COUNT,
};
enum ggml_glu_op {
    GGML_GLU_OP_REGLU,
    GGML_GLU_OP_GEGLU,
    GGML_GLU_OP_SWIGLU,
    GGML_GLU_OP_SWIGLU_OAI,
    GGML_GLU_OP_GEGLU_ERF,
    GGML_GLU_OP_GEGLU_QUICK,
    GGML_GLU_OP_SWIGLU_CLAMP,

    GGML_GLU_OP_COUNT,
};
enum ggml_type {
    GGML_TYPE_F32     = 0,
    GGML_TYPE_F16     = 1,
    GGML_TYPE_Q4_0    = 2,
    GGML_TYPE_Q4_1    = 3,
    // GGML_TYPE_Q4_2 = 4, support has been removed
    // GGML_TYPE_Q4_3 = 5, support has been removed
    GGML_TYPE_Q5_0    = 6,
    GGML_TYPE_Q5_1    = 7,
    GGML_TYPE_Q8_0    = 8,
    GGML_TYPE_Q8_1    = 9,
    GGML_TYPE_Q2_K    = 10,
    GGML_TYPE_Q3_K    = 11,
    GGML_TYPE_Q4_K    = 12,
    GGML_TYPE_Q5_K    = 13,
    GGML_TYPE_Q6_K    = 14,
    GGML_TYPE_Q8_K    = 15,
    GGML_TYPE_IQ2_XXS = 16,
    GGML_TYPE_IQ2_XS  = 17,
    GGML_TYPE_IQ3_XXS = 18,
    GGML_TYPE_IQ1_S   = 19,
    GGML_TYPE_IQ4_NL  = 20,
    GGML_TYPE_IQ3_S   = 21,
    GGML_TYPE_IQ2_S   = 22,
    GGML_TYPE_IQ4_XS  = 23,
    GGML_TYPE_I8      = 24,
    GGML_TYPE_I16     = 25,
    GGML_TYPE_I32     = 26,
    GGML_TYPE_I64     = 27,
    GGML_TYPE_F64     = 28,
    GGML_TYPE_IQ1_M   = 29,
    GGML_TYPE_BF16    = 30,
    // GGML_TYPE_Q4_0_4_4 = 31, support has been removed from gguf files
    // GGML_TYPE_Q4_0_4_8 = 32,
    // GGML_TYPE_Q4_0_8_8 = 33,
    GGML_TYPE_TQ1_0   = 34,
    GGML_TYPE_TQ2_0   = 35,
    // GGML_TYPE_IQ4_NL_4_4 = 36,
    // GGML_TYPE_IQ4_NL_4_8 = 37,
    // GGML_TYPE_IQ4_NL_8_8 = 38,
    GGML_TYPE_MXFP4   = 39, // MXFP4 (1 block)
    GGML_TYPE_NVFP4   = 40, // NVFP4 (4 blocks, E4M3 scale)
    GGML_TYPE_Q1_0    = 41,
    GGML_TYPE_Q2_0    = 42,
    GGML_TYPE_COUNT   = 43,
};

enum {
    GGML_TENSOR_FLAG_OUTPUT = 2, GGML_TENSOR_FLAG_COMPUTE = 16,
    GGML_BACKEND_BUFFER_USAGE_WEIGHTS = 1, GGML_BACKEND_DEVICE_TYPE_GPU = 1,
};

struct ggml_backend_buffer;
struct ggml_tensor {
    enum ggml_type type;
    ggml_backend_buffer * buffer;
    int64_t ne[GGML_MAX_DIMS];
    size_t nb[GGML_MAX_DIMS];
    enum ggml_op op;
    int32_t op_params[16];
    int32_t flags;
    ggml_tensor * src[GGML_MAX_SRC];
    ggml_tensor * view_src;
    size_t view_offs;
    void * data;
    char name[64];
    void * extra;
    char padding[8];
};

struct ggml_cgraph {
    int size, n_nodes, n_leafs;
    ggml_tensor ** nodes;
    void * grads, * grad_accs;
    ggml_tensor ** leafs;
    // use counts and the hash table follow; only the library reads them
};

struct dev; struct buft; struct backend; struct reg;
typedef ggml_backend_buffer buffer;

struct buft_i {
    const char * (*get_name)(buft *);
    buffer * (*alloc_buffer)(buft *, size_t);
    void * alloc_buffer_n;
    size_t (*get_alignment)(buft *);
    size_t (*get_max_size)(buft *);
    size_t (*get_alloc_size)(buft *, const ggml_tensor *);
    void * get_alloc_size_n;
    bool (*is_host)(buft *);
};
struct buft { buft_i iface; dev * device; void * context; };

struct buffer_i {
    void (*free_buffer)(buffer *);
    void * (*get_base)(buffer *);
    int (*init_tensor)(buffer *, ggml_tensor *);
    void (*memset_tensor)(buffer *, ggml_tensor *, uint8_t, size_t, size_t);
    void (*set_tensor)(buffer *, ggml_tensor *, const void *, size_t, size_t);
    void (*get_tensor)(buffer *, const ggml_tensor *, void *, size_t, size_t);
    void * set_tensor_2d, * get_tensor_2d;
    bool (*cpy_tensor)(buffer *, const ggml_tensor *, ggml_tensor *);
    void (*clear)(buffer *, uint8_t);
    void (*reset)(buffer *);
};
struct ggml_backend_buffer { buffer_i iface; buft * type; void * context; size_t size; int usage; };

struct optimize_params {
    void (*add_alloc_dep)(void *, ggml_tensor *, ggml_tensor *);
    void * user_data;
};
struct backend_i {
    const char * (*get_name)(backend *);
    void (*free)(backend *);
    void (*set_tensor_async)(backend *, ggml_tensor *, const void *, size_t, size_t);
    void (*get_tensor_async)(backend *, const ggml_tensor *, void *, size_t, size_t);
    void * set_2d, * get_2d, * cpy_tensor_async;
    void (*synchronize)(backend *);
    void * plan_create, * plan_free, * plan_update, * plan_compute;
    int (*graph_compute)(backend *, ggml_cgraph *);
    void * event_record, * event_wait;
    void (*graph_optimize)(backend *, ggml_cgraph *, optimize_params *);
};
struct backend { const void * guid; backend_i iface; dev * device; void * context; };

struct caps { bool async, host_buffer, buffer_from_host_ptr, events, mmap_support; };
struct props {
    const char * name, * description;
    size_t memory_free, memory_total;
    int type;
    const char * device_id;
    caps c;
};
struct dev_i {
    const char * (*get_name)(dev *);
    const char * (*get_description)(dev *);
    void (*get_memory)(dev *, size_t *, size_t *);
    int (*get_type)(dev *);
    void (*get_props)(dev *, props *);
    backend * (*init_backend)(dev *, const char *);
    buft * (*get_buffer_type)(dev *);
    buft * (*get_host_buffer_type)(dev *);
    void * buffer_from_host_ptr;
    bool (*supports_op)(dev *, const ggml_tensor *);
    bool (*supports_buft)(dev *, buft *);
    bool (*offload_op)(dev *, const ggml_tensor *);
    void * event_new, * event_free, * event_synchronize;
};
struct dev { dev_i iface; reg * r; void * context; };
struct reg_i {
    const char * (*get_name)(reg *);
    size_t (*get_device_count)(reg *);
    dev * (*get_device)(reg *, size_t);
    void * (*get_proc_address)(reg *, const char *);
};
struct reg { int api_version; reg_i iface; void * context; };

// ---- functions of the library that this device is registered with -------------------------------

static struct {
    size_t (*nbytes)(const ggml_tensor *);
    size_t (*row_size)(ggml_type, int64_t);
    bool (*is_quantized)(ggml_type);
    bool (*is_contiguous)(const ggml_tensor *);
    bool (*same_shape)(const ggml_tensor *, const ggml_tensor *);
    bool (*same_stride)(const ggml_tensor *, const ggml_tensor *);
    bool (*is_matrix)(const ggml_tensor *);
    buft * (*cpu_type)();
    buffer * (*cpu_from_ptr)(void *, size_t);
    buffer * (*buffer_init)(buft *, buffer_i, void *, size_t);
    bool (*can_fuse)(const ggml_cgraph *, const int *, int, const ggml_op *, const int *, int);
    void (*do_register)(reg *);
} lib;

static bool   ggml_is_contiguous(const ggml_tensor * t) { return lib.is_contiguous(t); }
static bool   ggml_is_quantized(ggml_type t) { return lib.is_quantized(t); }
static bool   ggml_is_matrix(const ggml_tensor * t) { return lib.is_matrix(t); }
static size_t ggml_nbytes(const ggml_tensor * t) { return lib.nbytes(t); }
static size_t ggml_row_size(ggml_type t, int64_t n) { return lib.row_size(t, n); }
static bool   ggml_are_same_shape(const ggml_tensor * a, const ggml_tensor * b) { return lib.same_shape(a, b); }
static bool   ggml_are_same_stride(const ggml_tensor * a, const ggml_tensor * b) { return lib.same_stride(a, b); }
static int64_t ggml_nelements(const ggml_tensor * t) { return t->ne[0]*t->ne[1]*t->ne[2]*t->ne[3]; }
static int64_t ggml_nrows(const ggml_tensor * t) { return t->ne[1]*t->ne[2]*t->ne[3]; }
static ggml_unary_op ggml_get_unary_op(const ggml_tensor * t) { return (ggml_unary_op) t->op_params[0]; }
static ggml_glu_op ggml_get_glu_op(const ggml_tensor * t) { return (ggml_glu_op) t->op_params[0]; }
static int32_t ggml_get_op_params_i32(const ggml_tensor * t, int i) { return t->op_params[i]; }
static float ggml_get_op_params_f32(const ggml_tensor * t, int i) {
    float x;
    memcpy(&x, t->op_params + i, sizeof(x));
    return x;
}
static bool ggml_can_fuse_subgraph_ext(const ggml_cgraph * g, const int * nodes, int n, const ggml_op * ops, const int * out, int n_out) {
    return lib.can_fuse(g, nodes, n, ops, out, n_out);
}
static bool ggml_can_fuse_subgraph(const ggml_cgraph * g, int first, int n, const ggml_op * ops, const int * out, int n_out) {
    if (n >= 32 || first + n > g->n_nodes) {
        return false;
    }
    int nodes[32];
    for (int i = 0; i < n; ++i) {
        nodes[i] = first + i;
    }
    return lib.can_fuse(g, nodes, n, ops, out, n_out);
}

// ---- [ggml-cuda] topk-moe.cuh, topk-moe.cu, ggml-cuda.cu: which nodes are fused ------------------

struct ggml_cuda_topk_moe_args {
    bool sigmoid{};
    bool sqrt_softplus{};
    bool softmax{};
    bool delayed_softmax{};
    bool prob_bias{};
    bool norm{};
    bool scale{};
};

static bool ggml_cuda_should_use_topk_moe(const ggml_tensor * gating_op,
                                   const ggml_tensor * weights,
                                   const ggml_tensor * logits,
                                   const ggml_tensor * ids) {
    // must match an instantiation of launch_topk_moe_cuda: a power of 2 up to 512,
    // or one of the non-power-of-2 expert counts of supported models
    const int n_expert = ids->nb[1] / ids->nb[0];
    if (((n_expert & (n_expert - 1)) != 0 || n_expert > 512) && n_expert != 288 && n_expert != 576) {
        return false;
    }

    if (!ggml_is_contiguous(weights) || !ggml_is_contiguous(logits)) {
        return false;
    }

    if (gating_op->op == GGML_OP_SOFT_MAX) {
        const ggml_tensor * softmax  = gating_op;
        float               scale    = 1.0f;
        float               max_bias = 0.0f;

        memcpy(&scale, (const float *) softmax->op_params + 0, sizeof(float));
        memcpy(&max_bias, (const float *) softmax->op_params + 1, sizeof(float));

        if (!ggml_is_contiguous(softmax->src[0])) {
            return false;
        }

        if (scale != 1.0f || max_bias != 0.0f) {
            return false;
        }

        // don't fuse when masks or sinks are present
        if (softmax->src[1] || softmax->src[2]) {
            return false;
        }
    } else if (gating_op->op == GGML_OP_UNARY) {
        ggml_unary_op op = ggml_get_unary_op(gating_op);

        if (op != GGML_UNARY_OP_SIGMOID && op != GGML_UNARY_OP_SOFTPLUS) {
            return false;
        }
    }

    return true;
}

static constexpr int MOE_WEIGHTED_REDUCTION_MAX_EXPERTS = 15;

struct ggml_cuda_moe_weighted_reduction_match {
    const ggml_tensor * experts      = nullptr;
    const ggml_tensor * expert_scale = nullptr;
    const ggml_tensor * weights      = nullptr;
    ggml_tensor *       dst          = nullptr;
    int                 node_count   = 0;
};

static bool ggml_cuda_match_moe_weighted_reduction(
        const ggml_cgraph * cgraph,
        int node_idx,
        ggml_cuda_moe_weighted_reduction_match & match) {
    const ggml_tensor * first = cgraph->nodes[node_idx];
    if (first->op != GGML_OP_MUL || first->type != GGML_TYPE_F32 || !ggml_is_contiguous(first)) {
        return false;
    }

    auto split_mul = [](const ggml_tensor * mul, const ggml_tensor *& full, const ggml_tensor *& broadcast) {
        auto is_weights = [mul](const ggml_tensor * tensor) {
            return tensor && tensor->type == GGML_TYPE_F32 && ggml_is_contiguous(tensor) && tensor->ne[0] == 1 &&
                tensor->ne[1] == mul->ne[1] && tensor->ne[2] == mul->ne[2] && tensor->ne[3] == mul->ne[3];
        };
        auto is_experts = [mul](const ggml_tensor * tensor) {
            return tensor && tensor->type == GGML_TYPE_F32 && ggml_is_contiguous(tensor) &&
                ggml_are_same_shape(tensor, mul);
        };

        if (is_experts(mul->src[0]) && is_weights(mul->src[1])) {
            full      = mul->src[0];
            broadcast = mul->src[1];
            return true;
        }
        if (is_experts(mul->src[1]) && is_weights(mul->src[0])) {
            full      = mul->src[1];
            broadcast = mul->src[0];
            return true;
        }
        return false;
    };

    const ggml_tensor * weighted     = first;
    const ggml_tensor * experts      = nullptr;
    const ggml_tensor * expert_scale = nullptr;
    const ggml_tensor * weights      = nullptr;
    int                 mul_count    = 1;

    // Match both structural forms:
    //   (experts * expert_scale) * router_weight
    //   experts * router_weight
    // The matcher does not depend on the model or quantization type.
    if (node_idx + 1 < cgraph->n_nodes) {
        const ggml_tensor * second = cgraph->nodes[node_idx + 1];
        const ggml_tensor * scaled = nullptr;
        const ggml_tensor * route  = nullptr;
        const ggml_tensor * raw    = nullptr;
        const ggml_tensor * scale  = nullptr;
        if (second->op == GGML_OP_MUL && second->type == GGML_TYPE_F32 && ggml_is_contiguous(second) &&
                split_mul(second, scaled, route) && scaled == first && split_mul(first, raw, scale)) {
            weighted     = second;
            experts      = raw;
            expert_scale = scale;
            weights      = route;
            mul_count    = 2;
        }
    }

    if (experts == nullptr && !split_mul(first, experts, weights)) {
        return false;
    }

    const int     n_expert_used = (int) weighted->ne[1];
    const int64_t n_tokens      = weighted->ne[2] * weighted->ne[3];
    if (n_expert_used < 2 || n_expert_used > MOE_WEIGHTED_REDUCTION_MAX_EXPERTS) {
        return false;
    }

    const int node_count = 2 * n_expert_used + mul_count - 1;
    if (node_idx + node_count > cgraph->n_nodes) {
        return false;
    }

    std::vector<ggml_op> ops(node_count, GGML_OP_VIEW);
    ops[0] = GGML_OP_MUL;
    if (mul_count == 2) {
        ops[1] = GGML_OP_MUL;
    }
    std::vector<const ggml_tensor *> views;
    views.reserve(n_expert_used);
    const ggml_tensor * previous = nullptr;
    int n_adds = 0;
    for (int offset = mul_count; offset < node_count; ++offset) {
        const ggml_tensor * candidate = cgraph->nodes[node_idx + offset];
        ops[offset] = candidate->op;

        if (candidate->op == GGML_OP_VIEW) {
            const int expert = (int) views.size();
            if (expert >= n_expert_used || candidate->src[0] != weighted || candidate->view_src != weighted ||
                    candidate->type != GGML_TYPE_F32 || candidate->ne[0] != weighted->ne[0] ||
                    candidate->ne[1] != n_tokens || candidate->ne[2] != 1 || candidate->ne[3] != 1 ||
                    candidate->nb[0] != weighted->nb[0] || candidate->nb[1] != weighted->nb[2] ||
                    candidate->view_offs != (size_t) expert * weighted->nb[1]) {
                return false;
            }
            views.push_back(candidate);
            continue;
        }

        if (candidate->op != GGML_OP_ADD || views.size() < 2 || n_adds + 1 >= (int) views.size()) {
            return false;
        }
        const ggml_tensor * lhs = n_adds == 0 ? views[0] : previous;
        const ggml_tensor * rhs = views[n_adds + 1];
        if (candidate->src[0] != lhs || candidate->src[1] != rhs || candidate->type != GGML_TYPE_F32) {
            return false;
        }
        previous = candidate;
        ++n_adds;
    }

    if ((int) views.size() != n_expert_used || n_adds != n_expert_used - 1 || previous == nullptr) {
        return false;
    }
    if (!ggml_is_contiguous(previous) || previous->ne[0] != weighted->ne[0] ||
            previous->ne[1] != n_tokens || previous->ne[2] != 1 || previous->ne[3] != 1) {
        return false;
    }

    const int output_idx = node_idx + node_count - 1;
    if (!ggml_can_fuse_subgraph(cgraph, node_idx, node_count, ops.data(), &output_idx, 1)) {
        return false;
    }

    match.experts      = experts;
    match.expert_scale = expert_scale;
    match.weights      = weights;
    match.dst          = cgraph->nodes[output_idx];
    match.node_count   = node_count;
    return true;
}

static bool ggml_cuda_topk_moe_fusion(const struct ggml_cgraph * cgraph, int node_idx, ggml_cuda_topk_moe_args & args) {
    args.sigmoid         = false;
    args.sqrt_softplus   = false;
    args.softmax         = false;
    args.delayed_softmax = false;
    args.prob_bias       = false;
    args.norm            = false;

    const int      n_nodes = cgraph->n_nodes;
    ggml_tensor ** nodes   = cgraph->nodes;

    if (nodes[node_idx]->op == GGML_OP_SOFT_MAX) {
        args.softmax = true;
    }

    if (nodes[node_idx]->op == GGML_OP_UNARY) {
        const ggml_unary_op unary_op = ggml_get_unary_op(nodes[node_idx]);
        if (unary_op == GGML_UNARY_OP_SIGMOID) {
            args.sigmoid = true;
        } else if (unary_op == GGML_UNARY_OP_SOFTPLUS && node_idx + 1 < n_nodes &&
                   nodes[node_idx + 1]->op == GGML_OP_SQRT && nodes[node_idx + 1]->src[0] == nodes[node_idx]) {
            // sqrt(softplus(x)) scoring (DeepSeek-V4)
            args.sqrt_softplus = true;
            node_idx++;
        } else {
            return false;
        }
    }

    if (nodes[node_idx]->op == GGML_OP_ARGSORT) {
        args.delayed_softmax = true;
    }

    node_idx++;

    if (args.sigmoid || args.sqrt_softplus || args.softmax) {
        // SOFTMAX -> RESHAPE
        if (node_idx >= n_nodes || nodes[node_idx]->op != GGML_OP_RESHAPE ||
                nodes[node_idx]->src[0] != nodes[node_idx - 1]) {
            return false;
        }
        ggml_tensor * probs_reshaped = nodes[node_idx];
        node_idx++;

        if (node_idx >= n_nodes) {
            return false;
        }

        // src of bias add is the unreshaped probs (-2 instead of -1)
        if (nodes[node_idx]->op == GGML_OP_ADD && nodes[node_idx]->src[0] == nodes[node_idx - 2]) {
            args.prob_bias = true;
            node_idx++;
        }
        // RESHAPE/ADD -> ARGSORT
        if (node_idx >= n_nodes || nodes[node_idx]->op != GGML_OP_ARGSORT) {
            return false;
        }

        if (args.prob_bias && nodes[node_idx]->src[0] != nodes[node_idx - 1]) {
            return false;
        } else if (!args.prob_bias && nodes[node_idx]->src[0] != nodes[node_idx - 2]) {
            return false;
        }

        node_idx++;

        // ARGSORT-> VIEW
        if (node_idx >= n_nodes || nodes[node_idx]->op != GGML_OP_VIEW ||
                nodes[node_idx]->src[0] != nodes[node_idx - 1]) {
            return false;
        }
        node_idx++;

        if (node_idx >= n_nodes || nodes[node_idx]->op != GGML_OP_GET_ROWS) {
            return false;
        }

        // GET_ROWS
        if (nodes[node_idx]->src[0] != probs_reshaped || nodes[node_idx]->src[1] != nodes[node_idx - 1]) {
            return false;
        }
        node_idx++;
    } else if (args.delayed_softmax) {
        if (node_idx - 2 < 0) {
            return false;
        }
        ggml_tensor * probs_reshaped = nodes[node_idx - 2];

        // VIEW->ARGSORT
        if (node_idx >= n_nodes || nodes[node_idx]->op != GGML_OP_VIEW ||
            nodes[node_idx]->src[0] != nodes[node_idx - 1]) {
            return false;
        }
        node_idx++;

        // GET_ROWS
        if (node_idx >= n_nodes || nodes[node_idx]->src[1] != nodes[node_idx - 1] ||
                nodes[node_idx]->src[0] != probs_reshaped) {
            return false;
        }
        node_idx++;

        static const std::vector<ggml_op> remaining_ops = { GGML_OP_RESHAPE, GGML_OP_SOFT_MAX, GGML_OP_RESHAPE };

        for (const ggml_op op : remaining_ops) {
            if (node_idx >= n_nodes || nodes[node_idx]->op != op || nodes[node_idx]->src[0] != nodes[node_idx - 1]) {
                return false;
            }
            node_idx++;
        }
    }

    // At this point we can check for norm + scale. Everything is now at least valid till the norm
    if (node_idx >= n_nodes) {
        return true;
    }

    if (nodes[node_idx]->op == GGML_OP_RESHAPE) {
        //check RESHAPE->SUM_ROWS->CLAMP->DIV->RESHAPE
        static const std::vector<ggml_op> norm_ops = { GGML_OP_RESHAPE, GGML_OP_SUM_ROWS, GGML_OP_CLAMP };

        args.norm = true;
        for (const ggml_op op : norm_ops) {
            if (nodes[node_idx]->op == op && nodes[node_idx]->src[0] == nodes[node_idx - 1]) {
                node_idx++;
            } else {
                args.norm = false;
                return true;
            }
        }

        // DIV <- CLAMP, RESHAPE
        if (nodes[node_idx]->op != GGML_OP_DIV || nodes[node_idx]->src[1] != nodes[node_idx - 1] ||
            nodes[node_idx]->src[0] != nodes[node_idx - 3]) {
            args.norm = false;
            return true;
        }
        node_idx++;

        if (nodes[node_idx]->op != GGML_OP_RESHAPE || nodes[node_idx]->src[0] != nodes[node_idx - 1]) {
            args.norm = false;
            return true;
        }

        node_idx++;
    }

    if (nodes[node_idx]->op == GGML_OP_SCALE && nodes[node_idx]->src[0] == nodes[node_idx - 1]) {
        args.scale = true;
    }

    return true;
}

static bool ggml_cuda_should_fuse_mul_mat(const ggml_tensor * ffn_up,
                                          const ggml_tensor * ffn_gate,
                                          const ggml_tensor * glu,
                                          const ggml_tensor * ffn_up_bias = nullptr,
                                          const ggml_tensor * ffn_gate_bias = nullptr,
                                          const ggml_tensor * ffn_up_scale = nullptr,
                                          const ggml_tensor * ffn_gate_scale = nullptr) {
    const bool has_bias = ffn_up_bias != nullptr || ffn_gate_bias != nullptr;
    const bool has_scale = ffn_up_scale != nullptr || ffn_gate_scale != nullptr;

    if (has_bias && (!ffn_up_bias || !ffn_gate_bias)) {
        return false;
    }
    if (has_scale && (!ffn_up_scale || !ffn_gate_scale)) {
        return false;
    }

    const bool is_mul_mat     = ffn_up->op == GGML_OP_MUL_MAT     && ffn_gate->op == GGML_OP_MUL_MAT     && glu->op == GGML_OP_GLU;
    const bool is_mul_mat_id  = ffn_up->op == GGML_OP_MUL_MAT_ID  && ffn_gate->op == GGML_OP_MUL_MAT_ID  && glu->op == GGML_OP_GLU;

    GGML_ASSERT(ffn_up && ffn_gate && glu);

    if (!is_mul_mat && !is_mul_mat_id) {
        return false;
    }

    const ggml_op expected_bias_op = is_mul_mat ? GGML_OP_ADD : GGML_OP_ADD_ID;
    const ggml_tensor * ffn_up_bias_src   = has_scale ? ffn_up_scale   : ffn_up;
    const ggml_tensor * ffn_gate_bias_src = has_scale ? ffn_gate_scale : ffn_gate;
    const ggml_tensor * ffn_up_out        = has_bias ? ffn_up_bias     : ffn_up_bias_src;
    const ggml_tensor * ffn_gate_out      = has_bias ? ffn_gate_bias   : ffn_gate_bias_src;

    if (glu->src[0] != ffn_gate_out || glu->src[1] != ffn_up_out) {
        return false;
    }

    if (has_scale) {
        if (ffn_up_scale->op != GGML_OP_MUL || ffn_gate_scale->op != GGML_OP_MUL) {
            return false;
        }
        const bool up_has_mm   = ffn_up_scale->src[0] == ffn_up || ffn_up_scale->src[1] == ffn_up;
        const bool gate_has_mm = ffn_gate_scale->src[0] == ffn_gate || ffn_gate_scale->src[1] == ffn_gate;
        if (!up_has_mm || !gate_has_mm) {
            return false;
        }
    }

    if (has_bias) {
        if (ffn_up_bias->op != expected_bias_op || ffn_gate_bias->op != expected_bias_op) {
            return false;
        }

        if (expected_bias_op == GGML_OP_ADD) {
            const bool up_has_mul   = ffn_up_bias->src[0] == ffn_up_bias_src || ffn_up_bias->src[1] == ffn_up_bias_src;
            const bool gate_has_mul = ffn_gate_bias->src[0] == ffn_gate_bias_src || ffn_gate_bias->src[1] == ffn_gate_bias_src;
            if (!up_has_mul || !gate_has_mul) {
                return false;
            }
        } else { // GGML_OP_ADD_ID
            if (ffn_up_bias->src[0] != ffn_up_bias_src || ffn_gate_bias->src[0] != ffn_gate_bias_src) {
                return false;
            }
            if (ffn_up_bias->src[2] != ffn_up->src[2] || ffn_gate_bias->src[2] != ffn_gate->src[2]) {
                return false;
            }
        }
    }

    if (ffn_up->src[0]->type != ffn_gate->src[0]->type || !ggml_are_same_shape(ffn_up->src[0], ffn_gate->src[0]) ||
        !ggml_are_same_stride(ffn_up->src[0], ffn_gate->src[0])) {
        return false;
    }

    if (ffn_up->src[1] != ffn_gate->src[1]) {
        return false;
    }

    if (is_mul_mat_id && ffn_up->src[2] != ffn_gate->src[2]) {
        return false;
    }

    static constexpr std::array<ggml_glu_op, 4> valid_glu_ops = { GGML_GLU_OP_SWIGLU, GGML_GLU_OP_GEGLU, GGML_GLU_OP_SWIGLU_OAI, GGML_GLU_OP_SWIGLU_CLAMP };

    if (std::find(valid_glu_ops.begin(), valid_glu_ops.end(), ggml_get_glu_op(glu)) == valid_glu_ops.end()) {
        return false;
    }

    if (const bool swapped = ggml_get_op_params_i32(glu, 1); swapped) {
        return false;
    }

    return true;
}

static bool ggml_cuda_match_shared_expert(const ggml_cgraph * graph, int routed_idx, int shared_idx) {
    if (routed_idx + 2 >= graph->n_nodes || shared_idx + 2 >= graph->n_nodes || shared_idx < routed_idx + 3) {
        return false;
    }
    const int nodes[] = { routed_idx, routed_idx + 1, routed_idx + 2, shared_idx, shared_idx + 1, shared_idx + 2 };
    const ggml_op ops[] = { GGML_OP_MUL_MAT_ID, GGML_OP_MUL_MAT_ID, GGML_OP_GLU,
                           GGML_OP_MUL_MAT, GGML_OP_MUL_MAT, GGML_OP_GLU };
    const int outputs[] = { routed_idx + 2, shared_idx + 2 };
    if (!ggml_can_fuse_subgraph_ext(graph, nodes, 6, ops, outputs, 2)) {
        return false;
    }

    const ggml_tensor * routed = graph->nodes[routed_idx + 2];
    const ggml_tensor * shared = graph->nodes[shared_idx + 2];
    const ggml_tensor * gate = routed->src[0];
    const ggml_tensor * up = routed->src[1];
    const ggml_tensor * shared_gate = shared->src[0];
    const ggml_tensor * shared_up = shared->src[1];
    const auto is_pair = [&](const ggml_tensor * a, const ggml_tensor * b, int idx) {
        return (a == graph->nodes[idx] && b == graph->nodes[idx + 1]) ||
               (b == graph->nodes[idx] && a == graph->nodes[idx + 1]);
    };
    // only batch-size independent checks here: graph_optimize must produce the same graph topology for every ubatch
    // size, otherwise ggml-alloc has to re-reserve (and the scheduler to synchronize) at runtime.
    // the MMVQ batch size check is done in ggml_cuda_try_fuse
    if (!is_pair(gate, up, routed_idx) || !is_pair(shared_gate, shared_up, shared_idx) ||
            !ggml_cuda_should_fuse_mul_mat(up, gate, routed) ||
            !ggml_cuda_should_fuse_mul_mat(shared_up, shared_gate, shared) ||
            !up->src[0]->buffer ||
            !ggml_is_quantized(up->src[0]->type)) {
        return false;
    }
    const ggml_tensor * input = up->src[1];
    const ggml_tensor * weight = up->src[0];
    const ggml_tensor * shared_weight = shared_up->src[0];
    if (input->op != GGML_OP_RESHAPE || input->src[0] != shared_up->src[1] ||
            input->ne[1] != 1 || input->ne[3] != 1 || !ggml_is_contiguous(input) ||
            !ggml_is_contiguous(shared_up->src[1]) || !ggml_is_matrix(shared_up->src[1]) ||
            weight->type != shared_weight->type || weight->ne[0] != shared_weight->ne[0] ||
            weight->ne[1] != shared_weight->ne[1] || weight->nb[1] != shared_weight->nb[1] || weight->ne[3] != 1 ||
            !ggml_is_matrix(shared_weight) || !ggml_is_contiguous(shared_weight) ||
            !ggml_is_contiguous(shared_gate->src[0]) || !ggml_is_contiguous(routed) || !ggml_is_contiguous(shared)) {
        return false;
    }
    if (shared_weight->op != GGML_OP_NONE || shared_gate->src[0]->op != GGML_OP_NONE ||
            ggml_get_glu_op(routed) != ggml_get_glu_op(shared) ||
            ggml_get_op_params_f32(routed, 3) != ggml_get_op_params_f32(shared, 3)) {
        return false;
    }
    return true;
}

static void ggml_backend_cuda_graph_optimize(backend *, ggml_cgraph * cgraph, optimize_params * params) {

    static const bool disable_fusion = getenv("GGML_CUDA_DISABLE_FUSION") != nullptr && std::atoi(getenv("GGML_CUDA_DISABLE_FUSION"));

    auto add_alloc_deps = [&](size_t start, size_t last_node) {

        for (size_t i = start; i < last_node; ++i) {
            params->add_alloc_dep(params->user_data, cgraph->nodes[i], cgraph->nodes[last_node]);

            for (int j = 0; j < GGML_MAX_SRC; ++j) {
                if (cgraph->nodes[i]->src[j]) {
                    params->add_alloc_dep(params->user_data, cgraph->nodes[i]->src[j], cgraph->nodes[last_node]);
                }
            }
        }
    };

    if (!disable_fusion) {
        // add alloc deps for performance positive fusions. This may increase the overall compute buffer size.
        // TODO: consolidate fusion paths in graph_optimize and graph_compute
        for (int i = 0; i + 5 < cgraph->n_nodes; ++i) {
            if (cgraph->nodes[i]->op != GGML_OP_MUL_MAT_ID) {
                continue;
            }
            for (int j = i + 3; j + 2 < cgraph->n_nodes; ++j) {
                if (cgraph->nodes[j]->op == GGML_OP_MUL_MAT_ID && cgraph->nodes[j + 1]->op == GGML_OP_MUL_MAT_ID) {
                    break;
                }
                if (cgraph->nodes[j]->op != GGML_OP_MUL_MAT || !ggml_cuda_match_shared_expert(cgraph, i, j)) {
                    continue;
                }
                // Group both outputs before allocation so the shared result cannot alias intervening nodes.
                std::rotate(cgraph->nodes + i + 3, cgraph->nodes + j, cgraph->nodes + j + 3);
                ggml_tensor * up = cgraph->nodes[i + 2]->src[1];
                params->add_alloc_dep(params->user_data, up->src[1], cgraph->nodes[i + 5]);
                params->add_alloc_dep(params->user_data, up->src[2], cgraph->nodes[i + 5]);
                i += 5;
                break;
            }
        }
        for (int i = 0; i < cgraph->n_nodes; ++i) {
            ggml_cuda_moe_weighted_reduction_match match;
            if (ggml_cuda_match_moe_weighted_reduction(cgraph, i, match)) {
                params->add_alloc_dep(params->user_data, const_cast<ggml_tensor *>(match.experts), match.dst);
                params->add_alloc_dep(params->user_data, const_cast<ggml_tensor *>(match.weights), match.dst);
                if (match.expert_scale != nullptr) {
                    params->add_alloc_dep(
                        params->user_data, const_cast<ggml_tensor *>(match.expert_scale), match.dst);
                }
                i += match.node_count - 1;
            }

            if (cgraph->nodes[i]->op == GGML_OP_UNARY || cgraph->nodes[i]->op == GGML_OP_SOFT_MAX ||
                    cgraph->nodes[i]->op == GGML_OP_ARGSORT) {
                ggml_cuda_topk_moe_args args;
                const bool              can_fuse = ggml_cuda_topk_moe_fusion(cgraph, i, args);
                std::vector<ggml_op>    ops;
                ops.reserve(13);  // max ops; avoids gcc -Wstringop-overflow false positive

                const ggml_tensor * node = cgraph->nodes[i];

                if (can_fuse) {
                    const ggml_tensor * logits  = node->src[0];
                    ggml_tensor *       weights = nullptr;
                    ggml_tensor *       ids     = nullptr;

                    if (!args.delayed_softmax) {
                        int out_nodes[2];  // nodes which can't be elided

                        if (args.sigmoid) {
                            ops.insert(ops.end(), { GGML_OP_UNARY });
                        } else if (args.sqrt_softplus) {
                            ops.insert(ops.end(), { GGML_OP_UNARY, GGML_OP_SQRT });
                        } else {
                            ops.insert(ops.end(), { GGML_OP_SOFT_MAX });
                        }
                        const int i_probs = i + (int) ops.size() - 1;  // last node of the gating activation

                        if (args.prob_bias) {
                            ops.insert(ops.end(), { GGML_OP_RESHAPE, GGML_OP_ADD, GGML_OP_ARGSORT, GGML_OP_VIEW,
                                                    GGML_OP_GET_ROWS });
                            out_nodes[0] = i_probs + 4;
                        } else {
                            ops.insert(ops.end(), { GGML_OP_RESHAPE, GGML_OP_ARGSORT, GGML_OP_VIEW, GGML_OP_GET_ROWS });
                            out_nodes[0] = i_probs + 3;
                        }
                        ids = cgraph->nodes[out_nodes[0]];

                        if (args.norm) {
                            ops.insert(ops.end(),
                                       { GGML_OP_RESHAPE, GGML_OP_SUM_ROWS, GGML_OP_CLAMP, GGML_OP_DIV, GGML_OP_RESHAPE });
                        }
                        if (args.scale) {
                            ops.insert(ops.end(), { GGML_OP_SCALE });
                        }

                        weights      = cgraph->nodes[i + ops.size() - 1];
                        out_nodes[1] = i + ops.size() - 1;

                        if (ggml_can_fuse_subgraph(cgraph, i, ops.size(), ops.data(), out_nodes, 2) &&
                                ggml_cuda_should_use_topk_moe(node, logits, weights, ids)) {

                            add_alloc_deps(i, i + ops.size());
                            i += ops.size() - 1;
                        }
                    }
                }
            }
        }
    }

}

// ---- [ggml-cuda] ggml-cuda.cu, fattn.cu: what runs there, and how large a tensor is --------------

static int cc = 900;  // compute capability as llama.cpp has it; 0: built with GGML_CUDA_FA=OFF
#define MATRIX_ROW_PADDING 512
#define FATTN_KQ_STRIDE 256

// fattn.cu: ggml_cuda_get_best_fattn_kernel, as far as it says whether there is a kernel and whether it
// is the vector kernel (NVIDIA from Turing on; older ones differ in which kernel, not in whether)
static bool flash_attention(const ggml_tensor * dst, bool & vector) {
    const ggml_tensor * Q = dst->src[0], * K = dst->src[1], * V = dst->src[2], * mask = dst->src[3];
    const int gqa = Q->ne[2] / K->ne[2];
    const float max_bias = ggml_get_op_params_f32(dst, 1);
    bool gqa_opt = gqa >= 2 && mask && max_bias == 0.0f && K->ne[1] % FATTN_KQ_STRIDE == 0;
    for (const ggml_tensor * t : { Q, K, V, mask }) {
        if (t == nullptr || ggml_is_quantized(t->type)) {
            continue;
        }
        for (int i = 1; i < GGML_MAX_DIMS; ++i) {
            gqa_opt = gqa_opt && t->nb[i] % 16 == 0;
        }
    }
    vector = false;
    if (cc == 0) {
        return false;
    }
    switch (K->ne[0]) {
        case 40: case 64: case 72: case 80: case 96: case 128: case 112: case 256:
            if (V->ne[0] != K->ne[0]) return false;
            break;
        case 192:
            if (V->ne[0] != 128 || !gqa_opt || gqa % 8 != 0) return false;
            break;
        case 320:
            if (V->ne[0] != 256 || !gqa_opt || gqa % 32 != 0) return false;
            break;
        case 512:
            if (V->ne[0] != K->ne[0] || !gqa_opt) return false;
            break;
        case 576:
            if (V->ne[0] != 512 || !gqa_opt) return false;
            break;
        default:
            return false;
    }
    for (ggml_type type : { K->type, V->type }) {
        switch (type) {
            case GGML_TYPE_F32: case GGML_TYPE_F16: case GGML_TYPE_BF16: case GGML_TYPE_Q4_0:
            case GGML_TYPE_Q4_1: case GGML_TYPE_Q5_0: case GGML_TYPE_Q5_1: case GGML_TYPE_Q8_0:
                break;
            default:
                return false;
        }
    }
    if (mask && mask->ne[2] != 1) return false;
    const bool can_vector = Q->ne[0] <= 256 && Q->ne[0] % 64 == 0 && Q->ne[0] != 192 && K->ne[1] % FATTN_KQ_STRIDE == 0;
    if (can_vector) {
        if (!ggml_is_quantized(K->type) && !ggml_is_quantized(V->type)) {
            vector = cc >= 890 && Q->ne[1] == 1 && Q->ne[3] == 1 && !(gqa > 4 && (Q->ne[0] >= 256 || K->ne[1] >= 8192));
        } else {
            vector = Q->ne[1] <= (cc >= 890 ? 2 : 1);
        }
        vector = vector || (!gqa_opt && Q->ne[1] == 1);
    }
    return true;
}

// fattn.cu: ggml_cuda_flash_attn_ext_get_alloc_size. The vector kernel reads the usual pairs of types
// without a copy; the others want F16.
static size_t flash_attention_size(const ggml_tensor * dst) {
    const ggml_tensor * K = dst->src[1], * V = dst->src[2];
    bool vector = false;
    const bool any = flash_attention(dst, vector);
    const bool need_K = any && (!vector || K->type == GGML_TYPE_F32);
    const bool need_V = any && (!vector || V->type == GGML_TYPE_F32);
    const bool V_is_K_view = V->view_src && (V->view_src == K || (V->view_src == K->view_src && V->view_offs == K->view_offs));
    size_t end = ggml_nbytes(dst);
    if (need_K && K->type != GGML_TYPE_F16) {
        end = GGML_PAD(end, 128) + 2*ggml_nelements(K);
    }
    if (need_V && V->type != GGML_TYPE_F16 && !V_is_K_view) {
        end = GGML_PAD(end, 128) + 2*ggml_nelements(V);
    }
    return end;
}

static size_t alloc_size(buft *, const ggml_tensor * t) {
    size_t size = t->op == GGML_OP_FLASH_ATTN_EXT ? flash_attention_size(t) : ggml_nbytes(t);
    if (ggml_is_quantized(t->type) && t->ne[0] % MATRIX_ROW_PADDING != 0) {
        size += ggml_row_size(t->type, MATRIX_ROW_PADDING - t->ne[0] % MATRIX_ROW_PADDING);
    }
    return size;
}

static bool supports_op(dev *, const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_MUL_MAT:
        case GGML_OP_MUL_MAT_ID:
            return !(op->src[1]->type == GGML_TYPE_F16 && op->src[0]->type != GGML_TYPE_F16);
        case GGML_OP_GET_ROWS:
            switch (op->src[0]->type) {
                case GGML_TYPE_IQ4_NL: case GGML_TYPE_MXFP4:
                    return op->src[0]->ne[0] % 256 == 0;
                case GGML_TYPE_NVFP4: case GGML_TYPE_TQ1_0: case GGML_TYPE_TQ2_0: case GGML_TYPE_Q8_K:
                    return false;
                default:
                    return true;
            }
        case GGML_OP_FLASH_ATTN_EXT: {
            bool vector;
            return flash_attention(op, vector);
        }
        default:
            return true;
    }
}

static bool offload_op(dev *, const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_GET_ROWS:   return false;
        case GGML_OP_MUL_MAT:    return op->ne[1] >= 32;
        case GGML_OP_MUL_MAT_ID:
        case GGML_OP_ROPE:       return op->ne[2] >= 32;
        default:                 return ggml_nrows(op) >= 32;
    }
}

// ---- the device ---------------------------------------------------------------------------------

static size_t vram_total = 80ull << 30, vram_used = 0;
static dev  the_device;
static buft device_type, host_type;
static reg  the_reg;
static const uint8_t guid[16] = { 'u', 'v', 'm', 's', 'i', 'm' };

static void * reserve(size_t size) {
    void * p = mmap(nullptr, std::max<size_t>(size, 4096), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? nullptr : p;
}

static void buffer_free(buffer * b) {
    munmap(b->context, std::max<size_t>(b->size, 4096));
    vram_used -= b->size;
}
static void * buffer_base(buffer * b) { return b->context; }
static void nothing_set(buffer *, ggml_tensor *, const void *, size_t, size_t) {}
static void nothing_memset(buffer *, ggml_tensor *, uint8_t, size_t, size_t) {}
static void nothing_get(buffer *, const ggml_tensor *, void *, size_t, size_t) {}
static bool nothing_copy(buffer *, const ggml_tensor *, ggml_tensor *) { return true; }
static void nothing_clear(buffer *, uint8_t) {}

static buffer * device_alloc(buft * type, size_t size) {
    if (vram_used + size > vram_total) {
        return nullptr;
    }
    void * p = reserve(size);
    if (p == nullptr) {
        return nullptr;
    }
    vram_used += size;
    buffer_i iface = {};
    iface.free_buffer = buffer_free;
    iface.get_base = buffer_base;
    iface.set_tensor = nothing_set;
    iface.memset_tensor = nothing_memset;
    iface.get_tensor = nothing_get;
    iface.cpy_tensor = nothing_copy;
    iface.clear = nothing_clear;
    return lib.buffer_init(type, iface, p, size);
}
static void host_free(buffer * b) { munmap(b->context, std::max<size_t>(b->size, 4096)); }
static buffer * host_alloc(buft * type, size_t size) {
    void * p = reserve(size);
    buffer * b = lib.cpu_from_ptr(p, size);
    b->type = type;
    b->iface.free_buffer = host_free;
    return b;
}

static backend * init_backend(dev *, const char *);

extern "C" void virtual_gpu_register(void * library, int compute_capability, size_t vram_bytes) {
    auto find = [&](const char * name) {
        void * p = dlsym(library, name);
        if (p == nullptr) {
            abort();
        }
        return p;
    };
    cc = compute_capability;
    vram_total = vram_bytes;
    *(void **) &lib.nbytes        = find("ggml_nbytes");
    *(void **) &lib.row_size      = find("ggml_row_size");
    *(void **) &lib.is_quantized  = find("ggml_is_quantized");
    *(void **) &lib.is_contiguous = find("ggml_is_contiguous");
    *(void **) &lib.same_shape    = find("ggml_are_same_shape");
    *(void **) &lib.same_stride   = find("ggml_are_same_stride");
    *(void **) &lib.is_matrix     = find("ggml_is_matrix");
    *(void **) &lib.cpu_type      = find("ggml_backend_cpu_buffer_type");
    *(void **) &lib.cpu_from_ptr  = find("ggml_backend_cpu_buffer_from_ptr");
    *(void **) &lib.buffer_init   = find("ggml_backend_buffer_init");
    *(void **) &lib.can_fuse      = find("ggml_can_fuse_subgraph_ext");
    *(void **) &lib.do_register   = find("ggml_backend_register");

    device_type = {};
    device_type.device = &the_device;
    device_type.iface.get_name = [](buft *) { return "CUDA0"; };
    device_type.iface.alloc_buffer = device_alloc;
    device_type.iface.get_alignment = [](buft *) -> size_t { return 128; };
    device_type.iface.get_alloc_size = alloc_size;

    host_type = {};
    host_type.device = &the_device;
    host_type.iface = lib.cpu_type()->iface;
    host_type.iface.get_name = [](buft *) { return "CUDA_Host"; };
    host_type.iface.alloc_buffer = host_alloc;
    host_type.iface.get_max_size = nullptr;

    the_device = {};
    the_device.r = &the_reg;
    dev_i & d = the_device.iface;
    d.get_name = [](dev *) { return "CUDA0"; };
    d.get_description = [](dev *) { return "virtual GPU"; };
    d.get_memory = [](dev *, size_t * free, size_t * total) { *free = vram_total - vram_used; *total = vram_total; };
    d.get_type = [](dev *) -> int { return GGML_BACKEND_DEVICE_TYPE_GPU; };
    d.get_props = [](dev *, props * p) {
        *p = { "CUDA0", "virtual GPU", vram_total - vram_used, vram_total, GGML_BACKEND_DEVICE_TYPE_GPU, nullptr,
            { true, true, false, false, true } };
    };
    d.init_backend = init_backend;
    d.get_buffer_type = [](dev *) { return &device_type; };
    d.get_host_buffer_type = [](dev *) { return &host_type; };
    d.supports_op = supports_op;
    d.supports_buft = [](dev *, buft * b) { return b == &device_type; };
    d.offload_op = offload_op;

    the_reg = {};
    the_reg.api_version = 3;
    the_reg.iface.get_name = [](reg *) { return "CUDA"; };
    the_reg.iface.get_device_count = [](reg *) -> size_t { return 1; };
    the_reg.iface.get_device = [](reg *, size_t) { return &the_device; };
    the_reg.iface.get_proc_address = [](reg *, const char *) -> void * { return nullptr; };
    lib.do_register(&the_reg);
}

static backend * init_backend(dev *, const char *) {
    backend * b = new backend();
    *b = {};
    b->guid = guid;
    b->device = &the_device;
    b->iface.get_name = [](backend *) { return "CUDA0"; };
    b->iface.free = [](backend * x) { delete x; };
    b->iface.set_tensor_async = [](backend *, ggml_tensor *, const void *, size_t, size_t) {};
    b->iface.get_tensor_async = [](backend *, const ggml_tensor *, void *, size_t, size_t) {};
    b->iface.synchronize = [](backend *) {};
    b->iface.graph_compute = [](backend *, ggml_cgraph *) { return 0; };
    b->iface.graph_optimize = ggml_backend_cuda_graph_optimize;
    return b;
}
