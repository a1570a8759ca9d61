/* Activations to int8, a scale for 32 of them and a sum for 16. Memory is the caller's; any thread.
 *
 * Four blocks at a time, so that what is one number a block (its maximum, scale, sums) is done for all four in one
 * register. */
#include "avx2.h"
#include "simd.h"

enum { BLOCKS = 4 };

INLINE __m256i max_of(__m256i a, __m256i b) { return _mm256_max_epi32(a, b); }
INLINE __m256i sum_of(__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }

/* In each half, dword b = `of` the four dwords there of v[b]. */
INLINE __m256i gather_fours(const __m256i v[BLOCKS], __m256i of(__m256i, __m256i))
{
    __m256i a = of(_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[0], v[1]));
    __m256i b = of(_mm256_unpacklo_epi32(v[2], v[3]), _mm256_unpackhi_epi32(v[2], v[3]));
    return of(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}

/* Blocks b .. b+n-1 of all of a's, which are x; n is 1 to BLOCKS. */
INLINE void quantize_blocks(const struct act *a, size_t b, const float *x, size_t n)
{
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff), ones = _mm256_set1_epi8(1);
    __m256i top[BLOCKS], sums[BLOCKS];
#pragma GCC unroll 4
    for (size_t i = 0; i < BLOCKS; i++) {
        const float *block = x + ACT_BLOCK * (i < n ? i : n - 1);
        top[i] = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            top[i] = max_of(top[i], _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(block + 8 * j)), magnitude));
    }
    __m256i tops = gather_fours(top, max_of);

    /* kquant_scale of each block; number: neither NaN nor infinite, so that q may be other than 0 */
    __m128i top4 = _mm_max_epi32(_mm256_castsi256_si128(tops), _mm256_extracti128_si256(tops, 1));
    __m128 amax = _mm_castsi128_ps(top4), by = _mm_set1_ps(127);
    __m128 number = _mm_castsi128_ps(_mm_cmplt_epi32(top4, _mm_set1_epi32(0x7f800000)));
    __m128 some = _mm_and_ps(number, _mm_cmpnlt_ps(amax, _mm_set1_ps(KQUANT_TINY)));
    __m128 scale = _mm_blendv_ps(_mm_set1_ps(kfloat_of_bits(0x7fc00000u)), _mm_and_ps(some, _mm_div_ps(amax, by)), number);
    __m128 inv = _mm_and_ps(some, _mm_div_ps(by, amax));

#pragma GCC unroll 4
    for (size_t i = 0; i < BLOCKS; i++) {
        const float *block = x + ACT_BLOCK * (i < n ? i : n - 1);
        __m256i lane = _mm256_set1_epi32((int)i), q[4];
        __m256 each = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(inv), lane);
        __m256i any = _mm256_castps_si256(_mm256_permutevar8x32_ps(_mm256_castps128_ps256(some), lane));
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) /* ties to even */
            q[j] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(block + 8 * j), each));
        __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        packed = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        packed = _mm256_and_si256(packed, any); /* NaN times 0 is not 0 */
        if (i < n) _mm256_storeu_si256((__m256i *)(a->q + (b + i) * ACT_BLOCK), packed);
        sums[i] = _mm256_madd_epi16(_mm256_maddubs_epi16(ones, packed), _mm256_set1_epi16(1));
    }
    /* the first sixteen of each block, then the last: in order */
    __m256i halves = _mm256_permutevar8x32_epi32(gather_fours(sums, sum_of), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    __m256 twice = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(scale), _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
    __m256 fsums = _mm256_mul_ps(twice, _mm256_cvtepi32_ps(halves));
    memcpy(a->scale + b, &scale, n * sizeof *a->scale);
    memcpy(a->sum + 2 * b, &halves, 2 * n * sizeof *a->sum);
    memcpy(a->fsum + 2 * b, &fsums, 2 * n * sizeof *a->fsum);
}

void avx2_quantize(struct act *a, int row)
{
    const float *x = a->x + (size_t)row * a->ld_x;
    size_t n_blocks = (size_t)a->n / ACT_BLOCK, b = (size_t)row * n_blocks, end = b + n_blocks;
    for (; b + BLOCKS <= end; b += BLOCKS, x += BLOCKS * ACT_BLOCK) quantize_blocks(a, b, x, BLOCKS);
    if (b < end) quantize_blocks(a, b, x, end - b);
}
