/* Tensor types: the table of names and block sizes, half-precision
 * conversions, and the scalar dequantization of every supported type.
 *
 * Written for exactness: this is what kernels are compared with, and what
 * reads an embedding row. The float operations are those of the format's definition in
 * its order (one product, one sum, each rounded once), so the result is bit-equal to
 * gguf.quants.dequantize.
 *
 * Pure functions: no state, any thread; all memory is the caller's. */
#include "quant.h"

#include <string.h>

#include "blocks.h"

/* Elements of a block of the K types ("super-block"), and of the older ones. */
enum { QK_K = 256, QK = 32 };

/* ---- the table of types ---- */

static const struct tensor_type_info types[TYPE_COUNT] = {
    [TYPE_F32] = {"F32", 1, 4},
    [TYPE_F16] = {"F16", 1, 2},
    [TYPE_BF16] = {"BF16", 1, 2},
    [TYPE_Q4_0] = {"Q4_0", QK, sizeof(struct block_q4_0)},
    [TYPE_Q4_1] = {"Q4_1", QK, sizeof(struct block_q4_1)},
    [TYPE_Q5_0] = {"Q5_0", QK, sizeof(struct block_q5_0)},
    [TYPE_Q5_1] = {"Q5_1", QK, sizeof(struct block_q5_1)},
    [TYPE_Q8_0] = {"Q8_0", QK, sizeof(struct block_q8_0)},
    [TYPE_Q2_K] = {"Q2_K", QK_K, sizeof(struct block_q2_K)},
    [TYPE_Q3_K] = {"Q3_K", QK_K, sizeof(struct block_q3_K)},
    [TYPE_Q4_K] = {"Q4_K", QK_K, sizeof(struct block_q4_K)},
    [TYPE_Q5_K] = {"Q5_K", QK_K, sizeof(struct block_q5_K)},
    [TYPE_Q6_K] = {"Q6_K", QK_K, sizeof(struct block_q6_K)},
};

/* The numbers that GGUF files may hold besides, so that a refusal can name
 * them. 4, 5, 31 to 33 and 36 to 38 are types that the format once had. */
static const char *const other_names[] = {
    [4] = "Q4_2",         [5] = "Q4_3",         [9] = "Q8_1",         [15] = "Q8_K",    [16] = "IQ2_XXS",
    [17] = "IQ2_XS",      [18] = "IQ3_XXS",     [19] = "IQ1_S",       [20] = "IQ4_NL",  [21] = "IQ3_S",
    [22] = "IQ2_S",       [23] = "IQ4_XS",      [24] = "I8",          [25] = "I16",     [26] = "I32",
    [27] = "I64",         [28] = "F64",         [29] = "IQ1_M",       [31] = "Q4_0_4_4", [32] = "Q4_0_4_8",
    [33] = "Q4_0_8_8",    [34] = "TQ1_0",       [35] = "TQ2_0",       [36] = "IQ4_NL_4_4", [37] = "IQ4_NL_4_8",
    [38] = "IQ4_NL_8_8",  [39] = "MXFP4",       [40] = "NVFP4",       [41] = "Q1_0",
};

const struct tensor_type_info *tensor_type_info(uint32_t t)
{
    static const struct tensor_type_info none = {NULL, 0, 0};
    return t < TYPE_COUNT ? &types[t] : &none;
}

bool tensor_type_supported(uint32_t t)
{
    return tensor_type_info(t)->name != NULL;
}

const char *tensor_type_name(uint32_t t)
{
    if (tensor_type_supported(t)) return types[t].name;
    if (t < sizeof other_names / sizeof *other_names && other_names[t]) return other_names[t];
    return "unknown";
}

size_t tensor_row_bytes(enum tensor_type t, int64_t n)
{
    return (size_t)(n / types[t].block) * (size_t)types[t].block_bytes;
}

/* ---- half precision ---- */

static float float_of_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static uint32_t bits_of_float(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = h & 0x7c00u, mantissa = h & 0x03ffu;
    if (exponent == 0x7c00u) /* infinity, or a NaN, which becomes a quiet one as in hardware */
        return float_of_bits(sign | 0x7f800000u | mantissa << 13 | (mantissa ? 0x00400000u : 0));
    if (exponent == 0) { /* zero and subnormals: whole multiples of 2^-24 */
        float magnitude = (float)mantissa * 0x1p-24f;
        return float_of_bits(sign | bits_of_float(magnitude));
    }
    /* the exponent's bias goes from 15 to 127 */
    return float_of_bits(sign | ((exponent + ((127u - 15u) << 10)) | mantissa) << 13);
}

uint16_t f32_to_f16(float f)
{
    uint32_t bits = bits_of_float(f);
    uint32_t sign = bits >> 16 & 0x8000u, x = bits & 0x7fffffffu;
    if (x > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (x >> 13 & 0x03ffu));
    if (x >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and above round to infinity */
    if (x < 0x38800000u) {
        /* Below 2^-14 the result counts units of 2^-24, which is the last place
         * of floats in [0.5, 1): adding 0.5 lets the FPU round. */
        uint32_t rounded = bits_of_float(float_of_bits(x) + 0.5f);
        return (uint16_t)(sign | (rounded - 0x3f000000u));
    }
    x += 0x0fffu + (x >> 13 & 1u); /* to nearest, halves to even; a carry into the exponent is right */
    return (uint16_t)(sign | (x - ((127u - 15u) << 23)) >> 13);
}

float bf16_to_f32(uint16_t h)
{
    return float_of_bits((uint32_t)h << 16);
}

/* ---- dequantization: one function per type, n a multiple of its block ----
 *
 * The layouts are those of blocks.h, and so is the meaning of "half" and "quarter". */

static void dequantize_f32(const void *row, float *y, int64_t n)
{
    memcpy(y, row, (size_t)n * sizeof *y);
}

static void dequantize_f16(const void *row, float *y, int64_t n)
{
    const uint8_t *p = row;
    for (int64_t i = 0; i < n; i++) y[i] = f16_to_f32(load_u16(p + 2 * i));
}

static void dequantize_bf16(const void *row, float *y, int64_t n)
{
    const uint8_t *p = row;
    for (int64_t i = 0; i < n; i++) y[i] = bf16_to_f32(load_u16(p + 2 * i));
}

static float load_f16(const uint8_t field[2])
{
    return f16_to_f32(load_u16(field));
}

static void dequantize_q4_0(const void *row, float *y, int64_t n)
{
    for (const struct block_q4_0 *b = row; n > 0; n -= QK, y += QK, b++) {
        float d = load_f16(b->d);
        for (int i = 0; i < QK / 2; i++) {
            y[i] = d * (float)((b->nibbles[i] & 15) - 8);
            y[i + QK / 2] = d * (float)((b->nibbles[i] >> 4) - 8);
        }
    }
}

static void dequantize_q4_1(const void *row, float *y, int64_t n)
{
    for (const struct block_q4_1 *b = row; n > 0; n -= QK, y += QK, b++) {
        float d = load_f16(b->d), m = load_f16(b->m);
        for (int i = 0; i < QK / 2; i++) {
            y[i] = d * (float)(b->nibbles[i] & 15) + m;
            y[i + QK / 2] = d * (float)(b->nibbles[i] >> 4) + m;
        }
    }
}

/* The five bits of elements i and i + 16 of Q5_0 and Q5_1, i < 16. */
static void five_bits(const uint8_t nibbles[QK / 2], uint32_t high, int i, int *first, int *second)
{
    *first = (nibbles[i] & 15) | (int)(high >> i & 1) << 4;
    *second = nibbles[i] >> 4 | (int)(high >> (i + QK / 2) & 1) << 4;
}

static void dequantize_q5_0(const void *row, float *y, int64_t n)
{
    for (const struct block_q5_0 *b = row; n > 0; n -= QK, y += QK, b++) {
        float d = load_f16(b->d);
        uint32_t high = load_u32(b->high);
        for (int i = 0; i < QK / 2; i++) {
            int first, second;
            five_bits(b->nibbles, high, i, &first, &second);
            y[i] = d * (float)(first - 16);
            y[i + QK / 2] = d * (float)(second - 16);
        }
    }
}

static void dequantize_q5_1(const void *row, float *y, int64_t n)
{
    for (const struct block_q5_1 *b = row; n > 0; n -= QK, y += QK, b++) {
        float d = load_f16(b->d), m = load_f16(b->m);
        uint32_t high = load_u32(b->high);
        for (int i = 0; i < QK / 2; i++) {
            int first, second;
            five_bits(b->nibbles, high, i, &first, &second);
            y[i] = d * (float)first + m;
            y[i + QK / 2] = d * (float)second + m;
        }
    }
}

static void dequantize_q8_0(const void *row, float *y, int64_t n)
{
    for (const struct block_q8_0 *b = row; n > 0; n -= QK, y += QK, b++) {
        float d = load_f16(b->d);
        for (int i = 0; i < QK; i++) y[i] = d * (float)b->q[i];
    }
}

/* Sub-block j of 16 in a super-block: where its elements' bits lie. */
struct sixteen {
    int half, quarter; /* of the half */
    int first;         /* its first element's place in the quarter: 0 or 16 */
};

static struct sixteen sixteen(int j)
{
    return (struct sixteen){.half = j / 8, .quarter = j / 2 % 4, .first = j % 2 * 16};
}

static void dequantize_q2_k(const void *row, float *y, int64_t n)
{
    for (const struct block_q2_K *b = row; n > 0; n -= QK_K, y += QK_K, b++) {
        float d = load_f16(b->d), dmin = load_f16(b->dmin);
        for (int j = 0; j < 16; j++) {
            struct sixteen s = sixteen(j);
            float scale = d * (float)(b->scales[j] & 15), min = dmin * (float)(b->scales[j] >> 4);
            const uint8_t *pairs = b->pairs + 32 * s.half + s.first;
            for (int i = 0; i < 16; i++) y[16 * j + i] = scale * (float)(pairs[i] >> 2 * s.quarter & 3) - min;
        }
    }
}

static void dequantize_q3_k(const void *row, float *y, int64_t n)
{
    for (const struct block_q3_K *b = row; n > 0; n -= QK_K, y += QK_K, b++) {
        float d = load_f16(b->d);
        int8_t scales[16];
        q3_K_scales(scales, b->scales);
        for (int j = 0; j < 16; j++) {
            struct sixteen s = sixteen(j);
            float scale = d * (float)scales[j];
            const uint8_t *pairs = b->pairs + 32 * s.half + s.first, *high = b->high + s.first;
            for (int i = 0; i < 16; i++) {
                int q = (pairs[i] >> 2 * s.quarter & 3) | (high[i] >> (4 * s.half + s.quarter) & 1) << 2;
                y[16 * j + i] = scale * (float)(q - 4);
            }
        }
    }
}

static void dequantize_q4_k(const void *row, float *y, int64_t n)
{
    for (const struct block_q4_K *b = row; n > 0; n -= QK_K, y += QK_K, b++) {
        float d = load_f16(b->d), dmin = load_f16(b->dmin);
        uint8_t scales[16]; /* eight scales, eight minimums */
        q4_K_scales(scales, b->scales);
        for (int j = 0; j < 8; j++) {
            float scale = d * (float)scales[j], min = dmin * (float)scales[8 + j];
            const uint8_t *nibbles = b->nibbles + 32 * (j / 2);
            for (int i = 0; i < 32; i++) y[32 * j + i] = scale * (float)(nibbles[i] >> 4 * (j % 2) & 15) - min;
        }
    }
}

static void dequantize_q5_k(const void *row, float *y, int64_t n)
{
    for (const struct block_q5_K *b = row; n > 0; n -= QK_K, y += QK_K, b++) {
        float d = load_f16(b->d), dmin = load_f16(b->dmin);
        uint8_t scales[16];
        q4_K_scales(scales, b->scales);
        for (int j = 0; j < 8; j++) {
            float scale = d * (float)scales[j], min = dmin * (float)scales[8 + j];
            const uint8_t *nibbles = b->nibbles + 32 * (j / 2);
            for (int i = 0; i < 32; i++) {
                int q = (nibbles[i] >> 4 * (j % 2) & 15) | (b->high[i] >> j & 1) << 4;
                y[32 * j + i] = scale * (float)q - min;
            }
        }
    }
}

static void dequantize_q6_k(const void *row, float *y, int64_t n)
{
    for (const struct block_q6_K *b = row; n > 0; n -= QK_K, y += QK_K, b++) {
        float d = load_f16(b->d);
        for (int j = 0; j < 16; j++) {
            struct sixteen s = sixteen(j);
            float scale = d * (float)b->scales[j];
            const uint8_t *nibbles = b->nibbles + 64 * s.half + 32 * (s.quarter % 2) + s.first;
            const uint8_t *pairs = b->pairs + 32 * s.half + s.first;
            for (int i = 0; i < 16; i++) {
                int q = (nibbles[i] >> 4 * (s.quarter / 2) & 15) | (pairs[i] >> 2 * s.quarter & 3) << 4;
                y[16 * j + i] = scale * (float)(q - 32);
            }
        }
    }
}

void dequantize_row(enum tensor_type t, const void *row, float *y, int64_t n)
{
    switch (t) {
    case TYPE_F32: dequantize_f32(row, y, n); break;
    case TYPE_F16: dequantize_f16(row, y, n); break;
    case TYPE_BF16: dequantize_bf16(row, y, n); break;
    case TYPE_Q4_0: dequantize_q4_0(row, y, n); break;
    case TYPE_Q4_1: dequantize_q4_1(row, y, n); break;
    case TYPE_Q5_0: dequantize_q5_0(row, y, n); break;
    case TYPE_Q5_1: dequantize_q5_1(row, y, n); break;
    case TYPE_Q8_0: dequantize_q8_0(row, y, n); break;
    case TYPE_Q2_K: dequantize_q2_k(row, y, n); break;
    case TYPE_Q3_K: dequantize_q3_k(row, y, n); break;
    case TYPE_Q4_K: dequantize_q4_k(row, y, n); break;
    case TYPE_Q5_K: dequantize_q5_k(row, y, n); break;
    case TYPE_Q6_K: dequantize_q6_k(row, y, n); break;
    case TYPE_COUNT: break;
    }
}
