/* Tensor types: the table of names and block sizes, half-precision
 * conversions, and the scalar dequantization of every supported type.
 *
 * Written for exactness: this is what kernels are compared with, and what
 * reads an embedding row. Each dequantizer states its block's layout, and its
 * float operations are those of the format's definition in its order (one product,
 * one sum, each rounded once), so the result is bit-equal to
 * gguf.quants.dequantize. All multi-byte fields are little-endian, as is
 * every machine that this library is built for.
 *
 * Pure functions: no state, any thread; all memory is the caller's. */
#include "quant.h"

#include <string.h>

/* Elements of a block of the K types ("super-block"), and of the older ones. */
enum { QK_K = 256, QK = 32 };

/* ---- the table of types ---- */

static const struct tensor_type_info types[TYPE_COUNT] = {
    [TYPE_F32] = {"F32", 1, 4},
    [TYPE_F16] = {"F16", 1, 2},
    [TYPE_BF16] = {"BF16", 1, 2},
    [TYPE_Q4_0] = {"Q4_0", QK, 2 + QK / 2},
    [TYPE_Q4_1] = {"Q4_1", QK, 4 + QK / 2},
    [TYPE_Q5_0] = {"Q5_0", QK, 2 + 4 + QK / 2},
    [TYPE_Q5_1] = {"Q5_1", QK, 4 + 4 + QK / 2},
    [TYPE_Q8_0] = {"Q8_0", QK, 2 + QK},
    [TYPE_Q2_K] = {"Q2_K", QK_K, QK_K / 16 + QK_K / 4 + 4},
    [TYPE_Q3_K] = {"Q3_K", QK_K, QK_K / 8 + QK_K / 4 + 12 + 2},
    [TYPE_Q4_K] = {"Q4_K", QK_K, 4 + 12 + QK_K / 2},
    [TYPE_Q5_K] = {"Q5_K", QK_K, 4 + 12 + QK_K / 8 + QK_K / 2},
    [TYPE_Q6_K] = {"Q6_K", QK_K, QK_K / 2 + QK_K / 4 + QK_K / 16 + 2},
};

/* The numbers that GGUF files may hold besides, so that a refusal can name
 * them. 4, 5 and 31 to 38 are types that the format once had. */
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

/* ---- dequantization: one function per type, n a multiple of its block ---- */

static uint16_t load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t load_u32(const uint8_t *p)
{
    return (uint32_t)load_u16(p) | (uint32_t)load_u16(p + 2) << 16;
}

static float load_f16(const uint8_t *p)
{
    return f16_to_f32(load_u16(p));
}

static void dequantize_f32(const uint8_t *p, float *y, int64_t n)
{
    memcpy(y, p, (size_t)n * sizeof *y);
}

static void dequantize_f16(const uint8_t *p, float *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = load_f16(p + 2 * i);
}

static void dequantize_bf16(const uint8_t *p, float *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = bf16_to_f32(load_u16(p + 2 * i));
}

/* Block of 32: f16 d; 16 bytes, low nibbles elements 0-15, high nibbles 16-31. w = d * (q - 8) */
static void dequantize_q4_0(const uint8_t *p, float *y, int64_t n)
{
    for (; n > 0; n -= QK, y += QK, p += 2 + QK / 2) {
        float d = load_f16(p);
        for (int i = 0; i < QK / 2; i++) {
            y[i] = d * (float)((p[2 + i] & 15) - 8);
            y[i + QK / 2] = d * (float)((p[2 + i] >> 4) - 8);
        }
    }
}

/* Block of 32: f16 d, f16 m; nibbles as Q4_0. w = d * q + m */
static void dequantize_q4_1(const uint8_t *p, float *y, int64_t n)
{
    for (; n > 0; n -= QK, y += QK, p += 4 + QK / 2) {
        float d = load_f16(p), m = load_f16(p + 2);
        for (int i = 0; i < QK / 2; i++) {
            y[i] = d * (float)(p[4 + i] & 15) + m;
            y[i + QK / 2] = d * (float)(p[4 + i] >> 4) + m;
        }
    }
}

/* Block of 32: f16 d; u32 whose bit i is the fifth bit of element i; nibbles as Q4_0. w = d * (q - 16) */
static void dequantize_q5_0(const uint8_t *p, float *y, int64_t n)
{
    for (; n > 0; n -= QK, y += QK, p += 6 + QK / 2) {
        float d = load_f16(p);
        uint32_t high = load_u32(p + 2);
        for (int i = 0; i < QK / 2; i++) {
            int q0 = (p[6 + i] & 15) | (int)(high >> i & 1) << 4;
            int q1 = p[6 + i] >> 4 | (int)(high >> (i + QK / 2) & 1) << 4;
            y[i] = d * (float)(q0 - 16);
            y[i + QK / 2] = d * (float)(q1 - 16);
        }
    }
}

/* Block of 32: f16 d, f16 m; fifth bits and nibbles as Q5_0. w = d * q + m */
static void dequantize_q5_1(const uint8_t *p, float *y, int64_t n)
{
    for (; n > 0; n -= QK, y += QK, p += 8 + QK / 2) {
        float d = load_f16(p), m = load_f16(p + 2);
        uint32_t high = load_u32(p + 4);
        for (int i = 0; i < QK / 2; i++) {
            int q0 = (p[8 + i] & 15) | (int)(high >> i & 1) << 4;
            int q1 = p[8 + i] >> 4 | (int)(high >> (i + QK / 2) & 1) << 4;
            y[i] = d * (float)q0 + m;
            y[i + QK / 2] = d * (float)q1 + m;
        }
    }
}

/* Block of 32: f16 d; 32 int8. w = d * q */
static void dequantize_q8_0(const uint8_t *p, float *y, int64_t n)
{
    for (; n > 0; n -= QK, y += QK, p += 2 + QK) {
        float d = load_f16(p);
        for (int i = 0; i < QK; i++) y[i] = d * (float)(int8_t)p[2 + i];
    }
}

/* In the K types below, element e of the 256 belongs to group e/32. Two-bit
 * fields of groups 0-3 share 32 bytes (bits 0-1, 2-3, 4-5, 6-7), those of groups 4-7 the next
 * 32; nibbles of groups 0 and 1 share 32 bytes, and so on. */

/* 16 bytes: scale (low nibble) and minimum (high) of each sixteen elements; 64 bytes of
 * two-bit q; f16 d, f16 dmin. w = (d * scale) * q - dmin * minimum */
static void dequantize_q2_k(const uint8_t *p, float *y, int64_t n)
{
    for (; n > 0; n -= QK_K, y += QK_K, p += 84) {
        const uint8_t *scales = p, *qs = p + 16;
        float d = load_f16(p + 80), dmin = load_f16(p + 82);
        for (int s = 0; s < 16; s++) {
            float dl = d * (float)(scales[s] & 15), ml = dmin * (float)(scales[s] >> 4);
            int group = s / 2;
            const uint8_t *q = qs + group / 4 * 32 + s % 2 * 16;
            for (int i = 0; i < 16; i++) y[16 * s + i] = dl * (float)(q[i] >> 2 * (group % 4) & 3) - ml;
        }
    }
}

/* 32 bytes: bit g of byte i is the third bit of element i of group g, and takes 4 away
 * where it is clear; 64 bytes of two-bit q; 12 bytes of sixteen 6-bit scales (the low four
 * bits as nibbles of bytes 0-7, first the low ones, then the high; the upper two in bytes 8-11); f16 d.
 * w = (d * (scale - 32)) * q */
static void dequantize_q3_k(const uint8_t *p, float *y, int64_t n)
{
    for (; n > 0; n -= QK_K, y += QK_K, p += 110) {
        const uint8_t *high = p, *qs = p + 32, *scales = p + 96;
        float d = load_f16(p + 108);
        for (int s = 0; s < 16; s++) {
            int scale = (scales[s % 8] >> 4 * (s / 8) & 15) | (scales[8 + s % 4] >> 2 * (s / 4) & 3) << 4;
            float dl = d * (float)(scale - 32);
            int group = s / 2, in_group = s % 2 * 16;
            const uint8_t *q = qs + group / 4 * 32 + in_group;
            for (int i = 0; i < 16; i++) {
                int low = q[i] >> 2 * (group % 4) & 3;
                int minus = high[in_group + i] >> group & 1 ? 0 : 4;
                y[16 * s + i] = dl * (float)(low - minus);
            }
        }
    }
}

/* The 6-bit scale and minimum of group g of Q4_K and Q5_K, packed in 12
 * bytes: those of groups 0-3 are the low six bits of bytes 0-3 and 4-7; those of groups
 * 4-7 have their low four bits in bytes 8-11 and their upper two in the top bits of bytes 0-7. */
static void scale_min(const uint8_t *packed, int g, int *scale, int *min)
{
    if (g < 4) {
        *scale = packed[g] & 63;
        *min = packed[g + 4] & 63;
    } else {
        *scale = (packed[g + 4] & 15) | (packed[g - 4] >> 6) << 4;
        *min = packed[g + 4] >> 4 | (packed[g] >> 6) << 4;
    }
}

/* f16 d, f16 dmin; 12 bytes of scales and minimums; 128 bytes of nibbles.
 * w = (d * scale) * q - dmin * minimum */
static void dequantize_q4_k(const uint8_t *p, float *y, int64_t n)
{
    for (; n > 0; n -= QK_K, y += QK_K, p += 144) {
        float d = load_f16(p), dmin = load_f16(p + 2);
        for (int g = 0; g < 8; g++) {
            int scale, min;
            scale_min(p + 4, g, &scale, &min);
            float dl = d * (float)scale, ml = dmin * (float)min;
            const uint8_t *q = p + 16 + g / 2 * 32;
            for (int i = 0; i < 32; i++) y[32 * g + i] = dl * (float)(q[i] >> 4 * (g % 2) & 15) - ml;
        }
    }
}

/* As Q4_K, with 32 bytes before the nibbles: bit g of byte i is the fifth bit of element i of group g. */
static void dequantize_q5_k(const uint8_t *p, float *y, int64_t n)
{
    for (; n > 0; n -= QK_K, y += QK_K, p += 176) {
        float d = load_f16(p), dmin = load_f16(p + 2);
        const uint8_t *high = p + 16;
        for (int g = 0; g < 8; g++) {
            int scale, min;
            scale_min(p + 4, g, &scale, &min);
            float dl = d * (float)scale, ml = dmin * (float)min;
            const uint8_t *q = p + 48 + g / 2 * 32;
            for (int i = 0; i < 32; i++) {
                int v = (q[i] >> 4 * (g % 2) & 15) | (high[i] >> g & 1) << 4;
                y[32 * g + i] = dl * (float)v - ml;
            }
        }
    }
}

/* 128 bytes of nibbles (each half of the block: 64 bytes, low nibbles groups 0-1, high
 * nibbles groups 2-3 of that half); 64 bytes of the upper two bits; 16 int8 scales, one for each sixteen
 * elements; f16 d. w = (d * scale) * (q - 32) */
static void dequantize_q6_k(const uint8_t *p, float *y, int64_t n)
{
    for (; n > 0; n -= QK_K, y += QK_K, p += 210) {
        float d = load_f16(p + 208);
        for (int s = 0; s < 16; s++) {
            float dl = d * (float)(int8_t)p[192 + s];
            int half = s / 8, group = s / 2 % 4, in_group = s % 2 * 16;
            const uint8_t *low = p + half * 64 + group % 2 * 32 + in_group;
            const uint8_t *high = p + 128 + half * 32 + in_group;
            for (int i = 0; i < 16; i++) {
                int q = (low[i] >> 4 * (group / 2) & 15) | (high[i] >> 2 * group & 3) << 4;
                y[16 * s + i] = dl * (float)(q - 32);
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
