/* CPUID: leaves and bits are those of Intel's Software Developer's Manual, volume 2A, CPUID.
 *
 * Owns nothing; any thread. */
#include "cpu_x86.h"

#include "platform.h"

#include <cpuid.h>

enum { EAX, EBX, ECX, EDX, N_REGISTERS };

static const struct {
    uint32_t feature;
    uint32_t leaf, subleaf;
    int output, bit;
    enum { NONE, YMM, ZMM, TMM } registers;
} bits[] = {
    {CPU_FMA, 1, 0, ECX, 12, YMM},       {CPU_F16C, 1, 0, ECX, 29, YMM},       {CPU_AVX2, 7, 0, EBX, 5, YMM},
    {CPU_BMI2, 7, 0, EBX, 8, NONE},      {CPU_AVXVNNI, 7, 1, EAX, 4, YMM},     {CPU_AVX512F, 7, 0, EBX, 16, ZMM},
    {CPU_AVX512DQ, 7, 0, EBX, 17, ZMM},  {CPU_AVX512BW, 7, 0, EBX, 30, ZMM},   {CPU_AVX512VL, 7, 0, EBX, 31, ZMM},
    {CPU_AVX512VBMI, 7, 0, ECX, 1, ZMM}, {CPU_AVX512VBMI2, 7, 0, ECX, 6, ZMM}, {CPU_AVX512VNNI, 7, 0, ECX, 11, ZMM},
    {CPU_AMX_TILE, 7, 0, EDX, 24, TMM},  {CPU_AMX_INT8, 7, 0, EDX, 25, TMM},
};

uint32_t cpu_x86_features(void)
{
    struct platform_x86 saved = platform_x86_registers();
    uint32_t features = 0;
    for (size_t i = 0; i < sizeof bits / sizeof *bits; i++) {
        unsigned out[N_REGISTERS];
        const bool usable[] = {[NONE] = true, [YMM] = saved.ymm, [ZMM] = saved.zmm, [TMM] = saved.tmm};
        if (!usable[bits[i].registers]) continue;
        if (!__get_cpuid_count(bits[i].leaf, bits[i].subleaf, &out[EAX], &out[EBX], &out[ECX], &out[EDX])) continue;
        if (out[bits[i].output] >> bits[i].bit & 1) features |= bits[i].feature;
    }
    return features;
}
