/* The measure for benchmarks: byte products, added up, from registers. Template, includes a product_*.h before this. */
#include "avx2.h"

static uint64_t peak(int rounds)
{
    enum { CHAINS = 12 }; /* independent sums: two a cycle, and AVX-VNNI's take five cycles */
    __m256i sum[CHAINS], w = _mm256_set1_epi8(3), q = _mm256_set1_epi8(5);
#pragma GCC unroll 12 /* so that the sums are registers */
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm256_set1_epi32(i);
    for (int r = 0; r < rounds; r++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) {
            __asm__("" : "+x"(w)); /* each one happens */
            sum[i] = add_products(sum[i], w, q);
            SETTLE(sum[i]);
        }
    }
#pragma GCC unroll 12
    for (int i = 1; i < CHAINS; i++) sum[0] = _mm256_add_epi32(sum[0], sum[i]);
    __asm__ volatile("" ::"x"(sum[0]));
    return (uint64_t)rounds * CHAINS * 32;
}
