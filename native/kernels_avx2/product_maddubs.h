/* Sums of byte products without AVX-VNNI: template part of the matmul and matvec files.
 *
 * vpmaddubsw multiplies unsigned by signed bytes and adds pairs into 16 bits, saturating.
 * With activations in -127..127 a pair is at most 2 * 127 * (2^bits - 1): 3810, 7874 and 16002 for 4, 5 and 6
 * bits, so that 8, 4 and 2 of them can be added in 16 bits (below 32767)
 * before vpmaddwd widens. 8-bit weights are made signed again and their sign moved to the
 * activation: a pair is then at most 2 * 127 * 128 = 32512. */
#ifndef INFER_AVX2_PRODUCT_H
#define INFER_AVX2_PRODUCT_H

#include <stdbool.h>
#include <stddef.h>

#include "simd.h"

/* What dot_put_signed and dot_tile leave to be taken off: Q8_0's offset is undone here. */
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

/* acc = sum, and the start if there is one, or acc += sum. */
INLINE void add_sum(__m256i *acc, const int32_t *start, bool first, __m256i sum)
{
    if (!first) *acc = _mm256_add_epi32(*acc, sum);
    else *acc = start ? _mm256_add_epi32(sum, _mm256_set1_epi32(*start)) : sum;
}

/* Sums of a sub-block that is handed over group by group, of four elements. */
struct dot {
    __m256i sum, pairs;
};

/* Adds group g of n_groups: w has four elements of each lane's row, q those of the activation row. The sum is
 * complete after the last group, with *start (NULL: 0) in it. */
INLINE void dot_put(struct dot *d, const int32_t *start, __m256i w, const int8_t *q, int g, int n_groups, int bits)
{
    const int run = bits == 4 ? 8 : bits == 5 ? 4 : 2;
    __m256i b = broadcast4(q);
    d->pairs = g % run == 0 ? _mm256_maddubs_epi16(w, b) : add_products(d->pairs, w, b);
    SETTLE(d->pairs);
    if (g % run == run - 1 || g == n_groups - 1) add_sum(&d->sum, start, g < run, widen16(d->pairs));
}

INLINE void dot_put_signed(struct dot *d, const int32_t *start, __m256i w, const int8_t *q, int g)
{
    add_sum(&d->sum, start, g == 0, pair_signed(w, broadcast4(q)));
    SETTLE(d->sum);
}

INLINE __m256i load_group(const uint8_t *w, int g, int half)
{
    return _mm256_load_si256((const __m256i *)(w + 64 * g + 32 * half));
}

/* 4 and 5 bits: `run` groups of 4 elements are added in 16 bits. */
INLINE void dot_tile_narrow(__m256i acc[][2], const int32_t *const start[], const uint8_t *w, const int8_t *q,
                            size_t ld, int n_t, int n_groups, int run)
{
    __m256i pairs[8][2];
#pragma GCC unroll 8
    for (int g = 0; g < n_groups; g++) {
        __m256i w0 = load_group(w, g, 0), w1 = load_group(w, g, 1);
#pragma GCC unroll 8
        for (int t = 0; t < n_t; t++) {
            __m256i b = broadcast4(q + (size_t)t * ld + 4 * g);
            pairs[t][0] = g % run == 0 ? _mm256_maddubs_epi16(w0, b) : add_products(pairs[t][0], w0, b);
            pairs[t][1] = g % run == 0 ? _mm256_maddubs_epi16(w1, b) : add_products(pairs[t][1], w1, b);
            SETTLE(pairs[t][0]);
            SETTLE(pairs[t][1]);
            if (g % run < run - 1 && g < n_groups - 1) continue;
            add_sum(&acc[t][0], start[t], g < run, widen16(pairs[t][0]));
            add_sum(&acc[t][1], start[t], g < run, widen16(pairs[t][1]));
        }
    }
}

/* 6 bits: two groups at a time. */
INLINE void dot_tile_6(__m256i acc[][2], const int32_t *const start[], const uint8_t *w, const int8_t *q, size_t ld,
                       int n_t, int n_groups)
{
#pragma GCC unroll 4
    for (int g = 0; g < n_groups; g += 2) {
        __m256i w0 = load_group(w, g, 0), w1 = load_group(w, g, 1);
        __m256i v0 = load_group(w, g + 1, 0), v1 = load_group(w, g + 1, 1);
#pragma GCC unroll 8
        for (int t = 0; t < n_t; t++) {
            __m256i b = broadcast4(q + (size_t)t * ld + 4 * g), c = broadcast4(q + (size_t)t * ld + 4 * g + 4);
            __m256i p0 = _mm256_add_epi16(_mm256_maddubs_epi16(w0, b), _mm256_maddubs_epi16(v0, c));
            __m256i p1 = _mm256_add_epi16(_mm256_maddubs_epi16(w1, b), _mm256_maddubs_epi16(v1, c));
            add_sum(&acc[t][0], start[t], g == 0, widen16(p0));
            add_sum(&acc[t][1], start[t], g == 0, widen16(p1));
            SETTLE(acc[t][0]);
            SETTLE(acc[t][1]);
        }
    }
}

/* 8 bits, packed with an offset of 128. */
INLINE void dot_tile_8(__m256i acc[][2], const int32_t *const start[], const uint8_t *w, const int8_t *q, size_t ld,
                       int n_t, int n_groups)
{
    const __m256i offset = _mm256_set1_epi8((char)128);
#pragma GCC unroll 8
    for (int g = 0; g < n_groups; g++) {
        __m256i w0 = _mm256_xor_si256(load_group(w, g, 0), offset), w1 = _mm256_xor_si256(load_group(w, g, 1), offset);
#pragma GCC unroll 8
        for (int t = 0; t < n_t; t++) {
            __m256i b = broadcast4(q + (size_t)t * ld + 4 * g);
            add_sum(&acc[t][0], start[t], g == 0, pair_signed(w0, b));
            add_sum(&acc[t][1], start[t], g == 0, pair_signed(w1, b));
            SETTLE(acc[t][0]);
            SETTLE(acc[t][1]);
        }
    }
}

/* acc = start (NULL: 0) + a sub-block (sub elements) of a packed tile times n_t rows of q, ld apart. The start is
 * added as late as possible: until then the 16-bit sums need the registers. */
INLINE void dot_tile(__m256i acc[][2], const int32_t *const start[], const uint8_t *w, const int8_t *q, size_t ld,
                     int n_t, int sub, int bits)
{
    if (bits == 8) dot_tile_8(acc, start, w, q, ld, n_t, sub / 4);
    else if (bits == 6) dot_tile_6(acc, start, w, q, ld, n_t, sub / 4);
    else dot_tile_narrow(acc, start, w, q, ld, n_t, sub / 4, bits == 4 ? 8 : 4);
}

#endif
