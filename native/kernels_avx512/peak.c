/* The measure for benchmarks: VPDPBUSD from registers. Pure, any thread. */
#include <immintrin.h>

#include "avx512.h"

uint64_t avx512_peak(int rounds)
{
    enum { CHAINS = 16 }; /* independent sums: latency 5 times 2 ports, and to spare */
    __m512i sum[CHAINS], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
#pragma GCC unroll 16 /* so that the sums are registers */
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_set1_epi32(i);
    for (int r = 0; r < rounds; r++) {
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++) {
            sum[i] = _mm512_dpbusd_epi32(sum[i], a, b);
            __asm__("" : "+v"(sum[i])); /* each one happens */
        }
    }
#pragma GCC unroll 16
    for (int i = 1; i < CHAINS; i++) sum[0] = _mm512_add_epi32(sum[0], sum[i]);
    __asm__ volatile("" ::"v"(sum[0]));
    return (uint64_t)rounds * CHAINS * 64;
}
