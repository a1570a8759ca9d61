/* The AVX-512 tables, and whether this CPU may use them. Compiled for the baseline. Any thread.
 *
 * Required: AVX-512 F, BW, DQ, VL, VNNI, VBMI and VBMI2 (Intel since Ice Lake, AMD since Zen 4).
 * CPUs with less of AVX-512 (Skylake, Cascade Lake) run the AVX2 table.
 *
 * "amx" is the same with AMX's products of many activation rows. Linux gives its registers, 8 KB for each thread that
 * uses them, to a process that asks; if it won't, "avx512" is used. */
#include "avx512.h"
#include "cpu_x86.h"

/* Two tables that differ in the products of quantized weights. */
#define TABLE(name_, quantized)                                                                                       \
    {                                                                                                                 \
        .name = (name_),                                                                                              \
        .quantize = avx512_quantize,                                                                                  \
        .matmul = {                                                                                                   \
            [TYPE_F32] = avx512_matmul_f32, [TYPE_F16] = avx512_matmul_f16, [TYPE_BF16] = avx512_matmul_bf16,         \
            [TYPE_Q4_0] = (quantized), [TYPE_Q4_1] = (quantized), [TYPE_Q5_0] = (quantized), [TYPE_Q5_1] = (quantized), \
            [TYPE_Q8_0] = (quantized), [TYPE_Q2_K] = (quantized), [TYPE_Q3_K] = (quantized), [TYPE_Q4_K] = (quantized), \
            [TYPE_Q5_K] = (quantized), [TYPE_Q6_K] = (quantized),                                                     \
        },                                                                                                            \
        .rmsnorm = avx512_rmsnorm,                                                                                    \
        .layernorm = avx512_layernorm,                                                                                \
        .add = avx512_add,                                                                                            \
        .silu_mul = avx512_silu_mul,                                                                                  \
        .gelu = avx512_gelu,                                                                                          \
        .rope = avx512_rope,                                                                                          \
        .narrow = avx512_narrow,                                                                                      \
        .attend = avx512_attend,                                                                                      \
        .attend_merge = avx512_attend_merge,                                                                          \
        .argmax = avx512_argmax,                                                                                      \
        .scratch_bytes = AVX512_SCRATCH_BYTES,                                                                        \
        .token_block = TOKEN_BLOCK_MAX,                                                                               \
        .peak = avx512_peak,                                                                                          \
    }

const struct kernels *kernels_avx512(void)
{
    static const struct kernels table = TABLE("avx512", avx512_matmul_quantized);
    const uint32_t needed = CPU_AVX512F | CPU_AVX512BW | CPU_AVX512DQ | CPU_AVX512VL | CPU_AVX512VNNI |
                            CPU_AVX512VBMI | CPU_AVX512VBMI2 | CPU_FMA | CPU_F16C | CPU_BMI2;
    return (cpu_x86_features() & needed) == needed ? &table : NULL;
}

const struct kernels *kernels_amx(void)
{
#ifdef INFER_HAVE_AMX
    static const struct kernels table = TABLE("amx", avx512_matmul_amx);
    const uint32_t needed = CPU_AMX_TILE | CPU_AMX_INT8;
    return kernels_avx512() && (cpu_x86_features() & needed) == needed ? &table : NULL;
#else
    return NULL;
#endif
}
