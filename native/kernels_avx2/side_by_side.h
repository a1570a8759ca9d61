/* A few rows of activations side by side, dword by dword, STRIDE of them: one pointer reaches all. Those who multiply eight
 * or sixteen rows of weights have no general register left for more. Includes a product_*.h before this. */
#ifndef INFER_AVX2_SIDE_BY_SIDE_H
#define INFER_AVX2_SIDE_BY_SIDE_H

#include "avx2.h"
#include "correction.h"

enum { SIDE_TOKENS = 8 }; /* of which AVX2_FEW_TOKENS are used */

/* Dwords from group to group of T rows' activations. */
#define STRIDE(T) ((T) > 4 ? 8 : (T) > 2 ? 4 : (T))

/* By row, as the corrections are computed, and side by side. */
struct side_by_side_scratch {
    int32_t row_offset[AVX2_FEW_TOKENS][AVX2_FEW_MAX / 16];
    float row_fsum[AVX2_FEW_TOKENS][AVX2_FEW_MAX / 32];
    int8_t q[SIDE_TOKENS * AVX2_FEW_MAX];
    float scale[SIDE_TOKENS * AVX2_FEW_MAX / 32];
    int32_t offset[SIDE_TOKENS * AVX2_FEW_MAX / 16];
    float fsum[SIDE_TOKENS * AVX2_FEW_MAX / 16];
};

/* Activations as the products read them, at one block. T rows: element i of each is STRIDE(T) * i. */
struct side_by_side {
    const int8_t *q;       /* by group of four elements, four bytes each */
    const float *scale;    /* by 32 elements */
    const int32_t *offset; /* by sub-block; formats with a zero */
    const float *fsum;     /* by sub-block; formats with a minimum */
};

/* out: the n dwords of four rows side by side, STRIDE(T) dwords from one to the next. */
static inline void interleave_4(uint8_t *out, const uint8_t *const r[4], int n, int T)
{
    const size_t stride = 4 * (size_t)STRIDE(T);
    int i = 0;
    for (; i + 4 <= n; i += 4, out += 4 * stride) {
        __m128i v[4];
        for (int t = 0; t < 4; t++) v[t] = _mm_loadu_si128((const __m128i *)(r[t] + 4 * i));
        __m128i a = _mm_unpacklo_epi32(v[0], v[1]), b = _mm_unpacklo_epi32(v[2], v[3]);
        __m128i c = _mm_unpackhi_epi32(v[0], v[1]), d = _mm_unpackhi_epi32(v[2], v[3]);
        _mm_storeu_si128((__m128i *)out, _mm_unpacklo_epi64(a, b));
        _mm_storeu_si128((__m128i *)(out + stride), _mm_unpackhi_epi64(a, b));
        _mm_storeu_si128((__m128i *)(out + 2 * stride), _mm_unpacklo_epi64(c, d));
        _mm_storeu_si128((__m128i *)(out + 3 * stride), _mm_unpackhi_epi64(c, d));
    }
    for (; i < n; i++, out += stride)
        for (int t = 0; t < 4; t++) memcpy(out + 4 * t, r[t] + 4 * i, 4);
}

static inline void interleave_2(uint8_t *out, const uint8_t *const r[2], int n)
{
    int i = 0;
    for (; i + 4 <= n; i += 4, out += 32) {
        __m128i a = _mm_loadu_si128((const __m128i *)(r[0] + 4 * i)), b = _mm_loadu_si128((const __m128i *)(r[1] + 4 * i));
        _mm_storeu_si128((__m128i *)out, _mm_unpacklo_epi32(a, b));
        _mm_storeu_si128((__m128i *)(out + 16), _mm_unpackhi_epi32(a, b));
    }
    for (; i < n; i++, out += 8)
        for (int t = 0; t < 2; t++) memcpy(out + 4 * t, r[t] + 4 * i, 4);
}

/* dst: the n dwords of T rows, two or more, side by side. */
static inline void interleave(void *dst, const void *const rows[], int n, int T)
{
    const uint8_t *r[SIDE_TOKENS]; /* up to STRIDE(T), the last row is there several times */
    for (int t = 0; t < SIDE_TOKENS; t++) r[t] = rows[t < T ? t : T - 1];
    if (T == 2) {
        interleave_2(dst, r, n);
        return;
    }
    for (int t = 0; t < STRIDE(T); t += 4) interleave_4((uint8_t *)dst + 4 * t, r + t, n, T);
}

/* The first T rows of a. */
INLINE struct side_by_side lay_side_by_side(struct side_by_side_scratch *sc, const struct act *a, int T, int sub, int zero,
                                            bool has_min)
{
    const void *q[SIDE_TOKENS], *scale[SIDE_TOKENS], *offset[SIDE_TOKENS], *fsum[SIDE_TOKENS];
    for (int t = 0; t < T; t++) {
        size_t at = (size_t)t * (size_t)a->n;
        if (zero) correct_zero(sc->row_offset[t], a->q + at, a->sum + at / ACT_SUM_BLOCK, a->n, sub, zero);
        if (has_min && sub == ACT_BLOCK) sum_blocks(sc->row_fsum[t], a->scale + at / ACT_BLOCK, a->sum + at / ACT_SUM_BLOCK, a->n);
        q[t] = a->q + at;
        scale[t] = a->scale + at / ACT_BLOCK;
        offset[t] = sc->row_offset[t];
        fsum[t] = sub == ACT_BLOCK ? sc->row_fsum[t] : a->fsum + at / ACT_SUM_BLOCK;
    }
    if (T == 1) return (struct side_by_side){q[0], scale[0], offset[0], fsum[0]};
    interleave(sc->q, q, a->n / 4, T);
    interleave(sc->scale, scale, a->n / ACT_BLOCK, T);
    if (zero) interleave(sc->offset, offset, a->n / sub, T);
    if (has_min) interleave(sc->fsum, fsum, a->n / sub, T);
    return (struct side_by_side){sc->q, sc->scale, sc->offset, sc->fsum};
}

#endif
