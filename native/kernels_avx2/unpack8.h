/* Eight rows of each quantized format, unpacked side by side: lane = row.
 *
 * A template: the includer defines `struct sink` and its four functions first, and is handed, for a block of
 * eight consecutive rows (p is the first row's block, stride the bytes from row to row):
 *
 *   put(s, j, g, w)         elements 4g .. 4g+3 of sub-block j, as unsigned integers (the format's zero not
 *                           taken off), of row i in the four bytes of lane i; g ascends
 *   put_signed(s, j, g, w)  the same for Q8_0, whose integers are signed
 *   scale(s, j, d, m)       the sub-block's d and m (zeros without a minimum) of each row; sub-blocks
 *                           ascend, and all groups of j came before
 *   scale16(s, i, d, f, m)  the same for sub-blocks of 16, for 2i and 2i + 1 at once: d is that of the block, f their integers
 *   put_nibble_word(s, i, w)  instead of put for Q4_0, Q4_1 and Q4_K, if UNPACK8_KEEPS_NIBBLES is defined: a word of
 *                           nibbles of each row, as in the file. In blocks of 32, group i in the low and 4 + i in the high ones;
 *                           in Q4_K, group i % 8 of sub-block i / 8 * 2 in the low and of the next sub-block in the high ones
 *
 * UNPACK8_MULTIPLIES is defined by those who multiply what they are handed at once, so that vectors have more to do than general
 * registers.
 *
 * The work is in turning rows into lanes: 16 bytes of eight rows are a 4x4 transposition
 * of 32-bit words in each half of the register, eight shuffles, done while the nibbles are
 * still packed. What lies in whole words at the same place of a block (6-bit scales, fifth
 * bits) comes out of the same transposition. No byte outside the block is read. */
#ifndef INFER_AVX2_UNPACK8_H
#define INFER_AVX2_UNPACK8_H

#include "blocks.h"
#include "simd.h"

/* w[i] = 32-bit word i of the 16 bytes at p of rows 0..7. */
INLINE void load_words(__m256i w[4], const uint8_t *p, size_t stride)
{
    __m256i r[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {
        __m128i low = _mm_loadu_si128((const __m128i *)(p + i * stride));
        /* loaded into both halves and blended: VINSERTI128 from memory keeps the ports of shuffles and shifts busy */
        __m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(p + (i + 4) * stride)));
        r[i] = _mm256_blend_epi32(_mm256_castsi128_si256(low), high, 0xf0);
    }
    __m256i a = _mm256_unpacklo_epi32(r[0], r[1]), b = _mm256_unpacklo_epi32(r[2], r[3]);
    __m256i c = _mm256_unpackhi_epi32(r[0], r[1]), d = _mm256_unpackhi_epi32(r[2], r[3]);
    w[0] = _mm256_unpacklo_epi64(a, b);
    w[1] = _mm256_unpackhi_epi64(a, b);
    w[2] = _mm256_unpacklo_epi64(c, d);
    w[3] = _mm256_unpackhi_epi64(c, d);
}

/* The half-precision float at p of rows 0..7: in general registers, which have time where vectors have none. */
INLINE __m256 load_f16(const uint8_t *p, size_t stride)
{
    uint64_t four[2] = {0, 0};
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; i++) {
        uint16_t h;
        memcpy(&h, p + i * stride, sizeof h);
        four[i / 4] |= (uint64_t)h << (16 * (i % 4));
        __asm__("" : "+r"(four[i / 4])); /* GCC would make vectors of the parts */
    }
    return _mm256_cvtph_ps(_mm_set_epi64x((long long)four[1], (long long)four[0]));
}

/* The two half-precision floats of each lane, low and high 16 bits. */
INLINE void split_f16(__m256i pairs, __m256 *low, __m256 *high)
{
    const __m256i even_first = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,
                                                0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    __m256i v = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(pairs, even_first), 0xd8);
    *low = _mm256_cvtph_ps(_mm256_castsi256_si128(v));
    *high = _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1));
}

INLINE __m256 low_f16(__m256i pairs)
{
    __m256 low, high;
    split_f16(pairs, &low, &high);
    (void)high;
    return low;
}

INLINE __m256 high_f16(__m256i pairs)
{
    __m256 low, high;
    split_f16(pairs, &low, &high);
    (void)low;
    return high;
}

/* Byte i of each lane. */
INLINE __m256i byte_of(__m256i v, int i)
{
    const int none = (int)0x80808000; /* in the upper three bytes */
    if (i == 0) return _mm256_and_si256(v, _mm256_set1_epi32(255));
    if (i == 3) return _mm256_srli_epi32(v, 24);
    const __m256i first = _mm256_setr_epi32(none, none + 4, none + 8, none + 12, none, none + 4, none + 8, none + 12);
    return _mm256_shuffle_epi8(v, _mm256_add_epi32(first, _mm256_set1_epi32(i)));
}
INLINE __m256i signed_byte_of(__m256i v, int i) { return _mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * i), 24); }
INLINE __m256 byte_float(__m256i v, int i) { return _mm256_cvtepi32_ps(byte_of(v, i)); }

INLINE __m256i shift_and(__m256i v, int right, int mask)
{
    return _mm256_and_si256(_mm256_srli_epi32(v, right), _mm256_set1_epi8((char)mask));
}

INLINE __m256i low_nibbles(__m256i w) { return shift_and(w, 0, 15); }
INLINE __m256i high_nibbles(__m256i w) { return shift_and(w, 4, 15); }

/* ---- blocks of 32 ---- */

/* Blocks of 32 with 4 bits: low nibbles first. */
INLINE void put_nibbles(struct sink *s, const __m256i w[4])
{
#ifdef UNPACK8_KEEPS_NIBBLES
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) put_nibble_word(s, i, w[i]);
#else
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) put(s, 0, g, low_nibbles(w[g]));
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) put(s, 0, 4 + g, high_nibbles(w[g]));
#endif
}

INLINE void unpack8_q4_0(struct sink *s, const uint8_t *p, size_t stride)
{
    __m256i w[4];
    load_words(w, p + offsetof(struct block_q4_0, nibbles), stride);
    put_nibbles(s, w);
    scale(s, 0, load_f16(p, stride), _mm256_setzero_ps());
}

/* m of Q4_1 and Q5_1 is added in the format, taken off here: its sign bit is flipped. */
INLINE void scale_added(struct sink *s, __m256 d, __m256 m) { scale(s, 0, d, _mm256_xor_ps(m, _mm256_set1_ps(-0.0f))); }

INLINE void unpack8_q4_1(struct sink *s, const uint8_t *p, size_t stride)
{
    __m256 d, m;
    __m256i w[4];
    load_words(w, p + offsetof(struct block_q4_1, nibbles), stride);
    put_nibbles(s, w);
#ifdef UNPACK8_MULTIPLIES
    d = load_f16(p + offsetof(struct block_q4_1, d), stride);
    m = load_f16(p + offsetof(struct block_q4_1, m), stride);
#else
    load_words(w, p, stride);
    split_f16(w[0], &d, &m);
#endif
    scale_added(s, d, m);
}

/* w with bit 4 of its bytes set by bits 4g .. 4g+3 of each lane of `bits`. */
INLINE __m256i with_fifth_bits(__m256i w, __m256i bits, int g)
{
    __m256i spread = _mm256_setr_epi32(0x00000000, 0x04040404, 0x08080808, 0x0c0c0c0c,
                                       0x00000000, 0x04040404, 0x08080808, 0x0c0c0c0c);
    spread = _mm256_add_epi8(spread, _mm256_set1_epi8((char)(g / 2)));
    __m256i select = _mm256_set1_epi32(g % 2 ? (int)0x80402010 : 0x08040201);
    __m256i own = _mm256_and_si256(_mm256_shuffle_epi8(bits, spread), select);
    __m256i set = _mm256_cmpeq_epi8(own, select);
    return _mm256_or_si256(w, _mm256_and_si256(set, _mm256_set1_epi8(16)));
}

INLINE void put_five_bits(struct sink *s, const __m256i w[4], __m256i bits)
{
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) put(s, 0, g, with_fifth_bits(low_nibbles(w[g]), bits, g));
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) put(s, 0, 4 + g, with_fifth_bits(high_nibbles(w[g]), bits, 4 + g));
}

INLINE void unpack8_q5_0(struct sink *s, const uint8_t *p, size_t stride)
{
    __m256i head[4], w[4];
    load_words(head, p + offsetof(struct block_q5_0, high), stride);
    load_words(w, p + offsetof(struct block_q5_0, nibbles), stride);
    put_five_bits(s, w, head[0]);
    scale(s, 0, load_f16(p, stride), _mm256_setzero_ps());
}

INLINE void unpack8_q5_1(struct sink *s, const uint8_t *p, size_t stride)
{
    __m256 d, m;
    __m256i head[4], w[4];
    load_words(head, p, stride); /* d and m, the fifth bits */
    load_words(w, p + offsetof(struct block_q5_1, nibbles), stride);
    put_five_bits(s, w, head[1]);
    split_f16(head[0], &d, &m);
    scale_added(s, d, m);
}

INLINE void unpack8_q8_0(struct sink *s, const uint8_t *p, size_t stride)
{
    __m256i w[4];
#pragma GCC unroll 2
    for (int part = 0; part < 2; part++) {
        load_words(w, p + offsetof(struct block_q8_0, q) + 16 * part, stride);
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++) put_signed(s, 0, 4 * part + g, w[g]);
    }
    scale(s, 0, load_f16(p, stride), _mm256_setzero_ps());
}

/* ---- super-blocks of 256 ---- */

/* The floats at the end of a block are the last word of its last 16 bytes. */
INLINE __m256i last_word(const uint8_t *p, size_t stride, size_t block_bytes)
{
    __m256i w[4];
    load_words(w, p + block_bytes - 16, stride);
    return w[3];
}

INLINE void unpack8_q2_K(struct sink *s, const uint8_t *p, size_t stride)
{
    __m256i scales[4], w[2][4];
    __m256 d, dmin, m[2];
    __m256i factor[2];
    split_f16(last_word(p, stride, sizeof(struct block_q2_K)), &d, &dmin);
    load_words(scales, p + offsetof(struct block_q2_K, scales), stride);
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        load_words(w[0], p + offsetof(struct block_q2_K, pairs) + 32 * half, stride);
        load_words(w[1], p + offsetof(struct block_q2_K, pairs) + 32 * half + 16, stride);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) { /* sub-block: quarter i/2, its 16 elements i%2 */
            int j = 8 * half + i;
            __m256i both = scales[j / 4];
#pragma GCC unroll 4
            for (int g = 0; g < 4; g++) put(s, j, g, shift_and(w[i % 2][g], 2 * (i / 2), 3));
            factor[i % 2] = byte_of(low_nibbles(both), j % 4);
            m[i % 2] = _mm256_mul_ps(dmin, byte_float(high_nibbles(both), j % 4));
            if (i % 2) scale16(s, j / 2, d, factor, m);
        }
    }
}

/* scale16 of sub-blocks 2i and 2i + 1 without minimums, whose integers are among the four signed bytes of each lane of `four`. */
INLINE void scale16_signed(struct sink *s, int i, __m256 d, __m256i four)
{
    const __m256i factor[2] = {signed_byte_of(four, i % 2 * 2), signed_byte_of(four, i % 2 * 2 + 1)};
    const __m256 m[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    scale16(s, i, d, factor, m);
}

INLINE void unpack8_q3_K(struct sink *s, const uint8_t *p, size_t stride)
{
    /* The last 14 bytes are the scales and d: brought to words by dropping two bytes of the last 16. */
    __m256i tail[4], scales[4], high[2][4], w[2][4];
    __m256i six[4];
    load_words(tail, p + sizeof(struct block_q3_K) - 16, stride);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m256i next = i < 3 ? tail[i + 1] : _mm256_setzero_si256();
        six[i] = _mm256_or_si256(_mm256_srli_epi32(tail[i], 16), _mm256_slli_epi32(next, 16));
    }
    __m256 d = low_f16(six[3]);
    __m256i top = _mm256_set1_epi8(0x30);
    scales[0] = _mm256_or_si256(shift_and(six[0], 0, 15), _mm256_and_si256(_mm256_slli_epi32(six[2], 4), top));
    scales[1] = _mm256_or_si256(shift_and(six[1], 0, 15), _mm256_and_si256(_mm256_slli_epi32(six[2], 2), top));
    scales[2] = _mm256_or_si256(shift_and(six[0], 4, 15), _mm256_and_si256(six[2], top));
    scales[3] = _mm256_or_si256(shift_and(six[1], 4, 15), _mm256_and_si256(_mm256_srli_epi32(six[2], 2), top));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) scales[i] = _mm256_sub_epi8(scales[i], _mm256_set1_epi8(32));
    load_words(high[0], p + offsetof(struct block_q3_K, high), stride);
    load_words(high[1], p + offsetof(struct block_q3_K, high) + 16, stride);
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        load_words(w[0], p + offsetof(struct block_q3_K, pairs) + 32 * half, stride);
        load_words(w[1], p + offsetof(struct block_q3_K, pairs) + 32 * half + 16, stride);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            int j = 8 * half + i, bit = 4 * half + i / 2;
#pragma GCC unroll 4
            for (int g = 0; g < 4; g++) {
                __m256i third = _mm256_slli_epi32(shift_and(high[i % 2][g], bit, 1), 2);
                put(s, j, g, _mm256_or_si256(shift_and(w[i % 2][g], 2 * (i / 2), 3), third));
            }
            if (i % 2) scale16_signed(s, j / 2, d, scales[j / 4]);
        }
    }
}

/* The header that Q4_K and Q5_K share: floats, and q4_K_scales of blocks.h with words for bytes. */
struct header_k {
    __m256 d, dmin;
    __m256i scales[2], mins[2];
};

INLINE struct header_k load_header_k(const uint8_t *p, size_t stride)
{
    struct header_k h;
    __m256i w[4];
    load_words(w, p, stride);
    split_f16(w[0], &h.d, &h.dmin);
    __m256i top = _mm256_set1_epi8(0x30);
    h.scales[0] = shift_and(w[1], 0, 0x3f);
    h.scales[1] = _mm256_or_si256(shift_and(w[3], 0, 15), _mm256_and_si256(_mm256_srli_epi32(w[1], 2), top));
    h.mins[0] = shift_and(w[2], 0, 0x3f);
    h.mins[1] = _mm256_or_si256(shift_and(w[3], 4, 15), _mm256_and_si256(_mm256_srli_epi32(w[2], 2), top));
    return h;
}

INLINE void scale_k(struct sink *s, const struct header_k *h, int j)
{
    scale(s, j, _mm256_mul_ps(h->d, byte_float(h->scales[j / 4], j % 4)),
          _mm256_mul_ps(h->dmin, byte_float(h->mins[j / 4], j % 4)));
}

INLINE void unpack8_q4_K(struct sink *s, const uint8_t *p, size_t stride)
{
    struct header_k h = load_header_k(p, stride);
#pragma GCC unroll 4
    for (int j = 0; j < 8; j += 2) {
#pragma GCC unroll 2
        for (int part = 0; part < 2; part++) {
            __m256i w[4];
            load_words(w, p + offsetof(struct block_q4_K, nibbles) + 16 * j + 16 * part, stride);
#pragma GCC unroll 4
            for (int g = 0; g < 4; g++) {
#ifdef UNPACK8_KEEPS_NIBBLES
                put_nibble_word(s, 4 * j + 4 * part + g, w[g]);
#else
                put(s, j, 4 * part + g, low_nibbles(w[g]));
                put(s, j + 1, 4 * part + g, high_nibbles(w[g]));
#endif
            }
        }
        scale_k(s, &h, j);
        scale_k(s, &h, j + 1);
    }
}

/* Bit j of every byte, as bit 4. */
INLINE __m256i fifth_bit(__m256i bits, int j) { return _mm256_slli_epi32(shift_and(bits, j, 1), 4); }

INLINE void unpack8_q5_K(struct sink *s, const uint8_t *p, size_t stride)
{
    struct header_k h = load_header_k(p, stride);
    __m256i fifth[8];
    load_words(fifth, p + offsetof(struct block_q5_K, high), stride);
    load_words(fifth + 4, p + offsetof(struct block_q5_K, high) + 16, stride);
#pragma GCC unroll 4
    for (int j = 0; j < 8; j += 2) {
        __m256i w[8];
        load_words(w, p + offsetof(struct block_q5_K, nibbles) + 16 * j, stride);
        load_words(w + 4, p + offsetof(struct block_q5_K, nibbles) + 16 * j + 16, stride);
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++) put(s, j, g, _mm256_or_si256(low_nibbles(w[g]), fifth_bit(fifth[g], j)));
        scale_k(s, &h, j);
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++) put(s, j + 1, g, _mm256_or_si256(high_nibbles(w[g]), fifth_bit(fifth[g], j + 1)));
        scale_k(s, &h, j + 1);
    }
}

INLINE void unpack8_q6_K(struct sink *s, const uint8_t *p, size_t stride)
{
    __m256i scales[4];
    __m256 d = high_f16(last_word(p, stride, sizeof(struct block_q6_K)));
    load_words(scales, p + offsetof(struct block_q6_K, scales), stride);
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
#pragma GCC unroll 2
        for (int e = 0; e < 2; e++) { /* which 16 elements of each quarter */
            const uint8_t *nibbles = p + offsetof(struct block_q6_K, nibbles) + 64 * half + 16 * e;
            __m256i pairs[4], w[4];
            load_words(pairs, p + offsetof(struct block_q6_K, pairs) + 32 * half + 16 * e, stride);
#pragma GCC unroll 2
            for (int quarter = 0; quarter < 2; quarter++) {
                load_words(w, nibbles + 32 * quarter, stride);
                int j = 8 * half + 2 * quarter + e;
#pragma GCC unroll 4
                for (int g = 0; g < 4; g++) {
                    /* bits 2*quarter and 2*quarter + 4 of the pairs, moved to bit 4 */
                    __m256i low = quarter ? _mm256_slli_epi32(pairs[g], 2) : _mm256_slli_epi32(pairs[g], 4);
                    __m256i high = quarter ? _mm256_srli_epi32(pairs[g], 2) : pairs[g];
                    const __m256i top = _mm256_set1_epi8(0x30);
                    put(s, j, g, _mm256_or_si256(low_nibbles(w[g]), _mm256_and_si256(low, top)));
                    put(s, j + 4, g, _mm256_or_si256(high_nibbles(w[g]), _mm256_and_si256(high, top)));
                }
            }
        }
#pragma GCC unroll 8
        for (int i = 4 * half; i < 4 * half + 4; i++) scale16_signed(s, i, d, scales[i / 2]);
    }
}

#endif
