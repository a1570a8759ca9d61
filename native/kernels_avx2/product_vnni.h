/* Sums of byte products by AVX-VNNI: template part of the matmul and matvec files.
 *
 * vpdpbusd adds four products of unsigned and signed bytes to 32 bits, exactly. Signed
 * weights (Q8_0) are offset by 128, which is taken off later like any format's zero. */
#ifndef INFER_AVX2_PRODUCT_H
#define INFER_AVX2_PRODUCT_H

#include <string.h>

#include "simd.h"

/* What dot16_signed and dot_tile leave to be taken off of Q8_0. */
enum { PRODUCT_Q8_ZERO = 128 };

INLINE __m256i broadcast4(const int8_t *q)
{
    int32_t v;
    memcpy(&v, q, sizeof v);
    return _mm256_set1_epi32(v);
}

/* acc + the products of sixteen elements: w[g] has elements 4g..4g+3 of each lane's row. */
INLINE __m256i dot16(__m256i acc, const __m256i w[4], const int8_t *q, int bits)
{
    (void)bits;
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) acc = _mm256_dpbusd_avx_epi32(acc, w[g], broadcast4(q + 4 * g));
    return acc;
}

INLINE __m256i dot16_signed(__m256i acc, const __m256i w[4], const int8_t *q)
{
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
        __m256i offset = _mm256_xor_si256(w[g], _mm256_set1_epi8((char)128));
        acc = _mm256_dpbusd_avx_epi32(acc, offset, broadcast4(q + 4 * g));
    }
    return acc;
}

/* acc = start (NULL: 0) + a sub-block (sub elements) of a packed tile times n_t rows of q, ld apart. */
INLINE void dot_tile(__m256i acc[][2], const int32_t *const start[], const uint8_t *w, const int8_t *q, size_t ld,
                     int n_t, int sub, int bits)
{
    (void)bits;
#pragma GCC unroll 8
    for (int t = 0; t < n_t; t++) acc[t][0] = acc[t][1] = start[t] ? _mm256_set1_epi32(*start[t]) : _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int g = 0; g < sub / 4; g++) {
        __m256i w0 = _mm256_load_si256((const __m256i *)(w + 64 * g));
        __m256i w1 = _mm256_load_si256((const __m256i *)(w + 64 * g + 32));
#pragma GCC unroll 8
        for (int t = 0; t < n_t; t++) {
            __m256i b = broadcast4(q + (size_t)t * ld + 4 * g);
            acc[t][0] = _mm256_dpbusd_avx_epi32(acc[t][0], w0, b);
            acc[t][1] = _mm256_dpbusd_avx_epi32(acc[t][1], w1, b);
        }
    }
}

#endif
