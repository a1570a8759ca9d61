/* Products with float weights, widened exactly. A weight row meets up to four activation rows at once, so that
 * prefill widens it a quarter as often; sixteen partial sums each, as kernels.h orders. */
#include <math.h>
#include <string.h>

#include "neon.h"
#include "quant.h"
#include "simd.h"

enum { TOKENS = 4 };

INLINE float32x4_t four_f32(const uint8_t *p) { return vreinterpretq_f32_u8(vld1q_u8(p)); }
INLINE float32x4_t four_f16(const uint8_t *p) { return widen_f16(vreinterpret_u16_u8(vld1_u8(p))); }
INLINE float32x4_t four_bf16(const uint8_t *p)
{
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
}

INLINE uint16_t u16_at(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE float one_f32(const uint8_t *p)
{
    float v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE float one_f16(const uint8_t *p) { return f16_to_f32(u16_at(p)); }
INLINE float one_bf16(const uint8_t *p) { return bf16_to_f32(u16_at(p)); }

#define DEFINE_ROW(type, bytes, n_t) \
    static void row_##type##_##n_t(const uint8_t *w, const float *x, size_t ld_x, int n, float *y, size_t ld_y) \
    { \
        struct lanes16 s[n_t]; \
        float lane[16]; \
        int i = 0; \
        for (int t = 0; t < n_t; t++) s[t] = lanes_zero(); \
        for (; i + 16 <= n; i += 16) \
            for (int k = 0; k < 4; k++) { \
                float32x4_t v = four_##type(w + (size_t)(i + 4 * k) * bytes); \
                for (int t = 0; t < n_t; t++) \
                    s[t].v[k] = vfmaq_f32(s[t].v[k], v, vld1q_f32(x + (size_t)t * ld_x + i + 4 * k)); \
            } \
        for (int t = 0; t < n_t; t++) { \
            lanes_store(lane, &s[t]); \
            for (int j = i; j < n; j++) \
                lane[j % 16] = fmaf(one_##type(w + (size_t)j * bytes), x[(size_t)t * ld_x + (size_t)j], lane[j % 16]); \
            y[(size_t)t * ld_y] = lanes_fold(lanes_load(lane)); \
        } \
    }
#define DEFINE(type, bytes) \
    DEFINE_ROW(type, bytes, 1) \
    DEFINE_ROW(type, bytes, 2) \
    DEFINE_ROW(type, bytes, 3) \
    DEFINE_ROW(type, bytes, 4) \
    void neon_matmul_##type(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y, \
                            void *scratch) \
    { \
        static void (*const row[TOKENS + 1])(const uint8_t *, const float *, size_t, int, float *, size_t) = { \
            NULL, row_##type##_1, row_##type##_2, row_##type##_3, row_##type##_4}; \
        (void)scratch; \
        for (int r = row0; r < row1; r++) { \
            const uint8_t *p = (const uint8_t *)w->data + (size_t)r * w->row_bytes; \
            for (int t = 0; t < a->n_rows; t += TOKENS) { \
                int n_t = a->n_rows - t < TOKENS ? a->n_rows - t : TOKENS; \
                row[n_t](p, a->x + (size_t)t * a->ld_x, a->ld_x, w->n_in, y + (size_t)t * ld_y + r, ld_y); \
            } \
        } \
    }

DEFINE(f32, 4)
DEFINE(f16, 2)
DEFINE(bf16, 2)
