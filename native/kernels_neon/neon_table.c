/* The NEON kernel tables: three levels of integer products, each where the processor has it. Compiled for any
 * 64-bit ARM. The tables are built once and never change; any thread. */
#include <pthread.h>

#include "neon.h"
#include "platform.h"

static struct kernels neon = {
    .name = "neon",
    .token_block = TOKEN_BLOCK_MAX,
    .quantize = neon_quantize,
    .matmul = {[TYPE_F32] = neon_matmul_f32, [TYPE_F16] = neon_matmul_f16, [TYPE_BF16] = neon_matmul_bf16},
    .rmsnorm = neon_rmsnorm,
    .layernorm = neon_layernorm,
    .add = neon_add,
    .silu_mul = neon_silu_mul,
    .gelu = neon_gelu,
    .rope = neon_rope,
    .narrow = neon_narrow,
    .attend = neon_attend,
    .attend_merge = neon_attend_merge,
    .argmax = neon_argmax,
};
static struct kernels dotprod, i8mm;
static const struct kernels *usable_dotprod, *usable_i8mm;

/* A 2 x 2 of sums pays from two rows of activations on; the bits are the same either way. */
static void matmul_i8mm(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                        void *scratch)
{
    (a->n_rows == 1 ? neon_matmul_dot : neon_matmul_i8mm)(w, row0, row1, a, y, ld_y, scratch);
}

static void set_quantized(struct kernels *k, const char *name, neon_matmul_fn *fn)
{
    k->name = name;
    for (int t = 0; t < TYPE_COUNT; t++)
        if (neon_unpack[t]) k->matmul[t] = fn;
}

static void build_tables(void)
{
    struct platform_arm64 has = platform_arm64_features();
    neon.scratch_bytes =
        neon_matmul_scratch > kernels_scalar.scratch_bytes ? neon_matmul_scratch : kernels_scalar.scratch_bytes;
    set_quantized(&neon, "neon", neon_matmul_mull);
    dotprod = i8mm = neon;
    set_quantized(&dotprod, "neon-dotprod", neon_matmul_dot);
    set_quantized(&i8mm, "neon-i8mm", matmul_i8mm);
    if (has.dotprod) usable_dotprod = &dotprod;
    if (has.dotprod && has.i8mm) usable_i8mm = &i8mm;
}

static pthread_once_t once = PTHREAD_ONCE_INIT;

const struct kernels *kernels_neon(void)
{
    pthread_once(&once, build_tables);
    return &neon;
}

const struct kernels *kernels_neon_dotprod(void)
{
    pthread_once(&once, build_tables);
    return usable_dotprod;
}

const struct kernels *kernels_neon_i8mm(void)
{
    pthread_once(&once, build_tables);
    return usable_i8mm;
}
