/* Extensions of x86-64: what CPUID and the system say against the compiler's own runtime library. */
#include "check.h"
#include "cpu_x86.h"

#define SAME(feature, name)                                                                      \
    CHECKF(!(cpu_x86_features() & (feature)) == !__builtin_cpu_supports(name), "%s: %s", (name), \
           cpu_x86_features() & (feature) ? "found, the compiler says no" : "not found, the compiler says yes")

static void the_compiler_finds_the_same_extensions(void)
{
    /* Every one whose name all compilers know. */
    SAME(CPU_FMA, "fma");
    SAME(CPU_AVX2, "avx2");
    SAME(CPU_BMI2, "bmi2");
    SAME(CPU_AVX512F, "avx512f");
    SAME(CPU_AVX512DQ, "avx512dq");
    SAME(CPU_AVX512BW, "avx512bw");
    SAME(CPU_AVX512VL, "avx512vl");
    SAME(CPU_AVX512VBMI, "avx512vbmi");
    SAME(CPU_AVX512VBMI2, "avx512vbmi2");
    SAME(CPU_AVX512VNNI, "avx512vnni");
}

int main(void)
{
    RUN(the_compiler_finds_the_same_extensions);
    return check_result();
}
