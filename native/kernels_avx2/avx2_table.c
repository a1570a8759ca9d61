/* The AVX2 kernel tables: whether this CPU runs them, and with which integer products.
 *
 * Compiled for any x86-64. The tables are built once and never change; any thread. */
#include "avx2.h"
#include "cpu_x86.h"

#include <pthread.h>
#include <stddef.h>

/* Dispatch by number of activation rows: up to two, up to n_few, more. Where each way stops paying was measured; the bits are
 * the same. Matrices of fewer than eight rows are too narrow for a register, and rows too long for the scratch are nobody's. */
static avx2_matmul_fn *choose(const struct weight *w, const struct act *a, avx2_matmul_fn *two, avx2_matmul_fn *few, int n_few,
                              avx2_matmul_fn *many)
{
    if (w->n_out < 8 || a->n > AVX2_MATMUL_MAX) return kernels_scalar.matmul[w->type];
    if (a->n_rows > n_few || a->n > AVX2_FEW_MAX) return many;
    return a->n_rows > 2 ? few : two;
}

static void matmul_maddubs(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                           void *scratch)
{
    avx2_matmul_fn *few = avx2_matmul_few[w->type];
    int n_few = w->type == TYPE_Q5_K ? AVX2_FEW_TOKENS_Q5_K : AVX2_FEW_TOKENS;
    if (!few) few = avx2_matvec_few_maddubs[w->type], n_few = AVX2_MATVEC_TOKENS;
    choose(w, a, avx2_matvec_maddubs[w->type], few, n_few, avx2_matmul_maddubs)(w, row0, row1, a, y, ld_y, scratch);
}

#ifdef INFER_HAVE_AVXVNNI
static void matmul_vnni(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                        void *scratch)
{
    avx2_matmul_fn *few = avx2_matvec_few_vnni[w->type];
    choose(w, a, avx2_matvec_vnni[w->type], few, AVX2_MATVEC_TOKENS, avx2_matmul_vnni)(w, row0, row1, a, y, ld_y, scratch);
}
#endif

static struct kernels avx2 = {
    .name = "avx2",
    .quantize = avx2_quantize,
    .matmul = {[TYPE_F32] = avx2_matmul_f32, [TYPE_F16] = avx2_matmul_f16, [TYPE_BF16] = avx2_matmul_bf16},
    .rmsnorm = avx2_rmsnorm,
    .layernorm = avx2_layernorm,
    .add = avx2_add,
    .silu_mul = avx2_silu_mul,
    .gelu = avx2_gelu,
    .rope = avx2_rope,
    .narrow = avx2_narrow,
    .attend = avx2_attend,
    .attend_merge = avx2_attend_merge,
    .argmax = avx2_argmax,
    .token_block = 64, /* of 2,560 columns a third of 512 KB of L2 */
    .peak = avx2_peak_maddubs,
};
static struct kernels avxvnni;
static const struct kernels *usable_avx2, *usable_avxvnni;

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

static void set_quantized(struct kernels *k, avx2_matmul_fn *fn)
{
    for (int t = 0; t < TYPE_COUNT; t++)
        if (avx2_matvec_maddubs[t]) k->matmul[t] = fn;
}

static void build_tables(void)
{
    const uint32_t needed = CPU_AVX2 | CPU_FMA | CPU_F16C | CPU_BMI2, has = cpu_x86_features();
    if ((has & needed) != needed) return;
    avx2.scratch_bytes = larger(larger(larger(avx2_matmul_scratch, avx2_matvec_scratch), avx2_few_scratch),
                                larger(avx2_attend_scratch, kernels_scalar.scratch_bytes));
    set_quantized(&avx2, matmul_maddubs);
    usable_avx2 = &avx2;
#ifdef INFER_HAVE_AVXVNNI
    if (!(has & CPU_AVXVNNI)) return;
    avxvnni = avx2;
    avxvnni.name = "avxvnni";
    avxvnni.peak = avx2_peak_vnni;
    avxvnni.token_block = TOKEN_BLOCK_MAX; /* these processors have more L2; not measured */
    set_quantized(&avxvnni, matmul_vnni);
    usable_avxvnni = &avxvnni;
#endif
}

static pthread_once_t once = PTHREAD_ONCE_INIT;

const struct kernels *kernels_avx2(void)
{
    pthread_once(&once, build_tables);
    return usable_avx2;
}

const struct kernels *kernels_avxvnni(void)
{
    pthread_once(&once, build_tables);
    return usable_avxvnni;
}
