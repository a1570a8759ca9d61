/* From the bits of each quantized format to sub-blocks of bytes with a scale and a minimum, lane = row.
 *
 * Each walk_<format> takes 16 rows through n_blocks blocks and hands every sub-block, in ascending
 * order, to a sink: for storing it in a tile (unpack.c) or for multiplying it
 * at once (stream.c). A new format is one such function and its line in the table macro. Sinks
 * are inlined; what blocks.h says about one row is done here for 16 at a time.
 *
 * Bytes are unsigned: what the format subtracts (its zero) is left to the sums' start value. */
#ifndef INFER_AVX512_FORMATS_H
#define INFER_AVX512_FORMATS_H

#include <stddef.h>

#include "blocks.h"
#include "rows.h"

/* w[k]: bytes 4k..4k+3 of sub-block s; d: the scale of its weights, in sub-blocks of 16 of their products with the sub-block's
 * integer, factor, which is meaningless in others; m is meaningless in formats without a minimum. */
typedef void sink_fn(void *ctx, int s, const __m512i *w, __m512 d, __m512 factor, __m512 m);

#define NO_FACTOR _mm512_setzero_ps()
#define NO_MINIMUM _mm512_setzero_ps()

/* X(name, NAME, elements of a block, of a sub-block, zero, has minimum) */
#define FOR_EACH_FORMAT(X)            \
    X(q4_0, Q4_0, 32, 32, 8, false)   \
    X(q4_1, Q4_1, 32, 32, 0, true)    \
    X(q5_0, Q5_0, 32, 32, 16, false)  \
    X(q5_1, Q5_1, 32, 32, 0, true)    \
    X(q8_0, Q8_0, 32, 32, 128, false) \
    X(q2_K, Q2_K, 256, 16, 0, true)   \
    X(q3_K, Q3_K, 256, 16, 4, false)  \
    X(q4_K, Q4_K, 256, 32, 0, true)   \
    X(q5_K, Q5_K, 256, 32, 0, true)   \
    X(q6_K, Q6_K, 256, 16, 32, false)

INLINE __m512i and_bits(__m512i v, int bits) { return _mm512_and_si512(v, _mm512_set1_epi32(bits)); }

/* a | (b & bits) */
INLINE __m512i or_bits(__m512i a, __m512i b, int bits)
{
    return _mm512_ternarylogic_epi32(a, b, _mm512_set1_epi32(bits), 0xf8);
}

INLINE __m512i shift_right(__m512i v, int n) { return n ? _mm512_srli_epi32(v, (unsigned)n) : v; }

/* Bit `from` of every byte (and those above) moved to bit `to`; what crosses bytes is the caller's to mask. */
INLINE __m512i move_bits(__m512i v, int from, int to)
{
    return from > to ? _mm512_srli_epi32(v, (unsigned)(from - to)) : from < to ? _mm512_slli_epi32(v, (unsigned)(to - from)) : v;
}

/* Every byte's low and high four bits. */
INLINE __m512i low_nibbles(__m512i v) { return and_bits(v, 0x0f0f0f0f); }
INLINE __m512i high_nibbles(__m512i v) { return and_bits(_mm512_srli_epi32(v, 4), 0x0f0f0f0f); }

/* The half floats in the low, in the high half of each dword. */
INLINE __m512 half_floats(__m512i v, int first)
{
    const __m512i even = _mm512_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 30, 28, 26, 24, 22, 20, 18, 16,
                                          14, 12, 10, 8, 6, 4, 2, 0);
    __m512i packed = _mm512_permutexvar_epi16(_mm512_add_epi16(even, _mm512_set1_epi16((short)first)), v);
    return _mm512_cvtph_ps(_mm512_castsi512_si256(packed));
}
INLINE __m512 low_half(__m512i v) { return half_floats(v, 0); }
INLINE __m512 high_half(__m512i v) { return half_floats(v, 1); }

INLINE __m512 negate(__m512 v) { return _mm512_xor_ps(v, _mm512_set1_ps(-0.0f)); }

/* Byte i of each dword: products with ones and zeros pick it out in one operation. */
INLINE __m512 byte_float(__m512i v, int i)
{
    return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), v, _mm512_set1_epi32(1 << 8 * i)));
}

INLINE __m512 signed_byte_float(__m512i v, int i)
{
    return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi32(1 << 8 * i), v));
}

INLINE __m512 times_byte(__m512 d, __m512i v, int i) { return _mm512_mul_ps(d, byte_float(v, i)); }

/* ---- blocks of 32 ---- */

/* Four dwords of nibbles: low ones first. */
INLINE void split_nibbles(__m512i w[8], const __m512i nibbles[4])
{
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        w[i] = low_nibbles(nibbles[i]);
        w[i + 4] = high_nibbles(nibbles[i]);
    }
}

/* Bits 4i..4i+3 of the word `high` become bit 4 of the bytes of w[i]. */
INLINE void add_fifth_bits(__m512i w[8], __m512i high)
{
    /* For each byte of a qword (two rows), at which bit of it to begin: four below its own. */
    __m512i from = _mm512_set1_epi64((long long)0x1f1e1d1cfffefdfcULL);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        w[i] = or_bits(w[i], _mm512_multishift_epi64_epi8(from, high), 0x10101010);
        from = _mm512_add_epi8(from, _mm512_set1_epi8(4));
    }
}

INLINE void walk_q4_0(const struct rows *rows, int n_blocks, sink_fn *sink, void *ctx)
{
    struct rows moving = begin(rows), *r = &moving;
    for (int b = 0; b < n_blocks; b++, move_on(r, sizeof(struct block_q4_0))) {
        __m512i nibbles[4], w[8];
        load_4(nibbles, r, offsetof(struct block_q4_0, nibbles));
        split_nibbles(w, nibbles);
        sink(ctx, b, w, low_half(load_1(r, 0)), NO_FACTOR, NO_MINIMUM);
    }
}

INLINE void walk_q4_1(const struct rows *rows, int n_blocks, sink_fn *sink, void *ctx)
{
    struct rows moving = begin(rows), *r = &moving;
    int b = 0;
    for (; b + 4 <= n_blocks; b += 4, move_on(r, 4 * sizeof(struct block_q4_1))) { /* of five dwords each */
        __m512i v[20], w[8];
        load_8(v, r, 0);
        split_nibbles(w, v + 1);
        sink(ctx, b, w, low_half(v[0]), NO_FACTOR, negate(high_half(v[0])));
        load_8(v + 8, r, 32);
        split_nibbles(w, v + 6);
        sink(ctx, b + 1, w, low_half(v[5]), NO_FACTOR, negate(high_half(v[5])));
        split_nibbles(w, v + 11);
        sink(ctx, b + 2, w, low_half(v[10]), NO_FACTOR, negate(high_half(v[10])));
        load_4(v + 16, r, 64);
        split_nibbles(w, v + 16);
        sink(ctx, b + 3, w, low_half(v[15]), NO_FACTOR, negate(high_half(v[15])));
    }
    for (; b < n_blocks; b++, move_on(r, sizeof(struct block_q4_1))) {
        __m512i nibbles[4], w[8];
        load_4(nibbles, r, offsetof(struct block_q4_1, nibbles));
        split_nibbles(w, nibbles);
        __m512i dm = load_1(r, 0);
        sink(ctx, b, w, low_half(dm), NO_FACTOR, negate(high_half(dm)));
    }
}

INLINE void walk_q5_0(const struct rows *rows, int n_blocks, sink_fn *sink, void *ctx)
{
    struct rows moving = begin(rows), *r = &moving;
    for (int b = 0; b < n_blocks; b++, move_on(r, sizeof(struct block_q5_0))) {
        __m512i nibbles[4], w[8];
        load_4(nibbles, r, offsetof(struct block_q5_0, nibbles));
        split_nibbles(w, nibbles);
        add_fifth_bits(w, load_1(r, offsetof(struct block_q5_0, high)));
        sink(ctx, b, w, low_half(load_1(r, 0)), NO_FACTOR, NO_MINIMUM);
    }
}

INLINE void walk_q5_1(const struct rows *rows, int n_blocks, sink_fn *sink, void *ctx)
{
    struct rows moving = begin(rows), *r = &moving;
    for (int b = 0; b < n_blocks; b++, move_on(r, sizeof(struct block_q5_1))) {
        __m512i nibbles[4], w[8];
        load_4(nibbles, r, offsetof(struct block_q5_1, nibbles));
        split_nibbles(w, nibbles);
        add_fifth_bits(w, load_1(r, offsetof(struct block_q5_1, high)));
        __m512i dm = load_1(r, 0);
        sink(ctx, b, w, low_half(dm), NO_FACTOR, negate(high_half(dm)));
    }
}

/* The signed bytes become unsigned by adding 128. */
INLINE void walk_q8_0(const struct rows *rows, int n_blocks, sink_fn *sink, void *ctx)
{
    struct rows moving = begin(rows), *r = &moving;
    for (int b = 0; b < n_blocks; b++, move_on(r, sizeof(struct block_q8_0))) {
        __m512i w[8];
        load_8(w, r, offsetof(struct block_q8_0, q));
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) w[i] = _mm512_xor_si512(w[i], _mm512_set1_epi8(-128));
        sink(ctx, b, w, low_half(load_1(r, 0)), NO_FACTOR, NO_MINIMUM);
    }
}

/* ---- super-blocks of 256 ---- */

/* load_8, and what follows it follows it: GCC would gather the loads of several groups, and with them their prefetches, at
 * one place, where they wait for each other. In turns with arithmetic one row of activations runs 10 to 20 % faster. */
INLINE void load_8_in_order(__m512i out[8], const struct rows *r, size_t at)
{
    load_8(out, r, at);
    __asm__ volatile("" ::: "memory");
}

INLINE void walk_q2_K(const struct rows *rows, int n_blocks, sink_fn *sink, void *ctx)
{
    struct rows moving = begin(rows), *r = &moving;
    for (int b = 0; b < n_blocks; b++, move_on(r, sizeof(struct block_q2_K))) {
        __m512i scales[4], dm = load_1(r, offsetof(struct block_q2_K, d));
        __m512 d = low_half(dm), dmin = high_half(dm);
        load_4(scales, r, offsetof(struct block_q2_K, scales));
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            __m512i pairs[8];
            load_8_in_order(pairs, r, offsetof(struct block_q2_K, pairs) + 32 * (size_t)h);
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) { /* two sub-blocks for each quarter */
                __m512i w[4];
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) w[i] = and_bits(move_bits(pairs[j % 2 * 4 + i], j / 2 * 2, 0), 0x03030303);
                int s = 8 * h + j;
                sink(ctx, 16 * b + s, w, d, byte_float(low_nibbles(scales[s / 4]), s % 4),
                     times_byte(dmin, high_nibbles(scales[s / 4]), s % 4));
            }
        }
    }
}

INLINE void walk_q3_K(const struct rows *rows, int n_blocks, sink_fn *sink, void *ctx)
{
    struct rows moving = begin(rows), *r = &moving;
    for (int b = 0; b < n_blocks; b++, move_on(r, sizeof(struct block_q3_K))) {
        /* The 16 bytes that end with the block are the scales and d, half a dword early. */
        __m512i end[4], packed[3], high[8];
        load_4(end, r, sizeof(struct block_q3_K) - 16);
        __m512 d = high_half(end[3]);
#pragma GCC unroll 3
        for (int i = 0; i < 3; i++) packed[i] = _mm512_shrdi_epi32(end[i], end[i + 1], 16);
        __m512i scales[4] = {
            or_bits(low_nibbles(packed[0]), _mm512_slli_epi32(packed[2], 4), 0x30303030),
            or_bits(low_nibbles(packed[1]), _mm512_slli_epi32(packed[2], 2), 0x30303030),
            or_bits(high_nibbles(packed[0]), packed[2], 0x30303030),
            or_bits(high_nibbles(packed[1]), _mm512_srli_epi32(packed[2], 2), 0x30303030),
        };
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) scales[i] = _mm512_sub_epi8(scales[i], _mm512_set1_epi8(32));
        load_8_in_order(high, r, offsetof(struct block_q3_K, high));
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            __m512i pairs[8];
            load_8_in_order(pairs, r, offsetof(struct block_q3_K, pairs) + 32 * (size_t)h);
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) {
                __m512i w[4];
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    int from = j % 2 * 4 + i;
                    w[i] = and_bits(move_bits(pairs[from], j / 2 * 2, 0), 0x03030303);
                    w[i] = or_bits(w[i], move_bits(high[from], 4 * h + j / 2, 2), 0x04040404);
                }
                int s = 8 * h + j;
                sink(ctx, 16 * b + s, w, d, signed_byte_float(scales[s / 4], s % 4), NO_MINIMUM);
            }
        }
    }
}

/* The floats and the 6-bit scales and minima of Q4_K and Q5_K. */
struct scales_k {
    __m512 d, dmin;
    __m512i scales[2], mins[2];
};

INLINE struct scales_k load_scales_k(const struct rows *r)
{
    __m512i c[4];
    load_4(c, r, 0);
    return (struct scales_k){
        .d = low_half(c[0]),
        .dmin = high_half(c[0]),
        .scales = {and_bits(c[1], 0x3f3f3f3f),
                   or_bits(low_nibbles(c[3]), _mm512_srli_epi32(c[1], 2), 0x30303030)},
        .mins = {and_bits(c[2], 0x3f3f3f3f),
                 or_bits(high_nibbles(c[3]), _mm512_srli_epi32(c[2], 2), 0x30303030)},
    };
}

/* High nibbles stay where they are, 16 times too large, and their scale is 16 times smaller: the same bits, unless that is subnormal
 * after it is multiplied by the activation's (below 2^-122: activations below 2^-92), or the product of both overflows (above 1e32). */
INLINE void walk_q4_K(const struct rows *rows, int n_blocks, sink_fn *sink, void *ctx)
{
    struct rows moving = begin(rows), *r = &moving;
    for (int b = 0; b < n_blocks; b++, move_on(r, sizeof(struct block_q4_K))) {
        struct scales_k k = load_scales_k(r);
        __m512 d[2] = {k.d, _mm512_mul_ps(k.d, _mm512_set1_ps(1.0f / 16))};
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++) {
            __m512i nibbles[8], w[8];
            load_8_in_order(nibbles, r, offsetof(struct block_q4_K, nibbles) + 32 * (size_t)g);
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++) w[i] = and_bits(nibbles[i], h ? (int)0xf0f0f0f0 : 0x0f0f0f0f);
                int s = 2 * g + h;
                sink(ctx, 8 * b + s, w, times_byte(d[h], k.scales[s / 4], s % 4), NO_FACTOR, times_byte(k.dmin, k.mins[s / 4], s % 4));
            }
        }
    }
}

INLINE void walk_q5_K(const struct rows *rows, int n_blocks, sink_fn *sink, void *ctx)
{
    struct rows moving = begin(rows), *r = &moving;
    for (int b = 0; b < n_blocks; b++, move_on(r, sizeof(struct block_q5_K))) {
        struct scales_k k = load_scales_k(r);
        __m512i high[8];
        load_8_in_order(high, r, offsetof(struct block_q5_K, high));
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++) {
            __m512i nibbles[8], w[8];
            load_8_in_order(nibbles, r, offsetof(struct block_q5_K, nibbles) + 32 * (size_t)g);
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                int s = 2 * g + h;
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++) {
                    w[i] = h ? high_nibbles(nibbles[i]) : low_nibbles(nibbles[i]);
                    w[i] = or_bits(w[i], move_bits(high[i], s, 4), 0x10101010);
                }
                sink(ctx, 8 * b + s, w, times_byte(k.d, k.scales[s / 4], s % 4), NO_FACTOR, times_byte(k.dmin, k.mins[s / 4], s % 4));
            }
        }
    }
}

INLINE void walk_q6_K(const struct rows *rows, int n_blocks, sink_fn *sink, void *ctx)
{
    struct rows moving = begin(rows), *r = &moving;
    for (int b = 0; b < n_blocks; b++, move_on(r, sizeof(struct block_q6_K))) {
        __m512i scales[4];
        load_4(scales, r, offsetof(struct block_q6_K, scales));
        __m512 d = high_half(load_1(r, sizeof(struct block_q6_K) - 4));
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            __m512i even[8], odd[8], pairs[8]; /* nibbles of the even and of the odd quarters */
            load_8_in_order(even, r, offsetof(struct block_q6_K, nibbles) + 64 * (size_t)h);
            load_8_in_order(odd, r, offsetof(struct block_q6_K, nibbles) + 64 * (size_t)h + 32);
            load_8_in_order(pairs, r, offsetof(struct block_q6_K, pairs) + 32 * (size_t)h);
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) { /* two sub-blocks for each quarter */
                int quarter = j / 2;
                __m512i w[4];
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    int from = j % 2 * 4 + i;
                    __m512i nibbles = quarter % 2 ? odd[from] : even[from];
                    w[i] = quarter < 2 ? low_nibbles(nibbles) : high_nibbles(nibbles);
                    w[i] = or_bits(w[i], move_bits(pairs[from], 2 * quarter, 4), 0x30303030);
                }
                int s = 8 * h + j;
                sink(ctx, 16 * b + s, w, d, signed_byte_float(scales[s / 4], s % 4), NO_MINIMUM);
            }
        }
    }
}

#endif
