/* Per sub-block of an activation row: fsum' of kernels.h. What the format's zero takes off is the products' own matter. */
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

/* fsum[j] = scale[j] * (float)sum, sub-blocks of 32. */
static inline void sum_blocks(float *fsum, const float *scale, const int32_t *sum, int n)
{
    int n_sub = n / 32, j = 0;
    for (; j + 8 <= n_sub; j += 8)
        _mm256_storeu_ps(fsum + j, _mm256_mul_ps(_mm256_loadu_ps(scale + j), _mm256_cvtepi32_ps(pair_sums(sum + 2 * j))));
    for (; j < n_sub; j++) fsum[j] = scale[j] * (float)(sum[2 * j] + sum[2 * j + 1]);
}

#endif
