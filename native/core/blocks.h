/* The blocks of the quantized GGUF types, byte by byte.
 *
 * A row of n weights is n/32 or n/256 consecutive blocks of its type; nothing
 * is aligned, so every field is bytes and 16-bit floats are read with load_u16.
 * Each comment gives the weight that element i of the block stands for, with
 * d, m, dmin the block's floats and q the element's integer, built from the bit fields
 * as told. Files are little-endian, and so are all machines that this is built for.
 * Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md */
#ifndef INFER_BLOCKS_H
#define INFER_BLOCKS_H

#include <stdint.h>
#include <string.h>

static inline uint16_t load_u16(const void *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint32_t load_u32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* ---- blocks of 32: one scale, sometimes one minimum ---- */

/* w = d * (q - 8). q: low nibbles of nibbles[] are elements 0..15, high ones 16..31. */
struct block_q4_0 {
    uint8_t d[2];
    uint8_t nibbles[16];
};

/* w = d * q + m. q as in Q4_0. */
struct block_q4_1 {
    uint8_t d[2];
    uint8_t m[2];
    uint8_t nibbles[16];
};

/* w = d * (q - 16). q: 4 bits as in Q4_0; bit i of the word `high` is element i's fifth. */
struct block_q5_0 {
    uint8_t d[2];
    uint8_t high[4];
    uint8_t nibbles[16];
};

/* w = d * q + m. q as in Q5_0. */
struct block_q5_1 {
    uint8_t d[2];
    uint8_t m[2];
    uint8_t high[4];
    uint8_t nibbles[16];
};

/* w = d * q. */
struct block_q8_0 {
    uint8_t d[2];
    int8_t q[32];
};

/* ---- super-blocks of 256: one or two floats, and an integer scale for each 16 or 32 elements ----
 *
 * "Half" h is elements 128h .. 128h+127; "quarter" s of a half is its elements 32s .. 32s+31. */

/* 16 sub-blocks of 16. w = d * (scales[j] & 15) * q - dmin * (scales[j] >> 4).
 * q: bits 2s, 2s+1 of pairs[32h + i] for element i of quarter s of half h. */
struct block_q2_K {
    uint8_t scales[16];
    uint8_t pairs[64];
    uint8_t d[2];
    uint8_t dmin[2];
};

/* 16 sub-blocks of 16. w = d * (scale_j - 32) * (q - 4); scale_j from q3_K_scales.
 * q: low two bits as in Q2_K; the third is bit 4h + s of high[i]. */
struct block_q3_K {
    uint8_t high[32];
    uint8_t pairs[64];
    uint8_t scales[12];
    uint8_t d[2];
};

/* 8 sub-blocks of 32. w = d * scale_j * q - dmin * min_j; both from q4_K_scales.
 * q: sub-blocks 2g and 2g+1 are the low and the high nibbles of nibbles[32g .. 32g+31]. */
struct block_q4_K {
    uint8_t d[2];
    uint8_t dmin[2];
    uint8_t scales[12];
    uint8_t nibbles[128];
};

/* As Q4_K, with a fifth bit: bit j of high[i] for element i of sub-block j. */
struct block_q5_K {
    uint8_t d[2];
    uint8_t dmin[2];
    uint8_t scales[12];
    uint8_t high[32];
    uint8_t nibbles[128];
};

/* 16 sub-blocks of 16. w = d * scales[j] * (q - 32).
 * q: for element i of half h: quarters 0 and 1 have the low nibbles of nibbles[64h + i] and
 * nibbles[64h + 32 + i], quarters 2 and 3 their high nibbles; the upper two bits of
 * quarter s are bits 2s, 2s+1 of pairs[32h + i]. */
struct block_q6_K {
    uint8_t nibbles[128];
    uint8_t pairs[64];
    int8_t scales[16];
    uint8_t d[2];
};

_Static_assert(sizeof(struct block_q4_0) == 18, "Q4_0");
_Static_assert(sizeof(struct block_q4_1) == 20, "Q4_1");
_Static_assert(sizeof(struct block_q5_0) == 22, "Q5_0");
_Static_assert(sizeof(struct block_q5_1) == 24, "Q5_1");
_Static_assert(sizeof(struct block_q8_0) == 34, "Q8_0");
_Static_assert(sizeof(struct block_q2_K) == 84, "Q2_K");
_Static_assert(sizeof(struct block_q3_K) == 110, "Q3_K");
_Static_assert(sizeof(struct block_q4_K) == 144, "Q4_K");
_Static_assert(sizeof(struct block_q5_K) == 176, "Q5_K");
_Static_assert(sizeof(struct block_q6_K) == 210, "Q6_K");

/* Q4_K and Q5_K: eight 6-bit scales and eight 6-bit minimums in 12 bytes. The first four of
 * each are the low six bits of bytes 0..3 and 4..7; of the last four, the low nibbles (scales) and
 * high nibbles (minimums) are in bytes 8..11 and their upper two bits are those left over
 * in bytes 0..3 and 4..7. out: scales in 0..7, minimums in 8..15. */
static inline void q4_K_scales(uint8_t out[16], const uint8_t in[12])
{
    uint32_t a = load_u32(in), b = load_u32(in + 4), c = load_u32(in + 8);
    uint32_t word[4] = {
        a & 0x3f3f3f3f,
        (c & 0x0f0f0f0f) | ((a >> 2) & 0x30303030),
        b & 0x3f3f3f3f,
        ((c >> 4) & 0x0f0f0f0f) | ((b >> 2) & 0x30303030),
    };
    memcpy(out, word, 16);
}

/* Q3_K: sixteen 6-bit scales in 12 bytes. Low nibbles: scales 0..7 and 8..15 have the low and
 * the high nibbles of bytes 0..7; the upper two bits of scale 4k + i are bits 2k, 2k+1 of byte 8+i.
 * out: less 32, so -32..31. */
static inline void q3_K_scales(int8_t out[16], const uint8_t in[12])
{
    uint32_t a = load_u32(in), b = load_u32(in + 4), c = load_u32(in + 8);
    uint32_t word[4] = {
        (a & 0x0f0f0f0f) | ((c << 4) & 0x30303030),
        (b & 0x0f0f0f0f) | ((c << 2) & 0x30303030),
        ((a >> 4) & 0x0f0f0f0f) | (c & 0x30303030),
        ((b >> 4) & 0x0f0f0f0f) | ((c >> 2) & 0x30303030),
    };
    memcpy(out, word, 16);
    for (int i = 0; i < 16; i++) out[i] = (int8_t)(out[i] - 32);
}

#endif
