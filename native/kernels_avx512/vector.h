/* Small pieces that the AVX-512 kernels share: masks for ends of arrays, the fold of
 * lanes16, and kexp in sixteen lanes. */
#ifndef INFER_AVX512_VECTOR_H
#define INFER_AVX512_VECTOR_H

#include <immintrin.h>

#include "kernels_math.h"

#define INLINE static inline __attribute__((always_inline))

/* Lanes that hold elements when n of them are left: all for n >= 16. */
INLINE __mmask16 lanes_left(int n) { return (__mmask16)(n >= 16 ? 0xffffu : (1u << n) - 1); }

/* lanes16 of kernels.h: its fold of the sixteen partial sums. */
INLINE float fold16(__m512 v)
{
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

/* kexp of kernels_math.h, step by step. min takes the second operand where one is NaN. */
INLINE __m512 kexp16(__m512 x0)
{
    __m512 x = _mm512_min_ps(_mm512_set1_ps(KEXP_MAX), x0);
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(KEXP_LOG2E)),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-KEXP_LN2_HI), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(-KEXP_LN2_LO), r);
    __m512 p = _mm512_set1_ps(KEXP_C6);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(KEXP_C5));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(KEXP_C4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(KEXP_C3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(KEXP_C2));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(KEXP_C1));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(KEXP_C0));
    /* Not below KEXP_MIN (NaN is not): p * 2^n, exact here. */
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x0, _mm512_set1_ps(KEXP_MIN), _CMP_NLT_UQ), p, n);
}

#endif
