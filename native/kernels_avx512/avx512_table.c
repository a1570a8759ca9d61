/* The AVX-512 tables, and whether this CPU may use them. Compiled for the baseline. Any thread.
 *
 * Required: AVX-512 F, BW, DQ, VL, VNNI, VBMI and VBMI2 (Intel since Ice Lake, AMD since Zen 4).
 * CPUs with less of AVX-512 (Skylake, Cascade Lake) run the AVX2 table.
 *
 * "amx" is the same with AMX's products of many activation rows. Linux gives its registers, 8 KB for each thread that
 * uses them, to a process that asks; if it won't, "avx512" is used. */
#include "avx512.h"
#include "cpu_x86.h"

#ifdef INFER_HAVE_AMX
#include <cpuid.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

static const struct kernels table = {
    .name = "avx512",
    .quantize = avx512_quantize,
    .matmul = {
        [TYPE_F32] = avx512_matmul_f32,        [TYPE_F16] = avx512_matmul_f16,
        [TYPE_BF16] = avx512_matmul_bf16,      [TYPE_Q4_0] = avx512_matmul_quantized,
        [TYPE_Q4_1] = avx512_matmul_quantized, [TYPE_Q5_0] = avx512_matmul_quantized,
        [TYPE_Q5_1] = avx512_matmul_quantized, [TYPE_Q8_0] = avx512_matmul_quantized,
        [TYPE_Q2_K] = avx512_matmul_quantized, [TYPE_Q3_K] = avx512_matmul_quantized,
        [TYPE_Q4_K] = avx512_matmul_quantized, [TYPE_Q5_K] = avx512_matmul_quantized,
        [TYPE_Q6_K] = avx512_matmul_quantized,
    },
    .rmsnorm = avx512_rmsnorm,
    .layernorm = avx512_layernorm,
    .add = avx512_add,
    .silu_mul = avx512_silu_mul,
    .gelu = avx512_gelu,
    .rope = avx512_rope,
    .kv_store = avx512_kv_store,
    .attend = avx512_attend,
    .attend_merge = avx512_attend_merge,
    .argmax = avx512_argmax,
    .scratch_bytes = AVX512_SCRATCH_BYTES,
    .peak = avx512_peak,
};

const struct kernels *kernels_avx512(void)
{
    const uint32_t needed = CPU_AVX512F | CPU_AVX512BW | CPU_AVX512DQ | CPU_AVX512VL | CPU_AVX512VNNI |
                            CPU_AVX512VBMI | CPU_AVX512VBMI2 | CPU_FMA | CPU_F16C | CPU_BMI2;
    return (cpu_x86_features() & needed) == needed ? &table : NULL;
}

#ifdef INFER_HAVE_AMX

enum {
    CPUID_AMX_TILE = 1 << 24, CPUID_AMX_INT8 = 1 << 25,          /* leaf 7, EDX */
    ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18,       /* arch_prctl(2) */
};

static struct kernels amx;
static bool amx_usable;

static void make_amx(void)
{
    unsigned a, b, c, d = 0;
    amx_usable = kernels_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & CPUID_AMX_TILE) && (d & CPUID_AMX_INT8) &&
                 syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
    amx = table;
    amx.name = "amx";
    for (int t = 0; t < TYPE_COUNT; t++)
        if (table.matmul[t] == avx512_matmul_quantized) amx.matmul[t] = avx512_matmul_amx;
}

const struct kernels *kernels_amx(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_amx);
    return amx_usable ? &amx : NULL;
}

#else

const struct kernels *kernels_amx(void) { return NULL; }

#endif
