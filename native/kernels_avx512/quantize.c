/* Activations to int8, a scale for 32 of them and a sum for 16. Memory is the caller's; any thread.
 *
 * Four blocks at a time, so that what is one number a block (its maximum, scale, sums) is done for all
 * four in one register: a quarter of it is a block's. */
#include "avx512.h"
#include "vector.h"

enum { BLOCKS = 4 };

/* The larger of each pair of lanes, as integers: of a's halves in the low half, of b's in the high one. */
INLINE __m512i max_halves(__m512i a, __m512i b)
{
    return _mm512_max_epu32(_mm512_mask_blend_epi32(0xff00, a, b), _mm512_shuffle_i64x2(a, b, 0x4e));
}

/* The largest of block b in all lanes of quarter b. */
INLINE __m512i max_of_each(const __m512i top[BLOCKS])
{
    __m512i a = max_halves(top[0], top[1]), b = max_halves(top[2], top[3]);
    __m512i v = _mm512_max_epu32(_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(a, b, 0xdd));
    v = _mm512_max_epu32(v, _mm512_shuffle_epi32(v, _MM_PERM_BADC));
    return _mm512_max_epu32(v, _mm512_shuffle_epi32(v, _MM_PERM_CDAB));
}

/* The eight sums of 16 of the bytes of low and high. */
INLINE __m256i half_sums(__m512i low, __m512i high)
{
    const __m512i ones = _mm512_set1_epi8(1), first = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    __m512 a = _mm512_castsi512_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, low));
    __m512 b = _mm512_castsi512_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, high));
    __m512i pairs = _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x88)),
                                     _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0xdd)));
    pairs = _mm512_add_epi32(pairs, _mm512_shuffle_epi32(pairs, _MM_PERM_CDAB));
    return _mm512_castsi512_si256(_mm512_permutexvar_epi32(first, pairs));
}

/* Blocks b .. b+n-1 of all of a's, which are x; n is 1 to BLOCKS. */
INLINE void quantize_blocks(const struct act *a, size_t b, const float *x, const int n)
{
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __mmask8 blocks = (__mmask8)((1 << n) - 1), halves = (__mmask8)((1 << 2 * n) - 1);
    __m512 v[BLOCKS][2];
    __m512i top[BLOCKS], q[BLOCKS][2], packed[2];
#pragma GCC unroll 4
    for (int i = 0; i < BLOCKS; i++) {
        for (int h = 0; h < 2; h++) v[i][h] = i < n ? _mm512_loadu_ps(x + ACT_BLOCK * i + 16 * h) : _mm512_setzero_ps();
        top[i] = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(v[i][0]), magnitude),
                                  _mm512_and_si512(_mm512_castps_si512(v[i][1]), magnitude));
    }

    /* kquant_scale of each block; number: neither NaN nor infinite, so that q may be other than 0 */
    __m512i largest = max_of_each(top);
    __m128i top4 = _mm512_castsi512_si128(_mm512_permutexvar_epi32(order, largest));
    __m128 amax = _mm_castsi128_ps(top4), by = _mm_set1_ps(127);
    __mmask8 number = _mm_cmplt_epu32_mask(top4, _mm_set1_epi32(0x7f800000));
    __mmask8 some = _mm_mask_cmp_ps_mask(number, amax, _mm_set1_ps(KQUANT_TINY), _CMP_NLT_UQ);
    __m128 scale = _mm_maskz_div_ps(some, amax, by);
    scale = _mm_mask_mov_ps(_mm_set1_ps(kfloat_of_bits(0x7fc00000u)), number, scale);
    __m512 inv = _mm512_broadcast_f32x4(_mm_maskz_div_ps(some, by, amax));

#pragma GCC unroll 4
    for (int i = 0; i < BLOCKS; i++) {
        __m512 each = _mm512_permutexvar_ps(_mm512_set1_epi32(i), inv);
        __mmask16 any = (__mmask16)-(some >> i & 1);
        for (int h = 0; h < 2; h++) q[i][h] = _mm512_maskz_cvtps_epi32(any, _mm512_mul_ps(v[i][h], each));
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) { /* quarter j has dword j of each of the four vectors */
        __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(q[2 * i][0], q[2 * i][1]),
                                           _mm512_packs_epi32(q[2 * i + 1][0], q[2 * i + 1][1]));
        packed[i] = _mm512_permutexvar_epi32(order, bytes);
    }
    int8_t *out = a->q + b * ACT_BLOCK;
    if (n > 1) _mm512_storeu_si512(out, packed[0]);
    else _mm256_storeu_si256((void *)out, _mm512_castsi512_si256(packed[0]));
    if (n == 4) _mm512_storeu_si512(out + 2 * ACT_BLOCK, packed[1]);
    else if (n == 3) _mm256_storeu_si256((void *)(out + 2 * ACT_BLOCK), _mm512_castsi512_si256(packed[1]));

    __m256i sums = half_sums(packed[0], packed[1]);
    __m256 twice = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(scale), _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
    _mm_mask_storeu_ps(a->scale + b, blocks, scale);
    _mm256_mask_storeu_epi32(a->sum + 2 * b, halves, sums);
    _mm256_mask_storeu_ps(a->fsum + 2 * b, halves, _mm256_mul_ps(twice, _mm256_cvtepi32_ps(sums)));
}

void avx512_quantize(struct act *a, int row)
{
    const float *x = a->x + (size_t)row * a->ld_x;
    size_t n_blocks = (size_t)a->n / ACT_BLOCK, b = (size_t)row * n_blocks, end = b + n_blocks;
    for (; b + BLOCKS <= end; b += BLOCKS, x += BLOCKS * ACT_BLOCK) quantize_blocks(a, b, x, BLOCKS);
    switch (end - b) {
    case 1: quantize_blocks(a, b, x, 1); break;
    case 2: quantize_blocks(a, b, x, 2); break;
    case 3: quantize_blocks(a, b, x, 3); break;
    default: break;
    }
}
