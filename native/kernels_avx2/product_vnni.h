/* Sums of byte products by AVX-VNNI: template part of the matmul and matvec files.
 *
 * vpdpbusd adds four products of unsigned and signed bytes to 32 bits, exactly. Signed
 * weights (Q8_0) are offset by 128, which is taken off later like any format's zero. */
#ifndef INFER_AVX2_PRODUCT_H
#define INFER_AVX2_PRODUCT_H

#include <stdbool.h>

#include "avx2.h"
#include "correction.h"
#include "simd.h"

/* What dot_put_signed and dot_tile leave to be taken off of Q8_0. */
enum { PRODUCT_Q8_ZERO = 128 };

/* 32-bit sums + the products, in fours. */
INLINE __m256i add_products(__m256i sum, __m256i w, __m256i q) { return _mm256_dpbusd_avx_epi32(sum, w, q); }

/* start[j] = -zero * sum of sub-block j, for n elements (a multiple of 32) of a row, q, whose sums of 16 are `sum`. */
static inline void correct_zero(int32_t *start, const int8_t *q, const int32_t *sum, int n, int sub, int zero)
{
    (void)q;
    int n_sub = n / sub, j = 0;
    __m256i z = _mm256_set1_epi32(-zero);
    for (; j + 8 <= n_sub; j += 8) {
        __m256i v = sub == 32 ? pair_sums(sum + 2 * j) : _mm256_loadu_si256((const __m256i *)(sum + j));
        _mm256_storeu_si256((__m256i *)(start + j), _mm256_mullo_epi32(v, z));
    }
    for (; j < n_sub; j++) start[j] = -zero * (sub == 32 ? sum[2 * j] + sum[2 * j + 1] : sum[j]);
}

/* Sums of a sub-block that is handed over group by group, of four elements. */
struct dot {
    __m256i sum;
};

INLINE __m256i start_sum(const int32_t *start, bool has_start)
{
    return has_start ? _mm256_set1_epi32(*start) : _mm256_setzero_si256();
}

/* Adds group g of n_groups: w has four elements of each lane's row, q those of the activation row. The sum is
 * complete after the last group, with *start in it if there is one. */
INLINE void dot_put(struct dot *d, const int32_t *start, bool has_start, __m256i w, const int8_t *q, int g, int n_groups,
                    int bits)
{
    (void)n_groups;
    (void)bits;
    d->sum = add_products(g == 0 ? start_sum(start, has_start) : d->sum, w, broadcast4(q));
}

INLINE void dot_put_signed(struct dot *d, const int32_t *start, bool has_start, __m256i w, const int8_t *q, int g)
{
    dot_put(d, start, has_start, _mm256_xor_si256(w, _mm256_set1_epi8((char)128)), q, g, 8, 8);
}

/* The factors of eight rows, as floats. */
INLINE __m256 factor_float(const int16_t (*twice)[2])
{
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_load_si256((const __m256i *)twice), 16));
}

/* acc = start[t * ld_start] (if there is one) + a sub-block of a packed tile times n_t rows of q, ld apart. */
INLINE void dot_sub_block(__m256i acc[][2], const int32_t *start, size_t ld_start, bool has_start, const uint8_t *w,
                          const int8_t *q, size_t ld, int n_t, int sub)
{
#pragma GCC unroll 8
    for (int t = 0; t < n_t; t++) acc[t][0] = acc[t][1] = start_sum(start + (size_t)t * ld_start, has_start);
#pragma GCC unroll 8
    for (int g = 0; g < sub / 4; g++) {
        __m256i w0 = _mm256_load_si256((const __m256i *)(w + 64 * g));
        __m256i w1 = _mm256_load_si256((const __m256i *)(w + 64 * g + 32));
#pragma GCC unroll 8
        for (int t = 0; t < n_t; t++) {
            __m256i b = broadcast4(q + (size_t)t * ld + 4 * g);
            acc[t][0] = add_products(acc[t][0], w0, b);
            acc[t][1] = add_products(acc[t][1], w1, b);
        }
    }
}

/* sum = ACT_BLOCK elements of a packed tile times n_t rows of q, ld apart, as floats: each sub-block's sum begins with start[t *
 * ld_start] (if there is one; the next sub-block's follows) and is multiplied by its factors (of sub-blocks of 16). w: the
 * first of them. */
INLINE void dot_tile(__m256 sum[][2], const int32_t *start, size_t ld_start, bool has_start, const uint8_t *w,
                     const int16_t (*factor)[ROW_TILE][2], const int8_t *q, size_t ld, int n_t, int sub, int bits)
{
    (void)bits;
    __m256i acc[8][2], second[8][2];
    dot_sub_block(acc, start, ld_start, has_start, w, q, ld, n_t, sub);
#pragma GCC unroll 8
    for (int t = 0; t < n_t; t++)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) sum[t][h] = _mm256_cvtepi32_ps(acc[t][h]);
    if (sub == ACT_BLOCK) return;
#pragma GCC unroll 8
    for (int t = 0; t < n_t; t++)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) sum[t][h] = _mm256_mul_ps(sum[t][h], factor_float(&factor[0][8 * h]));
    dot_sub_block(second, start + 1, ld_start, has_start, w + sub * ROW_TILE, q + sub, ld, n_t, sub);
    /* Products with factors and their sums are integers below 2^24: exact. */
#pragma GCC unroll 8
    for (int t = 0; t < n_t; t++)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++)
            sum[t][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(second[t][h]), factor_float(&factor[1][8 * h]), sum[t][h]);
}

#endif
