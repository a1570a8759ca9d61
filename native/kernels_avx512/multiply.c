/* The int8 microkernels: one tile of 16 weight rows against 1 to 12 activation rows.
 *
 * Per sub-block of 32 and token, on the two vector ports: 8 VPDPBUSD (64 products each), conversion,
 * scale times scale, fma: 11 operations for 512 products, so at most 8/11 of the
 * VNNI peak (8/12 for formats with a minimum; 4/7 with sub-blocks of 16).
 *
 * Registers for T tokens: T integer sums, T float sums, the weights, the scale and a
 * product: 2T + 3 <= 32. VPDPBUSD takes 5 cycles and two start in one, so T >= 10 hides
 * its latency; 12 leaves the compiler two spare. Each step loads 64 bytes of weights
 * and T times 4 bytes of activations, T + 1 of the 2 loads a cycle for T/2 cycles
 * of arithmetic. With few tokens, out-of-order execution overlaps sub-blocks.
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

/* T and sub are constants after inlining: the arrays become registers. */
INLINE void multiply(__m512 *acc_out, const struct tile *w, const struct act_slab *a, int n_sub, const int T,
                     const int sub)
{
    __m512 acc[GROUP_TOKENS];
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) acc[t] = acc_out[t];
    const __m512i *wk = w->w;
    const int8_t *q = a->q[0];
    for (int s = 0; s < n_sub; s++, wk += sub / 4, q += sub) {
        __m512i isum[GROUP_TOKENS];
#pragma GCC unroll 12
        for (int t = 0; t < T; t++) isum[t] = _mm512_set1_epi32(a->start[t][s]);
#pragma GCC unroll 8
        for (int k = 0; k < sub / 4; k++) {
            __m512i weights = wk[k];
#pragma GCC unroll 12
            for (int t = 0; t < T; t++)
                isum[t] = _mm512_dpbusd_epi32(isum[t], weights, load_four(q + t * ACT_STRIDE + 4 * k));
        }
        __m512 d = w->d[s];
#pragma GCC unroll 12
        for (int t = 0; t < T; t++)
            acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum[t]), _mm512_mul_ps(d, _mm512_set1_ps(a->scale[t][s])),
                                     acc[t]);
    }
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) acc_out[t] = acc[t];
}

INLINE void minima(__m512 *macc_out, const struct tile *w, const struct act_slab *a, int n_sub, const int T)
{
    __m512 macc[GROUP_TOKENS];
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) macc[t] = macc_out[t];
    for (int s = 0; s < n_sub; s++) {
        __m512 m = w->m[s];
#pragma GCC unroll 12
        for (int t = 0; t < T; t++) macc[t] = _mm512_fmadd_ps(m, _mm512_set1_ps(a->fsum[t][s]), macc[t]);
    }
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) macc_out[t] = macc[t];
}

#define FOR_EACH_T(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)

#define DEFINE(T)                                                                                             \
    static void multiply32_##T(__m512 *acc, const struct tile *w, const struct act_slab *a, int n_sub)       \
    {                                                                                                         \
        multiply(acc, w, a, n_sub, T, 32);                                                                    \
    }                                                                                                         \
    static void multiply16_##T(__m512 *acc, const struct tile *w, const struct act_slab *a, int n_sub)       \
    {                                                                                                         \
        multiply(acc, w, a, n_sub, T, 16);                                                                    \
    }                                                                                                         \
    static void minima_##T(__m512 *macc, const struct tile *w, const struct act_slab *a, int n_sub)          \
    {                                                                                                         \
        minima(macc, w, a, n_sub, T);                                                                         \
    }
FOR_EACH_T(DEFINE)

#define MULTIPLY32(T) [T] = multiply32_##T,
#define MULTIPLY16(T) [T] = multiply16_##T,
#define MINIMA(T) [T] = minima_##T,
multiply_fn *const avx512_multiply32[GROUP_TOKENS + 1] = {FOR_EACH_T(MULTIPLY32)};
multiply_fn *const avx512_multiply16[GROUP_TOKENS + 1] = {FOR_EACH_T(MULTIPLY16)};
minima_fn *const avx512_minima[GROUP_TOKENS + 1] = {FOR_EACH_T(MINIMA)};
