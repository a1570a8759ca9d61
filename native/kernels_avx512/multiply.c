/* The int8 microkernels: one or two tiles of 16 weight rows against 1 to 6 activation rows.
 *
 * Per sub-block of 32, tile and token, on the two vector ports: 8 VPDPBUSD (64 products each), conversion,
 * scale times scale, fma: 11 operations for 512 products, so at most 8/11 of the
 * VNNI peak (8/12 for formats with a minimum; 8/14 with sub-blocks of 16, two of which are added as products with their
 * integer factors before their common scale is applied).
 *
 * Registers for R tiles and T tokens: RT integer sums, RT float sums, R weights and a broadcast.
 * VPDPBUSD takes 5 cycles and two start in one, so RT >= 10 hides its latency: 2 x 6
 * does, in 27 registers. It loads 8 vectors for 12 VPDPBUSD; 1 x 12 would load 13 and
 * measures 10 % slower, and larger blocks with the float sums in memory are slower still.
 *
 * Memory is the caller's; any thread. */
#include "tile.h"
#include "vector.h"

INLINE __m512i load_four(const int8_t *q)
{
    int32_t v;
    memcpy(&v, q, sizeof v);
    return _mm512_set1_epi32(v);
}

/* isum = sub-block s of R tiles times T rows of q. R, T and sub are constants after inlining: the arrays become registers. */
INLINE void multiply_sub_block(__m512i isum[2][GROUP_TOKENS], const struct tile *w, const struct act_slab *a, const int8_t *q, int s,
                               size_t ld_q, const int R, const int T, const int sub)
{
#pragma GCC unroll 6
    for (int t = 0; t < T; t++) isum[0][t] = isum[1][t] = _mm512_set1_epi32(a->start[t][s]);
#pragma GCC unroll 8
    for (int k = 0; k < sub / 4; k++) {
        __m512i weights[2];
#pragma GCC unroll 2
        for (int r = 0; r < R; r++) weights[r] = w[r].w[s * (sub / 4) + k];
#pragma GCC unroll 6
        for (int t = 0; t < T; t++) {
            __m512i four = load_four(q + (size_t)t * ld_q + 4 * k);
#pragma GCC unroll 2
            for (int r = 0; r < R; r++) isum[r][t] = _mm512_dpbusd_epi32(isum[r][t], weights[r], four);
        }
    }
}

INLINE void multiply(__m512 *acc_out, const struct tile *w, const struct act_slab *a, int n_sub, const char *far, size_t far_step,
                     const int R, const int T, const int sub)
{
    const int parts = ACT_BLOCK / sub;
    __m512 acc[2][GROUP_TOKENS];
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 6
        for (int t = 0; t < T; t++) acc[r][t] = acc_out[r * BLOCK_TOKENS + t];
    const int8_t *q = a->q;
    size_t ld_q = a->ld_q, ld_scale = a->ld_scale;
    for (int b = 0; b < n_sub / parts; b++) {
        __m512 sum[2][GROUP_TOKENS]; /* of a block of 32 columns */
#pragma GCC unroll 2
        for (int part = 0; part < parts; part++, q += sub) {
            const int s = b * parts + part;
            __m512i isum[2][GROUP_TOKENS];
#pragma GCC unroll 6
            for (int t = 0; t < T; t++) /* the next group's */
                _mm_prefetch((const char *)(q + (size_t)(t + GROUP_TOKENS) * ld_q), _MM_HINT_T0);
#pragma GCC unroll 2
            for (int i = 0; i < FAR_PREFETCHES; i++, far += far_step) _mm_prefetch(far, _MM_HINT_T1);
            multiply_sub_block(isum, w, a, q, s, ld_q, R, T, sub);
#pragma GCC unroll 6
            for (int t = 0; t < T; t++)
#pragma GCC unroll 2
                for (int r = 0; r < R; r++) {
                    __m512 v = _mm512_cvtepi32_ps(isum[r][t]);
                    /* Products with factors and their sums are integers below 2^24: exact. */
                    sum[r][t] = parts == 1  ? v
                                : part == 0 ? _mm512_mul_ps(v, w[r].factor[s])
                                            : _mm512_fmadd_ps(v, w[r].factor[s], sum[r][t]);
                }
        }
#pragma GCC unroll 6
        for (int t = 0; t < T; t++) {
            __m512 scale = _mm512_set1_ps(a->scale[(size_t)t * ld_scale + (size_t)b]);
#pragma GCC unroll 2
            for (int r = 0; r < R; r++) acc[r][t] = _mm512_fmadd_ps(sum[r][t], _mm512_mul_ps(w[r].d[b], scale), acc[r][t]);
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 6
        for (int t = 0; t < T; t++) acc_out[r * BLOCK_TOKENS + t] = acc[r][t];
}

INLINE void minima(__m512 *macc_out, const struct tile *w, const struct act_slab *a, int n_sub, const int R, const int T)
{
    __m512 macc[2][GROUP_TOKENS];
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 6
        for (int t = 0; t < T; t++) macc[r][t] = macc_out[r * BLOCK_TOKENS + t];
    for (int s = 0; s < n_sub; s++) {
#pragma GCC unroll 6
        for (int t = 0; t < T; t++) {
            __m512 fsum = _mm512_set1_ps(a->fsum[t][s]);
#pragma GCC unroll 2
            for (int r = 0; r < R; r++) macc[r][t] = _mm512_fmadd_ps(w[r].m[s], fsum, macc[r][t]);
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 6
        for (int t = 0; t < T; t++) macc_out[r * BLOCK_TOKENS + t] = macc[r][t];
}

#define FOR_EACH_T(X, R) X(R, 1) X(R, 2) X(R, 3) X(R, 4) X(R, 5) X(R, 6)
#define PARAMETERS __m512 *acc, const struct tile *w, const struct act_slab *a, int n_sub

#define DEFINE(R, T)                                                                                                          \
    static void multiply32_##R##_##T(PARAMETERS, const char *far, size_t step) { multiply(acc, w, a, n_sub, far, step, R, T, 32); } \
    static void multiply16_##R##_##T(PARAMETERS, const char *far, size_t step) { multiply(acc, w, a, n_sub, far, step, R, T, 16); } \
    static void minima_##R##_##T(PARAMETERS) { minima(acc, w, a, n_sub, R, T); }
FOR_EACH_T(DEFINE, 1)
FOR_EACH_T(DEFINE, 2)

#define MULTIPLY32(R, T) [R - 1][T] = multiply32_##R##_##T,
#define MULTIPLY16(R, T) [R - 1][T] = multiply16_##R##_##T,
#define MINIMA(R, T) [R - 1][T] = minima_##R##_##T,
multiply_fn *const avx512_multiply32[2][GROUP_TOKENS + 1] = {FOR_EACH_T(MULTIPLY32, 1) FOR_EACH_T(MULTIPLY32, 2)};
multiply_fn *const avx512_multiply16[2][GROUP_TOKENS + 1] = {FOR_EACH_T(MULTIPLY16, 1) FOR_EACH_T(MULTIPLY16, 2)};
minima_fn *const avx512_minima[2][GROUP_TOKENS + 1] = {FOR_EACH_T(MINIMA, 1) FOR_EACH_T(MINIMA, 2)};
