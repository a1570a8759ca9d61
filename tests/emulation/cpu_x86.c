/* cpu_x86_features of a processor whose AVX-512, AMX and AVX-VNNI are emulated (immintrin.h): those too, where there is what the
 * emulation itself needs. Any thread. */
#define cpu_x86_features real_features
#include "../../native/core/cpu_x86.c"
#undef cpu_x86_features

uint32_t cpu_x86_features(void);

uint32_t cpu_x86_features(void)
{
    const uint32_t needed = CPU_AVX2 | CPU_FMA | CPU_F16C | CPU_BMI2;
    const uint32_t emulated = CPU_AVX512F | CPU_AVX512DQ | CPU_AVX512BW | CPU_AVX512VL | CPU_AVX512VBMI | CPU_AVX512VBMI2 |
                              CPU_AVX512VNNI | CPU_AMX_TILE | CPU_AMX_INT8 | CPU_AVXVNNI;
    uint32_t features = real_features();
    return (features & needed) == needed ? features | emulated : features;
}
