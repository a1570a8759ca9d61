/* Activations to int8, a scale for 32 of them and a sum for 16. Memory is the caller's; any thread. */
#include "avx512.h"
#include "vector.h"

void avx512_quantize(struct act *a, int row)
{
    const float *x = a->x + (size_t)row * a->ld_x;
    size_t n_blocks = (size_t)a->n / ACT_BLOCK, first = (size_t)row * n_blocks;
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    for (size_t b = first; b < first + n_blocks; b++, x += ACT_BLOCK) {
        __m512 x0 = _mm512_loadu_ps(x), x1 = _mm512_loadu_ps(x + 16);
        __m512i top = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(x0), magnitude),
                                       _mm512_and_si512(_mm512_castps_si512(x1), magnitude));
        float inv, scale = kquant_scale(_mm512_reduce_max_epu32(top), &inv);
        a->scale[b] = scale;
        __m512i q0 = _mm512_setzero_si512(), q1 = q0;
        if (inv > 0) { /* q must be 0 beside NaN and infinities too */
            q0 = _mm512_cvtps_epi32(_mm512_mul_ps(x0, _mm512_set1_ps(inv)));
            q1 = _mm512_cvtps_epi32(_mm512_mul_ps(x1, _mm512_set1_ps(inv)));
        }
        _mm_storeu_si128((__m128i *)(a->q + b * ACT_BLOCK), _mm512_cvtepi32_epi8(q0));
        _mm_storeu_si128((__m128i *)(a->q + b * ACT_BLOCK + 16), _mm512_cvtepi32_epi8(q1));
        int32_t sum0 = _mm512_reduce_add_epi32(q0), sum1 = _mm512_reduce_add_epi32(q1);
        a->sum[2 * b] = sum0;
        a->sum[2 * b + 1] = sum1;
        a->fsum[2 * b] = scale * (float)sum0;
        a->fsum[2 * b + 1] = scale * (float)sum1;
    }
}
