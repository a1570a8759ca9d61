/* Small AVX2 pieces that several kernels use. For files compiled with -mavx2 -mfma -mf16c. */
#ifndef INFER_AVX2_SIMD_H
#define INFER_AVX2_SIMD_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "kernels_math.h"

/* The kernels are written as small functions with constant arguments, which must vanish into their caller. */
#define INLINE static inline __attribute__((always_inline))

/* Do it now: left alone, GCC reorders a loop's sums so that all products are made first, and spills them. */
#define SETTLE(v) __asm__("" : "+x"(v))

/* Four bytes, in each lane. */
INLINE __m256i broadcast4(const void *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm256_set1_epi32(v);
}

/* Asks for the line at p, which need not be mapped, where this stands: GCC would put many requests in one place, where they wait
 * for each other. Memory that is read on both sides of it is read twice. */
INLINE void request(const uint8_t *p)
{
    __asm__ volatile("prefetcht1 %0" : : "m"(*p) : "memory");
}

/* y = rows `from` to to-1 of the eight from row `first` on. */
INLINE void store_rows(float *y, int first, int from, int to, __m256 v)
{
    if (first == from && first + 8 <= to) {
        _mm256_storeu_ps(y + first, v);
        return;
    }
    float lane[8];
    _mm256_storeu_ps(lane, v);
    for (int r = from; r < to && r < first + 8; r++) y[r] = lane[r - first];
}

/* kexp of kernels_math.h in each lane, of what is at most KEXP_MAX. */
INLINE __m256 exp8_capped(__m256 x)
{
    __m256 below = _mm256_cmp_ps(x, _mm256_set1_ps(KEXP_MIN), _CMP_LT_OQ);
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(KEXP_LOG2E)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-KEXP_LN2_HI), x);
    r = _mm256_fmadd_ps(n, _mm256_set1_ps(-KEXP_LN2_LO), r);
    __m256 p = _mm256_set1_ps(KEXP_C6);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(KEXP_C5));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(KEXP_C4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(KEXP_C3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(KEXP_C2));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(KEXP_C1));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(KEXP_C0));
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
    return _mm256_andnot_ps(below, p);
}

/* kexp of kernels_math.h in each lane. */
INLINE __m256 exp8(__m256 x)
{
    return exp8_capped(_mm256_min_ps(_mm256_set1_ps(KEXP_MAX), x)); /* in this order a NaN stays */
}

/* lanes16 of kernels.h: lanes 0..7 in lo, 8..15 in hi. */
INLINE float fold16(__m256 lo, __m256 hi)
{
    __m256 s8 = _mm256_add_ps(lo, hi);
    __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}

/* All ones in the lanes i < n, for n of any size. */
INLINE __m256i lanes_below(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

#endif
