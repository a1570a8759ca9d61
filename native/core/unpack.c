/* From the bits of each quantized format to integers, scales and minimums.
 *
 * Written to be read beside blocks.h: these functions define the formats for
 * the scalar kernels and for the tests of the others. No memory of its own; any thread. */
#include "unpack.h"

#include "blocks.h"

static float f16_at(const uint8_t *p) { return f16_to_f32(load_u16(p)); }

/* The 32 nibbles of 16 bytes: low ones first. */
static void unpack_nibbles(int8_t q[32], const uint8_t nibbles[16])
{
    for (int i = 0; i < 16; i++) {
        q[i] = (int8_t)(nibbles[i] & 15);
        q[i + 16] = (int8_t)(nibbles[i] >> 4);
    }
}

static void unpack_q4_0(struct unpacked *u, const void *block)
{
    const struct block_q4_0 *b = block;
    u->d[0] = f16_at(b->d);
    unpack_nibbles(u->q, b->nibbles);
    for (int i = 0; i < 32; i++) u->q[i] = (int8_t)(u->q[i] - 8);
}

static void unpack_q4_1(struct unpacked *u, const void *block)
{
    const struct block_q4_1 *b = block;
    u->d[0] = f16_at(b->d);
    u->m[0] = -f16_at(b->m);
    unpack_nibbles(u->q, b->nibbles);
}

static void unpack_q5_0(struct unpacked *u, const void *block)
{
    const struct block_q5_0 *b = block;
    uint32_t high = load_u32(b->high);
    u->d[0] = f16_at(b->d);
    unpack_nibbles(u->q, b->nibbles);
    for (int i = 0; i < 32; i++) u->q[i] = (int8_t)((u->q[i] | (int)(high >> i & 1) << 4) - 16);
}

static void unpack_q5_1(struct unpacked *u, const void *block)
{
    const struct block_q5_1 *b = block;
    uint32_t high = load_u32(b->high);
    u->d[0] = f16_at(b->d);
    u->m[0] = -f16_at(b->m);
    unpack_nibbles(u->q, b->nibbles);
    for (int i = 0; i < 32; i++) u->q[i] = (int8_t)(u->q[i] | (int)(high >> i & 1) << 4);
}

static void unpack_q8_0(struct unpacked *u, const void *block)
{
    const struct block_q8_0 *b = block;
    u->d[0] = f16_at(b->d);
    memcpy(u->q, b->q, 32);
}

/* Q2_K and Q3_K: 256 two-bit fields. */
static void unpack_pairs(int8_t q[256], const uint8_t pairs[64])
{
    for (int i = 0; i < 256; i++) {
        int half = i / 128, quarter = i / 32 % 4;
        q[i] = (int8_t)(pairs[32 * half + i % 32] >> (2 * quarter) & 3);
    }
}

static void unpack_q2_K(struct unpacked *u, const void *block)
{
    const struct block_q2_K *b = block;
    float d = f16_at(b->d), dmin = f16_at(b->dmin);
    for (int j = 0; j < 16; j++) {
        u->d[j / 2] = d;
        u->factor[j] = (int8_t)(b->scales[j] & 15);
        u->m[j] = dmin * (float)(b->scales[j] >> 4);
    }
    unpack_pairs(u->q, b->pairs);
}

static void unpack_q3_K(struct unpacked *u, const void *block)
{
    const struct block_q3_K *b = block;
    float d = f16_at(b->d);
    q3_K_scales(u->factor, b->scales);
    for (int i = 0; i < 8; i++) u->d[i] = d;
    unpack_pairs(u->q, b->pairs);
    for (int i = 0; i < 256; i++) {
        int third = b->high[i % 32] >> (i / 32) & 1;
        u->q[i] = (int8_t)((u->q[i] | third << 2) - 4);
    }
}

/* Scales and minimums of Q4_K and Q5_K, times the block's floats. */
static void unpack_scales_k(struct unpacked *u, const uint8_t *d, const uint8_t *dmin, const uint8_t scales[12])
{
    uint8_t six[16];
    q4_K_scales(six, scales);
    for (int j = 0; j < 8; j++) {
        u->d[j] = f16_at(d) * (float)six[j];
        u->m[j] = f16_at(dmin) * (float)six[8 + j];
    }
}

/* Q4_K and Q5_K: 256 nibbles, in groups of 32 bytes for 64 elements. */
static void unpack_nibbles_k(int8_t q[256], const uint8_t nibbles[128])
{
    for (int i = 0; i < 256; i++) {
        int byte = nibbles[32 * (i / 64) + i % 32];
        q[i] = (int8_t)(i / 32 % 2 ? byte >> 4 : byte & 15);
    }
}

static void unpack_q4_K(struct unpacked *u, const void *block)
{
    const struct block_q4_K *b = block;
    unpack_scales_k(u, b->d, b->dmin, b->scales);
    unpack_nibbles_k(u->q, b->nibbles);
}

static void unpack_q5_K(struct unpacked *u, const void *block)
{
    const struct block_q5_K *b = block;
    unpack_scales_k(u, b->d, b->dmin, b->scales);
    unpack_nibbles_k(u->q, b->nibbles);
    for (int i = 0; i < 256; i++) u->q[i] = (int8_t)(u->q[i] | (b->high[i % 32] >> (i / 32) & 1) << 4);
}

static void unpack_q6_K(struct unpacked *u, const void *block)
{
    const struct block_q6_K *b = block;
    float d = f16_at(b->d);
    for (int i = 0; i < 8; i++) u->d[i] = d;
    memcpy(u->factor, b->scales, sizeof u->factor);
    for (int i = 0; i < 256; i++) {
        int half = i / 128, quarter = i / 32 % 4;
        int byte = b->nibbles[64 * half + 32 * (quarter & 1) + i % 32];
        int low = quarter < 2 ? byte & 15 : byte >> 4;
        int high = b->pairs[32 * half + i % 32] >> (2 * quarter) & 3;
        u->q[i] = (int8_t)((low | high << 4) - 32);
    }
}

#define FORMAT(name, elements, sub_elements, min) \
    {.block = elements, .sub = sub_elements, .has_min = min, .block_bytes = sizeof(struct block_##name), \
     .unpack = unpack_##name}

static const struct quant_format formats[TYPE_COUNT] = {
    [TYPE_Q4_0] = FORMAT(q4_0, 32, 32, false), [TYPE_Q4_1] = FORMAT(q4_1, 32, 32, true),
    [TYPE_Q5_0] = FORMAT(q5_0, 32, 32, false), [TYPE_Q5_1] = FORMAT(q5_1, 32, 32, true),
    [TYPE_Q8_0] = FORMAT(q8_0, 32, 32, false),
    [TYPE_Q2_K] = FORMAT(q2_K, 256, 16, true), [TYPE_Q3_K] = FORMAT(q3_K, 256, 16, false),
    [TYPE_Q4_K] = FORMAT(q4_K, 256, 32, true), [TYPE_Q5_K] = FORMAT(q5_K, 256, 32, true),
    [TYPE_Q6_K] = FORMAT(q6_K, 256, 16, false),
};

const struct quant_format *quant_format(enum tensor_type t) { return formats[t].block ? &formats[t] : NULL; }
