/* From the bits of each quantized format to a tile: bytes, scales and minima with lane = row.
 *
 * Input are the dwords of 16 rows' blocks, transposed: each step below does for 16 rows
 * at once what blocks.h says about one. Within a sub-block, which four elements share a
 * dword does not matter to an integer sum, but all formats keep the elements' order, so that the
 * activations need no permutation. Memory is the caller's; any thread. */
#include "tile.h"
#include "vector.h"

INLINE __m512i and_bits(__m512i v, int bits) { return _mm512_and_si512(v, _mm512_set1_epi32(bits)); }

/* a | (b & bits) */
INLINE __m512i or_bits(__m512i a, __m512i b, int bits)
{
    return _mm512_ternarylogic_epi32(a, b, _mm512_set1_epi32(bits), 0xf8);
}

/* Every byte's low and high four bits. */
INLINE __m512i low_nibbles(__m512i v) { return and_bits(v, 0x0f0f0f0f); }
INLINE __m512i high_nibbles(__m512i v) { return and_bits(_mm512_srli_epi32(v, 4), 0x0f0f0f0f); }

/* The half float in each dword's low or high half. */
INLINE __m512 low_half(__m512i v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)); }
INLINE __m512 high_half(__m512i v) { return low_half(_mm512_srli_epi32(v, 16)); }

INLINE __m512 negate(__m512 v) { return _mm512_xor_ps(v, _mm512_set1_ps(-0.0f)); }

/* Byte i of each dword, times d. */
INLINE __m512 times_byte(__m512 d, __m512i v, int i)
{
    return _mm512_mul_ps(d, _mm512_cvtepi32_ps(and_bits(_mm512_srli_epi32(v, (unsigned)(8 * i)), 0xff)));
}

INLINE __m512 times_signed_byte(__m512 d, __m512i v, int i)
{
    return _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(v, (unsigned)(24 - 8 * i)), 24)));
}

/* Dword j of a block that begins at columns[0], or half a dword later. */
INLINE __m512i dword(const __m512i *columns, int j, bool half)
{
    return half ? _mm512_shrdi_epi32(columns[j], columns[j + 1], 16) : columns[j];
}

/* Blocks whose size is an odd number of 2-byte words: every other one begins half a dword late. */
#define UNPACK_PAIRS(unpack_block, block_bytes)                             \
    for (int b = 0; b < n_blocks; b++) {                                  \
        const __m512i *c = columns + b * block_bytes / 4;                    \
        if (b & 1)                                                        \
            unpack_block(out, c, b, true);                                \
        else                                                              \
            unpack_block(out, c, b, false);                               \
    }

/* ---- blocks of 32 ---- */

enum { Q4_0_BYTES = 18, Q4_1_BYTES = 20, Q5_0_BYTES = 22, Q5_1_BYTES = 24, Q8_0_BYTES = 34 };

/* Four dwords of nibbles: low ones first. */
INLINE void unpack_nibbles(__m512i w[8], const __m512i nibbles[4])
{
    for (int i = 0; i < 4; i++) {
        w[i] = low_nibbles(nibbles[i]);
        w[i + 4] = high_nibbles(nibbles[i]);
    }
}

/* Bits 4i..4i+3 of the word `high` become bit 4 of the bytes of w[i]. */
INLINE void add_fifth_bits(__m512i w[8], __m512i high)
{
    /* For each byte of a qword (two rows), which eight bits of it to take: those four below its own. */
    __m512i from = _mm512_set1_epi64((long long)0x1f1e1d1cfffefdfcULL);
    for (int i = 0; i < 8; i++) {
        w[i] = or_bits(w[i], _mm512_multishift_epi64_epi8(from, high), 0x10101010);
        from = _mm512_add_epi8(from, _mm512_set1_epi8(4));
    }
}

INLINE void q4_0_block(struct tile *out, const __m512i *c, int b, const bool half)
{
    out->d[b] = half ? high_half(c[0]) : low_half(c[0]);
    __m512i nibbles[4];
    for (int i = 0; i < 4; i++) nibbles[i] = half ? c[1 + i] : dword(c, i, true);
    unpack_nibbles(out->w + 8 * b, nibbles);
}

static void unpack_q4_0(struct tile *out, const __m512i *columns, int n_blocks)
{
    UNPACK_PAIRS(q4_0_block, Q4_0_BYTES)
}

static void unpack_q4_1(struct tile *out, const __m512i *columns, int n_blocks)
{
    for (int b = 0; b < n_blocks; b++) {
        const __m512i *c = columns + b * Q4_1_BYTES / 4;
        out->d[b] = low_half(c[0]);
        out->m[b] = negate(high_half(c[0]));
        unpack_nibbles(out->w + 8 * b, c + 1);
    }
}

INLINE void q5_0_block(struct tile *out, const __m512i *c, int b, const bool half)
{
    out->d[b] = half ? high_half(c[0]) : low_half(c[0]);
    __m512i after_d[5];
    for (int i = 0; i < 5; i++) after_d[i] = half ? c[1 + i] : dword(c, i, true);
    unpack_nibbles(out->w + 8 * b, after_d + 1);
    add_fifth_bits(out->w + 8 * b, after_d[0]);
}

static void unpack_q5_0(struct tile *out, const __m512i *columns, int n_blocks)
{
    UNPACK_PAIRS(q5_0_block, Q5_0_BYTES)
}

static void unpack_q5_1(struct tile *out, const __m512i *columns, int n_blocks)
{
    for (int b = 0; b < n_blocks; b++) {
        const __m512i *c = columns + b * Q5_1_BYTES / 4;
        out->d[b] = low_half(c[0]);
        out->m[b] = negate(high_half(c[0]));
        unpack_nibbles(out->w + 8 * b, c + 2);
        add_fifth_bits(out->w + 8 * b, c[1]);
    }
}

/* The signed bytes become unsigned by adding 128. */
INLINE void q8_0_block(struct tile *out, const __m512i *c, int b, const bool half)
{
    out->d[b] = half ? high_half(c[0]) : low_half(c[0]);
    const __m512i flip = _mm512_set1_epi8(-128);
    for (int i = 0; i < 8; i++)
        out->w[8 * b + i] = _mm512_xor_si512(half ? c[1 + i] : dword(c, i, true), flip);
}

static void unpack_q8_0(struct tile *out, const __m512i *columns, int n_blocks)
{
    UNPACK_PAIRS(q8_0_block, Q8_0_BYTES)
}

/* ---- super-blocks of 256 ---- */

enum { Q2_K_BYTES = 84, Q3_K_BYTES = 110, Q4_K_BYTES = 144, Q5_K_BYTES = 176, Q6_K_BYTES = 210 };

/* Bits 2s, 2s+1 of every byte. */
INLINE __m512i two_bits(__m512i v, int s) { return and_bits(_mm512_srli_epi32(v, (unsigned)(2 * s)), 0x03030303); }

static void unpack_q2_K(struct tile *out, const __m512i *columns, int n_blocks)
{
    for (int b = 0; b < n_blocks; b++) {
        const __m512i *c = columns + b * Q2_K_BYTES / 4, *pairs = c + 4;
        __m512i *w = out->w + 64 * b;
        for (int h = 0; h < 2; h++)
            for (int s = 0; s < 4; s++)
                for (int i = 0; i < 8; i++) w[32 * h + 8 * s + i] = two_bits(pairs[8 * h + i], s);
        __m512 d = low_half(c[20]), dmin = high_half(c[20]);
        for (int j = 0; j < 16; j++) {
            out->d[16 * b + j] = times_byte(d, low_nibbles(c[j / 4]), j % 4);
            out->m[16 * b + j] = times_byte(dmin, high_nibbles(c[j / 4]), j % 4);
        }
    }
}

INLINE void q3_K_block(struct tile *out, const __m512i *c, int b, const bool half)
{
    __m512i *w = out->w + 64 * b;
    for (int h = 0; h < 2; h++)
        for (int s = 0; s < 4; s++)
            for (int i = 0; i < 8; i++) {
                int bit = 4 * h + s; /* of the byte of `high`; wanted as bit 2 */
                __m512i high = dword(c, i, half);
                high = bit < 2 ? _mm512_slli_epi32(high, (unsigned)(2 - bit)) : _mm512_srli_epi32(high, (unsigned)(bit - 2));
                w[32 * h + 8 * s + i] = or_bits(two_bits(dword(c, 8 + 8 * h + i, half), s), high, 0x04040404);
            }
    __m512i x = dword(c, 24, half), y = dword(c, 25, half), z = dword(c, 26, half);
    __m512i scales[4] = {
        or_bits(low_nibbles(x), _mm512_slli_epi32(z, 4), 0x30303030),
        or_bits(low_nibbles(y), _mm512_slli_epi32(z, 2), 0x30303030),
        or_bits(high_nibbles(x), z, 0x30303030),
        or_bits(high_nibbles(y), _mm512_srli_epi32(z, 2), 0x30303030),
    };
    __m512 d = half ? high_half(c[27]) : low_half(c[27]);
    for (int j = 0; j < 16; j++) {
        __m512i less_32 = _mm512_sub_epi8(scales[j / 4], _mm512_set1_epi8(32));
        out->d[16 * b + j] = times_signed_byte(d, less_32, j % 4);
    }
}

static void unpack_q3_K(struct tile *out, const __m512i *columns, int n_blocks)
{
    UNPACK_PAIRS(q3_K_block, Q3_K_BYTES)
}

/* Scales and minima of Q4_K and Q5_K; c: the block's first four dwords. */
INLINE void unpack_scales_k(__m512 d_out[8], __m512 m_out[8], const __m512i *c)
{
    __m512 d = low_half(c[0]), dmin = high_half(c[0]);
    __m512i scales[2] = {
        and_bits(c[1], 0x3f3f3f3f),
        or_bits(low_nibbles(c[3]), _mm512_srli_epi32(c[1], 2), 0x30303030),
    };
    __m512i mins[2] = {
        and_bits(c[2], 0x3f3f3f3f),
        or_bits(high_nibbles(c[3]), _mm512_srli_epi32(c[2], 2), 0x30303030),
    };
    for (int j = 0; j < 8; j++) {
        d_out[j] = times_byte(d, scales[j / 4], j % 4);
        m_out[j] = times_byte(dmin, mins[j / 4], j % 4);
    }
}

/* 256 nibbles, in groups of 32 bytes for 64 elements. */
INLINE void unpack_nibbles_k(__m512i w[64], const __m512i nibbles[32])
{
    for (int g = 0; g < 4; g++)
        for (int i = 0; i < 8; i++) {
            w[16 * g + i] = low_nibbles(nibbles[8 * g + i]);
            w[16 * g + 8 + i] = high_nibbles(nibbles[8 * g + i]);
        }
}

static void unpack_q4_K(struct tile *out, const __m512i *columns, int n_blocks)
{
    for (int b = 0; b < n_blocks; b++) {
        const __m512i *c = columns + b * Q4_K_BYTES / 4;
        unpack_scales_k(out->d + 8 * b, out->m + 8 * b, c);
        unpack_nibbles_k(out->w + 64 * b, c + 4);
    }
}

static void unpack_q5_K(struct tile *out, const __m512i *columns, int n_blocks)
{
    for (int b = 0; b < n_blocks; b++) {
        const __m512i *c = columns + b * Q5_K_BYTES / 4, *high = c + 4;
        __m512i *w = out->w + 64 * b;
        unpack_scales_k(out->d + 8 * b, out->m + 8 * b, c);
        unpack_nibbles_k(w, c + 12);
        for (int i = 0; i < 8; i++)
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) { /* bit j of `high`; wanted as bit 4 */
                __m512i bit = j < 4 ? _mm512_slli_epi32(high[i], (unsigned)(4 - j))
                                    : _mm512_srli_epi32(high[i], (unsigned)(j - 4));
                w[8 * j + i] = or_bits(w[8 * j + i], bit, 0x10101010);
            }
    }
}

INLINE void q6_K_block(struct tile *out, const __m512i *c, int b, const bool half)
{
    __m512i *w = out->w + 64 * b;
    for (int h = 0; h < 2; h++, w += 32)
        for (int i = 0; i < 8; i++) {
            __m512i even = dword(c, 16 * h + i, half), odd = dword(c, 16 * h + 8 + i, half);
            __m512i pairs = dword(c, 32 + 8 * h + i, half);
            w[i] = or_bits(low_nibbles(even), _mm512_slli_epi32(pairs, 4), 0x30303030);
            w[8 + i] = or_bits(low_nibbles(odd), _mm512_slli_epi32(pairs, 2), 0x30303030);
            w[16 + i] = or_bits(high_nibbles(even), pairs, 0x30303030);
            w[24 + i] = or_bits(high_nibbles(odd), _mm512_srli_epi32(pairs, 2), 0x30303030);
        }
    __m512 d = half ? high_half(c[52]) : low_half(c[52]);
    for (int j = 0; j < 16; j++) out->d[16 * b + j] = times_signed_byte(d, dword(c, 48 + j / 4, half), j % 4);
}

static void unpack_q6_K(struct tile *out, const __m512i *columns, int n_blocks)
{
    UNPACK_PAIRS(q6_K_block, Q6_K_BYTES)
}

const struct tile_format avx512_formats[TYPE_COUNT] = {
    [TYPE_Q4_0] = {32, Q4_0_BYTES, 32, 8, false, unpack_q4_0},
    [TYPE_Q4_1] = {32, Q4_1_BYTES, 32, 0, true, unpack_q4_1},
    [TYPE_Q5_0] = {32, Q5_0_BYTES, 32, 16, false, unpack_q5_0},
    [TYPE_Q5_1] = {32, Q5_1_BYTES, 32, 0, true, unpack_q5_1},
    [TYPE_Q8_0] = {32, Q8_0_BYTES, 32, 128, false, unpack_q8_0},
    [TYPE_Q2_K] = {256, Q2_K_BYTES, 16, 0, true, unpack_q2_K},
    [TYPE_Q3_K] = {256, Q3_K_BYTES, 16, 4, false, unpack_q3_K},
    [TYPE_Q4_K] = {256, Q4_K_BYTES, 32, 0, true, unpack_q4_K},
    [TYPE_Q5_K] = {256, Q5_K_BYTES, 32, 0, true, unpack_q5_K},
    [TYPE_Q6_K] = {256, Q6_K_BYTES, 16, 32, false, unpack_q6_K},
};
