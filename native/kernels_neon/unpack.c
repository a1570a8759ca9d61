/* Blocks of each quantized format to signed bytes, scales and minimums: what core/unpack.c defines, sixteen
 * elements at a time. Bit fields are described in core/blocks.h. The caller's memory; any thread. */
#include "blocks.h"
#include "neon.h"
#include "quant.h"
#include "simd.h"

INLINE float f16_at(const uint8_t *p)
{
    return vgetq_lane_f32(widen_f16(vdup_n_u16(load_u16(p))), 0);
}

/* ---- blocks of 32 ---- */

/* Elements 0..15 are the low nibbles, 16..31 the high ones. */
INLINE uint8x16x2_t nibbles(const uint8_t *p)
{
    uint8x16_t v = vld1q_u8(p);
    return (uint8x16x2_t){{vandq_u8(v, vdupq_n_u8(15)), vshrq_n_u8(v, 4)}};
}

/* 0 or 16 for each of sixteen bits, least first. */
INLINE uint8x16_t fifth_bits(const uint8_t *p)
{
    static const uint8_t bit[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8x16_t v = vcombine_u8(vdup_n_u8(p[0]), vdup_n_u8(p[1]));
    return vandq_u8(vtstq_u8(v, vld1q_u8(bit)), vdupq_n_u8(16));
}

INLINE void store(int8_t *q, uint8x16_t v, int zero)
{
    vst1q_s8(q, vreinterpretq_s8_u8(vsubq_u8(v, vdupq_n_u8((uint8_t)zero))));
}

static void unpack_q4_0(const struct neon_row *to, const void *block)
{
    const struct block_q4_0 *b = block;
    uint8x16x2_t v = nibbles(b->nibbles);
    store(to->q, v.val[0], 8);
    store(to->q + 16, v.val[1], 8);
    to->d[0][0] = f16_at(b->d);
}

static void unpack_q4_1(const struct neon_row *to, const void *block)
{
    const struct block_q4_1 *b = block;
    uint8x16x2_t v = nibbles(b->nibbles);
    store(to->q, v.val[0], 0);
    store(to->q + 16, v.val[1], 0);
    to->d[0][0] = f16_at(b->d);
    to->m[0][0] = -f16_at(b->m);
}

static void unpack_q5_0(const struct neon_row *to, const void *block)
{
    const struct block_q5_0 *b = block;
    uint8x16x2_t v = nibbles(b->nibbles);
    store(to->q, vorrq_u8(v.val[0], fifth_bits(b->high)), 16);
    store(to->q + 16, vorrq_u8(v.val[1], fifth_bits(b->high + 2)), 16);
    to->d[0][0] = f16_at(b->d);
}

static void unpack_q5_1(const struct neon_row *to, const void *block)
{
    const struct block_q5_1 *b = block;
    uint8x16x2_t v = nibbles(b->nibbles);
    store(to->q, vorrq_u8(v.val[0], fifth_bits(b->high)), 0);
    store(to->q + 16, vorrq_u8(v.val[1], fifth_bits(b->high + 2)), 0);
    to->d[0][0] = f16_at(b->d);
    to->m[0][0] = -f16_at(b->m);
}

static void unpack_q8_0(const struct neon_row *to, const void *block)
{
    const struct block_q8_0 *b = block;
    memcpy(to->q, b->q, 32);
    to->d[0][0] = f16_at(b->d);
}

/* ---- super-blocks of 256 ---- */

/* Sixteen two-bit fields of v, the shift'th pair of bits. */
INLINE uint8x16_t pair(uint8x16_t v, int shift)
{
    return vandq_u8(vshlq_u8(v, vdupq_n_s8((int8_t)-shift)), vdupq_n_u8(3));
}

static void unpack_q2_K(const struct neon_row *to, const void *block)
{
    const struct block_q2_K *b = block;
    float scale = f16_at(b->d), min = f16_at(b->dmin);
    for (int j = 0; j < 16; j++) {
        to->factor[j][0] = b->scales[j] & 15;
        to->m[j][0] = min * (float)(b->scales[j] >> 4);
    }
    for (int i = 0; i < 8; i++) to->d[i][0] = scale;
    for (int c = 0; c < 64; c += 16) { /* sixteen bytes hold elements of four quarters */
        uint8x16_t v = vld1q_u8(b->pairs + c);
        int8_t *out = to->q + c / 32 * 128 + c % 32;
        for (int s = 0; s < 4; s++) store(out + 32 * s, pair(v, 2 * s), 0);
    }
}

static void unpack_q3_K(const struct neon_row *to, const void *block)
{
    const struct block_q3_K *b = block;
    float scale = f16_at(b->d);
    int8_t scales[16];
    q3_K_scales(scales, b->scales);
    for (int j = 0; j < 16; j++) to->factor[j][0] = scales[j];
    for (int i = 0; i < 8; i++) to->d[i][0] = scale;
    for (int c = 0; c < 64; c += 16) {
        uint8x16_t v = vld1q_u8(b->pairs + c), high = vld1q_u8(b->high + c % 32);
        int8_t *out = to->q + c / 32 * 128 + c % 32;
        for (int s = 0; s < 4; s++) {
            uint8x16_t third = vtstq_u8(high, vdupq_n_u8((uint8_t)(1 << (c / 32 * 4 + s))));
            store(out + 32 * s, vorrq_u8(pair(v, 2 * s), vandq_u8(third, vdupq_n_u8(4))), 4);
        }
    }
}

/* Scales and minimums of Q4_K and Q5_K, times the block's floats. */
INLINE void unpack_scales_k(const struct neon_row *to, const uint8_t *scale, const uint8_t *min, const uint8_t scales[12])
{
    float ds = f16_at(scale), ms = f16_at(min);
    uint8_t six[16];
    q4_K_scales(six, scales);
    for (int j = 0; j < 8; j++) {
        to->d[j][0] = ds * (float)six[j];
        to->m[j][0] = ms * (float)six[8 + j];
    }
}

static void unpack_q4_K(const struct neon_row *to, const void *block)
{
    const struct block_q4_K *b = block;
    unpack_scales_k(to, b->d, b->dmin, b->scales);
    for (int c = 0; c < 128; c += 16) {
        uint8x16x2_t v = nibbles(b->nibbles + c);
        int8_t *out = to->q + c / 32 * 64 + c % 32;
        store(out, v.val[0], 0);
        store(out + 32, v.val[1], 0);
    }
}

static void unpack_q5_K(const struct neon_row *to, const void *block)
{
    const struct block_q5_K *b = block;
    unpack_scales_k(to, b->d, b->dmin, b->scales);
    for (int c = 0; c < 128; c += 16) {
        uint8x16x2_t v = nibbles(b->nibbles + c);
        uint8x16_t high = vld1q_u8(b->high + c % 32), sixteen = vdupq_n_u8(16);
        int8_t *out = to->q + c / 32 * 64 + c % 32;
        for (int k = 0; k < 2; k++) {
            uint8x16_t fifth = vtstq_u8(high, vdupq_n_u8((uint8_t)(1 << (c / 32 * 2 + k))));
            store(out + 32 * k, vorrq_u8(v.val[k], vandq_u8(fifth, sixteen)), 0);
        }
    }
}

static void unpack_q6_K(const struct neon_row *to, const void *block)
{
    const struct block_q6_K *b = block;
    float scale = f16_at(b->d);
    for (int j = 0; j < 16; j++) to->factor[j][0] = b->scales[j];
    for (int i = 0; i < 8; i++) to->d[i][0] = scale;
    for (int c = 0; c < 128; c += 16) { /* of each half of 64 bytes, quarters 0 and 1 are low nibbles */
        uint8x16x2_t v = nibbles(b->nibbles + c);
        int half = c / 64, quarter = c / 32 % 2;
        uint8x16_t pairs = vld1q_u8(b->pairs + 32 * half + c % 32);
        int8_t *out = to->q + 128 * half + 32 * quarter + c % 32;
        for (int k = 0; k < 2; k++)
            store(out + 64 * k, vorrq_u8(v.val[k], vshlq_n_u8(pair(pairs, 2 * (quarter + 2 * k)), 4)), 32);
    }
}

neon_unpack_fn *const neon_unpack[TYPE_COUNT] = {
    [TYPE_Q4_0] = unpack_q4_0, [TYPE_Q4_1] = unpack_q4_1, [TYPE_Q5_0] = unpack_q5_0, [TYPE_Q5_1] = unpack_q5_1,
    [TYPE_Q8_0] = unpack_q8_0, [TYPE_Q2_K] = unpack_q2_K, [TYPE_Q3_K] = unpack_q3_K, [TYPE_Q4_K] = unpack_q4_K,
    [TYPE_Q5_K] = unpack_q5_K, [TYPE_Q6_K] = unpack_q6_K,
};
