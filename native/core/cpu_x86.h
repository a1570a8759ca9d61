/* Which extensions of x86-64 kernels may use on this machine.
 *
 * Asked from CPUID itself, since what compilers offer for it depends on their age (F16C and AVX-VNNI
 * have a name since gcc 11 and clang 18) and on their runtime library. */
#ifndef INFER_CPU_X86_H
#define INFER_CPU_X86_H

#include <stdint.h>

enum {
    CPU_FMA = 1 << 0,
    CPU_F16C = 1 << 1,
    CPU_AVX2 = 1 << 2,
    CPU_BMI2 = 1 << 3,
    CPU_AVXVNNI = 1 << 4,
    CPU_AVX512F = 1 << 5,
    CPU_AVX512DQ = 1 << 6,
    CPU_AVX512BW = 1 << 7,
    CPU_AVX512VL = 1 << 8,
    CPU_AVX512VBMI = 1 << 9,
    CPU_AVX512VBMI2 = 1 << 10,
    CPU_AVX512VNNI = 1 << 11,
    CPU_AMX_TILE = 1 << 12,
    CPU_AMX_INT8 = 1 << 13,
};

/* The bits of those that the processor has and whose registers the system saves. Any thread. */
uint32_t cpu_x86_features(void);

#endif
