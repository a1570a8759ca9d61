/* Activations to int8. Memory is the caller's; any thread. */
#include "avx2.h"
#include "simd.h"

/* The sums of the first and of the last sixteen of 32 bytes. */
INLINE void half_sums(__m256i q, int32_t sum[2])
{
    __m256i fours = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), q), _mm256_set1_epi16(1));
    __m256i eights = _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0x4e));
    __m256i all = _mm256_add_epi32(eights, _mm256_shuffle_epi32(eights, 0xb1));
    sum[0] = _mm256_extract_epi32(all, 0);
    sum[1] = _mm256_extract_epi32(all, 4);
}

void avx2_quantize(struct act *a, int row)
{
    const float *x = a->x + (size_t)row * a->ld_x;
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    size_t n_blocks = (size_t)a->n / ACT_BLOCK;
    for (size_t b = 0; b < n_blocks; b++, x += ACT_BLOCK) {
        size_t at = (size_t)row * n_blocks + b;
        __m256 v[4];
        __m256i top = _mm256_setzero_si256();
        for (int i = 0; i < 4; i++) {
            v[i] = _mm256_loadu_ps(x + 8 * i);
            top = _mm256_max_epi32(top, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
        }
        __m128i top4 = _mm_max_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
        top4 = _mm_max_epi32(top4, _mm_shuffle_epi32(top4, 0x4e));
        top4 = _mm_max_epi32(top4, _mm_shuffle_epi32(top4, 0xb1));
        float inv, scale = kquant_scale((uint32_t)_mm_cvtsi128_si32(top4), &inv);
        __m256i packed = _mm256_setzero_si256();
        if (inv > 0) {
            __m256 by = _mm256_set1_ps(inv);
            __m256i q[4];
            for (int i = 0; i < 4; i++) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], by)); /* ties to even */
            packed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
            packed = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        }
        _mm256_storeu_si256((__m256i *)(a->q + at * ACT_BLOCK), packed);
        half_sums(packed, a->sum + 2 * at);
        a->scale[at] = scale;
        a->fsum[2 * at] = scale * (float)a->sum[2 * at];
        a->fsum[2 * at + 1] = scale * (float)a->sum[2 * at + 1];
    }
}
