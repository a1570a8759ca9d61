/* Sums of byte products without AVX-VNNI: template part of the matmul and matvec files.
 *
 * vpmaddubsw multiplies unsigned by signed bytes and adds pairs into 16 bits, saturating.
 * With activations in -127..127 a pair is at most 2 * 127 * (2^bits - 1): 3810, 7874 and 16002 for 4, 5 and 6
 * bits, so that 8, 4 and 2 of them can be added in 16 bits (below 32767) before vpmaddwd widens. Where the format's
 * zero is taken off, a whole sub-block can: 8 of 5 bits, 4 of 6. Sums that begin with what it takes off wrap around
 * on their way and end at most at 32512 (2 * 127 * 16 * 8, 2 * 127 * 32 * 4).
 *
 * The sign of 8-bit weights is moved to the activation: a pair is then at most 2 * 127 * 128 = 32512. In tiles ~q stands for
 * -q, which is one operation on any port where VPSIGNB is confined to those of the products; each negative weight's product
 * then lacks the weight's magnitude, whose sum over a sub-block is packed with it. A pair is at least 2 * 128 * -128 = -32768. */
#ifndef INFER_AVX2_PRODUCT_H
#define INFER_AVX2_PRODUCT_H

#include <stdbool.h>
#include <stddef.h>

#include "avx2.h"
#include "simd.h"

/* What dot_put_signed and dot_tile leave to be taken off of Q8_0, which stays signed here. */
enum { PRODUCT_Q8_ZERO = 0 };

INLINE __m256i widen16(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

/* 16-bit sums + the products, in pairs. */
INLINE __m256i add_products(__m256i pairs, __m256i w, __m256i q)
{
    return _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w, q));
}

/* With the sign of w moved to q. */
INLINE __m256i pair_signed(__m256i w, __m256i q)
{
    return widen16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(q, w)));
}

INLINE void add_sum(__m256i *acc, bool first, __m256i sum)
{
    if (first) *acc = sum;
    else *acc = _mm256_add_epi32(*acc, sum);
}

/* start[j] = what the pairs of products of sub-block j begin with: -zero times its sums, in 16 bits, of the elements
 * 4g and 4g+1 in the lower half, of 4g+2 and 4g+3 in the upper one. q: n elements (a multiple of 32) of a row. */
static inline void correct_zero(int32_t *start, const int8_t *q, const int32_t *sum, int n, int sub, int zero)
{
    (void)sum;
    const __m256i ones = _mm256_set1_epi8(1), z = _mm256_set1_epi16((short)-zero);
    for (int k = 0; k < n; k += 128) { /* four blocks of 32 */
        int n_blocks = n - k < 128 ? (n - k) / 32 : 4;
        __m256i v[4], by_half, in_order;
        for (int b = 0; b < 4; b++) {
            const int8_t *block = q + k + 32 * (b < n_blocks ? b : n_blocks - 1);
            v[b] = _mm256_maddubs_epi16(ones, _mm256_loadu_si256((const __m256i *)block));
        }
        __m256i ab = _mm256_add_epi16(_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[0], v[1]));
        __m256i cd = _mm256_add_epi16(_mm256_unpacklo_epi32(v[2], v[3]), _mm256_unpackhi_epi32(v[2], v[3]));
        /* the first sixteen of each block, then the second */
        by_half = _mm256_mullo_epi16(_mm256_add_epi16(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd)), z);
        if (sub == 32) in_order = _mm256_add_epi16(by_half, _mm256_permute4x64_epi64(by_half, 0x4e));
        else in_order = _mm256_permutevar8x32_epi32(by_half, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        memcpy(start + k / sub, &in_order, (size_t)(32 / sub * n_blocks) * sizeof *start);
    }
}

/* Sums of a sub-block that is handed over group by group, of four elements. */
struct dot {
    __m256i sum, pairs;
};

/* How many groups of four elements are added in 16 bits, if so many are left. */
INLINE int run_of(int bits, bool has_start) { return bits == 4 || has_start ? 8 : 4; }

/* Pairs of the first group of a run. */
INLINE __m256i first_products(const int32_t *start, bool has_start, __m256i w, __m256i q)
{
    return has_start ? add_products(_mm256_set1_epi32(*start), w, q) : _mm256_maddubs_epi16(w, q);
}

/* Adds group g of n_groups: w has four elements of each lane's row, q those of the activation row. The sum is
 * complete after the last group, with *start in it if there is one. */
INLINE void dot_put(struct dot *d, const int32_t *start, bool has_start, __m256i w, const int8_t *q, int g, int n_groups,
                    int bits)
{
    const int run = run_of(bits, has_start);
    __m256i b = broadcast4(q);
    d->pairs = g % run == 0 ? first_products(start, has_start, w, b) : add_products(d->pairs, w, b);
    SETTLE(d->pairs);
    if (g % run < run - 1 && g < n_groups - 1) return;
    add_sum(&d->sum, g < run, widen16(d->pairs));
}

INLINE void dot_put_signed(struct dot *d, const int32_t *start, bool has_start, __m256i w, const int8_t *q, int g)
{
    (void)start;
    (void)has_start; /* it has none */
    add_sum(&d->sum, g == 0, pair_signed(w, broadcast4(q)));
    SETTLE(d->sum);
}

INLINE __m256i load_group(const uint8_t *w, int g, int half)
{
    return _mm256_load_si256((const __m256i *)(w + 64 * g + 32 * half));
}

/* acc of n_t rows (+)= start[t * ld_start] (if there is one) and n_groups groups of products, times factors (halves of a tile). */
INLINE void dot_tile_pairs(__m256i acc[][2], bool add, const __m256i factor[2], const int32_t *start, size_t ld_start,
                           bool has_start, const uint8_t *w, const int8_t *q, size_t ld, int n_t, int n_groups, int bits)
{
    const int run = run_of(bits, has_start);
    __m256i pairs[8][2];
#pragma GCC unroll 8
    for (int g = 0; g < n_groups; g++) {
        __m256i w0 = load_group(w, g, 0), w1 = load_group(w, g, 1);
#pragma GCC unroll 8
        for (int t = 0; t < n_t; t++) {
            __m256i b = broadcast4(q + (size_t)t * ld + 4 * g);
            pairs[t][0] = g % run == 0 ? first_products(start + (size_t)t * ld_start, has_start, w0, b) : add_products(pairs[t][0], w0, b);
            pairs[t][1] = g % run == 0 ? first_products(start + (size_t)t * ld_start, has_start, w1, b) : add_products(pairs[t][1], w1, b);
            SETTLE(pairs[t][0]);
            SETTLE(pairs[t][1]);
            if (g % run < run - 1 && g < n_groups - 1) continue;
            add_sum(&acc[t][0], !add && g < run, _mm256_madd_epi16(pairs[t][0], factor[0]));
            add_sum(&acc[t][1], !add && g < run, _mm256_madd_epi16(pairs[t][1], factor[1]));
        }
    }
}

/* Signed bytes. start: what the sums of the tile's two halves begin with. */
INLINE void dot_tile_8(__m256i acc[][2], const __m256i start[2], const uint8_t *w, const int8_t *q, size_t ld, int n_t, int n_groups)
{
#pragma GCC unroll 8
    for (int t = 0; t < n_t; t++) acc[t][0] = start[0], acc[t][1] = start[1];
#pragma GCC unroll 8
    for (int g = 0; g < n_groups; g++) {
        __m256i magnitude[2], negative[2];
        for (int h = 0; h < 2; h++) {
            __m256i v = load_group(w, g, h);
            magnitude[h] = _mm256_abs_epi8(v);
            negative[h] = _mm256_cmpgt_epi8(_mm256_setzero_si256(), v);
        }
#pragma GCC unroll 8
        for (int t = 0; t < n_t; t++) {
            __m256i b = broadcast4(q + (size_t)t * ld + 4 * g);
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                __m256i pairs = _mm256_maddubs_epi16(magnitude[h], _mm256_xor_si256(b, negative[h]));
                acc[t][h] = _mm256_add_epi32(acc[t][h], widen16(pairs));
                SETTLE(acc[t][h]);
            }
        }
    }
}

/* sum = ACT_BLOCK elements of a packed tile times n_t rows of q, ld apart, as floats: each sub-block's sum begins with start[t *
 * ld_start] (if there is one; the next sub-block's follows) and is multiplied by its factors (of sub-blocks of 16). w: the
 * first of them. 8 bits: begins with what `factor` has. */
INLINE void dot_tile(__m256 sum[][2], const int32_t *start, size_t ld_start, bool has_start, const uint8_t *w,
                     const int16_t (*factor)[ROW_TILE][2], const int8_t *q, size_t ld, int n_t, int sub, int bits)
{
    const __m256i one = _mm256_set1_epi16(1), ones[2] = {one, one};
    __m256i acc[8][2];
    if (bits == 8) {
        dot_tile_8(acc, (const __m256i *)factor[0], w, q, ld, n_t, sub / 4);
    } else if (sub == ACT_BLOCK) {
        dot_tile_pairs(acc, false, ones, start, ld_start, has_start, w, q, ld, n_t, sub / 4, bits);
    } else {
        dot_tile_pairs(acc, false, (const __m256i *)factor[0], start, ld_start, has_start, w, q, ld, n_t, sub / 4, bits);
        dot_tile_pairs(acc, true, (const __m256i *)factor[1], start + 1, ld_start, has_start, w + sub * ROW_TILE, q + sub, ld, n_t,
                       sub / 4, bits);
    }
#pragma GCC unroll 8
    for (int t = 0; t < n_t; t++)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) sum[t][h] = _mm256_cvtepi32_ps(acc[t][h]);
}

#endif
