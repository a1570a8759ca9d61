/* Products of 16 weight rows with 1 to 4 activation rows, straight from the file: decode.
 *
 * Nothing is stored between reading a weight and its product, so a row tile costs, per 32 bytes of
 * 16 rows of 4-bit weights: 8 inserts and 24 shuffles to make lane = row, 24 operations to
 * split nibbles, and per token 16 VPDPBUSD and 6 float operations. That is about 80 operations on two
 * ports for 512 bytes, 12 bytes per cycle, several times what one core reads from memory; the
 * next tile is prefetched meanwhile. Memory is the caller's; any thread. */
#include "formats.h"
#include "tile.h"

struct sums {
    __m512 acc[STREAM_TOKENS], macc[STREAM_TOKENS];
    const struct act_rows *a;
};

INLINE __m512i load_four(const int8_t *q)
{
    int32_t v;
    memcpy(&v, q, sizeof v);
    return _mm512_set1_epi32(v);
}

INLINE void multiply_sub_block(struct sums *c, int s, const __m512i *w, __m512 d, __m512 m, const int T, const int sub,
                               const int zero, const bool has_min)
{
    const struct act_rows *a = c->a;
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
        const int8_t *q = a->q + (size_t)t * a->ld_q + (size_t)(s * sub);
        __m512i isum = zero ? _mm512_set1_epi32(a->start[t][s]) : _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int k = 0; k < sub / 4; k++) isum = _mm512_dpbusd_epi32(isum, w[k], load_four(q + 4 * k));
        __m512 scale = _mm512_set1_ps(a->scale[t][s]);
        c->acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum), _mm512_mul_ps(d, scale), c->acc[t]);
        if (has_min) c->macc[t] = _mm512_fmadd_ps(m, _mm512_set1_ps(a->fsum[t][s]), c->macc[t]);
    }
}

#define DEFINE_T(name, sub, zero, has_min, T)                                                                    \
    INLINE void multiply_##name##_##T(void *ctx, int s, const __m512i *w, __m512 d, __m512 m)                    \
    {                                                                                                            \
        multiply_sub_block(ctx, s, w, d, m, T, sub, zero, has_min);                                              \
    }                                                                                                            \
    static void stream_##name##_##T(__m512 *y, const struct rows *r, int n_blocks, const struct act_rows *a)     \
    {                                                                                                            \
        struct sums c = {.a = a};                                                                                \
        for (int t = 0; t < T; t++) c.acc[t] = c.macc[t] = _mm512_setzero_ps();                                  \
        walk_##name(r, n_blocks, multiply_##name##_##T, &c);                                                     \
        for (int t = 0; t < T; t++) y[t] = has_min ? _mm512_sub_ps(c.acc[t], c.macc[t]) : c.acc[t];              \
    }
#define DEFINE(name, NAME, block, sub, zero, has_min) \
    DEFINE_T(name, sub, zero, has_min, 1)             \
    DEFINE_T(name, sub, zero, has_min, 2)             \
    DEFINE_T(name, sub, zero, has_min, 3)             \
    DEFINE_T(name, sub, zero, has_min, 4)
FOR_EACH_FORMAT(DEFINE)

#define LINE(name, NAME, block, sub, zero, has_min) \
    [TYPE_##NAME] = {NULL, stream_##name##_1, stream_##name##_2, stream_##name##_3, stream_##name##_4},
stream_fn *const avx512_stream[TYPE_COUNT][STREAM_TOKENS + 1] = {FOR_EACH_FORMAT(LINE)};
