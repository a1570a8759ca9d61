/* Per sub-block of an activation row: what the format's zero takes off, and fsum' of kernels.h. */
#ifndef INFER_AVX2_CORRECTION_H
#define INFER_AVX2_CORRECTION_H

#include "avx2.h"
#include "simd.h"

/* Sums of neighbours of 16 integers: of sub-blocks of 16 to those of 32. */
INLINE __m256i pair_sums(const int32_t *sum)
{
    __m256i a = _mm256_loadu_si256((const __m256i *)sum), b = _mm256_loadu_si256((const __m256i *)(sum + 8));
    return _mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0xd8);
}

/* offset[j] = -zero * sum of sub-block j, for the n elements (a multiple of 32) that sum covers. */
static inline void correct_zero(int32_t *offset, const int32_t *sum, int n, int sub, int zero)
{
    int n_sub = n / sub, j = 0;
    __m256i z = _mm256_set1_epi32(-zero);
    for (; j + 8 <= n_sub; j += 8) {
        __m256i v = sub == 32 ? pair_sums(sum + 2 * j) : _mm256_loadu_si256((const __m256i *)(sum + j));
        _mm256_storeu_si256((__m256i *)(offset + j), _mm256_mullo_epi32(v, z));
    }
    for (; j < n_sub; j++) offset[j] = -zero * (sub == 32 ? sum[2 * j] + sum[2 * j + 1] : sum[j]);
}

/* fsum[j] = scale[j] * (float)sum, sub-blocks of 32. */
static inline void sum_blocks(float *fsum, const float *scale, const int32_t *sum, int n)
{
    int n_sub = n / 32, j = 0;
    for (; j + 8 <= n_sub; j += 8)
        _mm256_storeu_ps(fsum + j, _mm256_mul_ps(_mm256_loadu_ps(scale + j), _mm256_cvtepi32_ps(pair_sums(sum + 2 * j))));
    for (; j < n_sub; j++) fsum[j] = scale[j] * (float)(sum[2 * j] + sum[2 * j + 1]);
}

#endif
