/* Attention over pages of the KV cache, and the cache's own stores.
 *
 * Up to four queries share a pass over a page: sixteen keys' scores of each lie in registers while
 * the dimensions go by, then sixteen dimensions' sums while the keys do, so that a half-precision value is widened
 * once for four products. The caller's memory; any thread. */
#include <math.h>

#include "neon.h"
#include "quant.h"
#include "simd.h"

enum { QUERIES = 4, STRIP = 16 };

void neon_kv_store(uint16_t *k_page, uint16_t *v_page, const float *k, const float *v, int k_dim, int v_dim, int slot)
{
    uint16_t *to = v_page + (size_t)slot * (size_t)v_dim;
    int d = 0;
    for (; d + 4 <= v_dim; d += 4) vst1_u16(to + d, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(v + d))));
    for (; d < v_dim; d++) to[d] = f32_to_f16(v[d]);

    k_page += slot; /* K lies transposed */
    for (d = 0; d + 4 <= k_dim; d += 4) {
        uint16x4_t h = vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(k + d)));
        vst1_lane_u16(k_page + (d + 0) * KV_PAGE, h, 0);
        vst1_lane_u16(k_page + (d + 1) * KV_PAGE, h, 1);
        vst1_lane_u16(k_page + (d + 2) * KV_PAGE, h, 2);
        vst1_lane_u16(k_page + (d + 3) * KV_PAGE, h, 3);
    }
    for (; d < k_dim; d++) k_page[d * KV_PAGE] = f32_to_f16(k[d]);
}

/* Sixteen halves, widened. */
INLINE void widen_16(float32x4_t v[4], const uint16_t *p)
{
    uint16x8_t a = vld1q_u16(p), b = vld1q_u16(p + 8);
    v[0] = widen_f16(vget_low_u16(a));
    v[1] = widen_f16(vget_high_u16(a));
    v[2] = widen_f16(vget_low_u16(b));
    v[3] = widen_f16(vget_high_u16(b));
}

/* Scores of all slots of a page up to n_keys, rounded up to a strip. */
INLINE void scores(float (*s)[KV_PAGE], const float *const *q, const uint16_t *k_page, int k_dim, int n_keys,
                   const int n_q)
{
    for (int j = 0; j < n_keys; j += STRIP) {
        float32x4_t sum[QUERIES][4];
#pragma GCC unroll 4
        for (int i = 0; i < n_q; i++)
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) sum[i][c] = vdupq_n_f32(0);
        for (int d = 0; d < k_dim; d++) {
            float32x4_t k[4];
            widen_16(k, k_page + d * KV_PAGE + j);
#pragma GCC unroll 4
            for (int i = 0; i < n_q; i++) {
                float32x4_t x = vld1q_dup_f32(q[i] + d);
#pragma GCC unroll 4
                for (int c = 0; c < 4; c++) sum[i][c] = vfmaq_f32(sum[i][c], x, k[c]);
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < n_q; i++)
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) vst1q_f32(s[i] + j + 4 * c, sum[i][c]);
    }
}

/* Scores to probabilities, 0 beyond those seen; updates m and l and returns what acc is to be multiplied with. */
static float softmax(float s[KV_PAGE], int seen, bool first, float *m, float *l)
{
    for (int j = seen; j < KV_PAGE; j++) s[j] = -INFINITY; /* may be NaN */
    float32x4_t tops = vdupq_n_f32(*m);
    for (int j = 0; j < seen; j += 4) tops = max_f32(tops, vld1q_f32(s + j));
    float top = vmaxvq_f32(tops) + 0.0f;
    float c = first ? 0 : kexp(*m - top);
    struct lanes16 sum = lanes_zero();
    int j = 0;
    for (; j + 4 <= seen; j += 4) {
        float32x4_t p = exp_f32(vsubq_f32(vld1q_f32(s + j), vdupq_n_f32(top)));
        vst1q_f32(s + j, p);
        sum.v[j / 4 % 4] = vaddq_f32(sum.v[j / 4 % 4], p);
    }
    float lane[16];
    lanes_store(lane, &sum);
    for (; j < seen; j++) {
        s[j] = kexp(s[j] - top);
        lane[j % 16] += s[j];
    }
    *l = fmaf(*l, c, lanes_fold(lanes_load(lane)));
    *m = top;
    return c;
}

/* acc += p * V for keys from .. to of a page. */
INLINE void values(float *const *acc, const float (*p)[KV_PAGE], const uint16_t *v_page, int v_dim, int from, int to,
                   const int n_q)
{
    int d = 0;
    for (; d + STRIP <= v_dim; d += STRIP) {
        float32x4_t sum[QUERIES][4];
#pragma GCC unroll 4
        for (int i = 0; i < n_q; i++)
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) sum[i][c] = vld1q_f32(acc[i] + d + 4 * c);
        for (int j = from; j < to; j++) {
            float32x4_t v[4];
            widen_16(v, v_page + j * v_dim + d);
#pragma GCC unroll 4
            for (int i = 0; i < n_q; i++) {
                float32x4_t x = vld1q_dup_f32(p[i] + j);
#pragma GCC unroll 4
                for (int c = 0; c < 4; c++) sum[i][c] = vfmaq_f32(sum[i][c], x, v[c]);
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < n_q; i++)
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) vst1q_f32(acc[i] + d + 4 * c, sum[i][c]);
    }
    for (; d < v_dim; d++)
        for (int i = 0; i < n_q; i++)
            for (int j = from; j < to; j++) acc[i][d] = fmaf(p[i][j], f16_to_f32(v_page[j * v_dim + d]), acc[i][d]);
}

static void scale(float *acc, float c, int v_dim)
{
    int d = 0;
    for (; d + 4 <= v_dim; d += 4) vst1q_f32(acc + d, vmulq_n_f32(vld1q_f32(acc + d), c));
    for (; d < v_dim; d++) acc[d] *= c;
}

/* One page for n_q queries that all see some of it. seen: [n_q] */
INLINE void attend_page(const float *const *q, const int *seen, const int n_q, int k_dim, int v_dim,
                        const uint16_t *k_page, const uint16_t *v_page, bool first, float *const *m, float *const *l,
                        float *const *acc)
{
    float s[QUERIES][KV_PAGE];
    int least = KV_PAGE, most = 0;
    for (int i = 0; i < n_q; i++) {
        if (seen[i] < least) least = seen[i];
        if (seen[i] > most) most = seen[i];
    }
    scores(s, q, k_page, k_dim, most, n_q);
    for (int i = 0; i < n_q; i++) scale(acc[i], softmax(s[i], seen[i], first, m[i], l[i]), v_dim);
    values(acc, s, v_page, v_dim, 0, least, n_q);
    for (int i = 0; i < n_q; i++) /* what the others do not see: it may be NaN, so a factor of 0 would not do */
        if (seen[i] > least) values(acc + i, s + i, v_page, v_dim, least, seen[i], 1);
}

#define DEFINE_ATTEND_PAGE(n_q) \
    static void attend_page_##n_q(const float *const *q, const int *seen, int k_dim, int v_dim, const uint16_t *k_page, \
                                  const uint16_t *v_page, bool first, float *const *m, float *const *l, \
                                  float *const *acc) \
    { \
        attend_page(q, seen, n_q, k_dim, v_dim, k_page, v_page, first, m, l, acc); \
    }
DEFINE_ATTEND_PAGE(1)
DEFINE_ATTEND_PAGE(2)
DEFINE_ATTEND_PAGE(3)
DEFINE_ATTEND_PAGE(4)

static void (*const attend_pages[QUERIES + 1])(const float *const *q, const int *seen, int k_dim, int v_dim,
                                               const uint16_t *k_page, const uint16_t *v_page, bool first,
                                               float *const *m, float *const *l, float *const *acc) = {
    NULL, attend_page_1, attend_page_2, attend_page_3, attend_page_4};

void neon_attend(const float *const *q, const int *n_keys, int n_q, int k_dim, int v_dim,
                 const uint16_t *const *k_pages, const uint16_t *const *v_pages, float *m, float *l, float *acc,
                 void *scratch)
{
    (void)scratch;
    int most = 0;
    for (int i = 0; i < n_q; i++) {
        m[i] = -INFINITY;
        l[i] = 0;
        if (n_keys[i] > most) most = n_keys[i];
    }
    for (size_t d = 0; d < (size_t)n_q * (size_t)v_dim; d++) acc[d] = 0;
    for (int page = 0; page * KV_PAGE < most; page++)
        for (int i = 0; i < n_q;) { /* the next up to four queries that see this page */
            const float *group[QUERIES];
            float *group_m[QUERIES], *group_l[QUERIES], *group_acc[QUERIES];
            int seen[QUERIES], n = 0;
            for (; i < n_q && n < QUERIES; i++) {
                int left = n_keys[i] - page * KV_PAGE;
                if (left <= 0) continue;
                group[n] = q[i];
                group_m[n] = &m[i];
                group_l[n] = &l[i];
                group_acc[n] = acc + (size_t)i * (size_t)v_dim;
                seen[n++] = left < KV_PAGE ? left : KV_PAGE;
            }
            if (n)
                attend_pages[n](group, seen, k_dim, v_dim, k_pages[page], v_pages[page], page == 0, group_m, group_l,
                                group_acc);
        }
}

void neon_attend_merge(float *m, float *l, float *acc, float m2, float l2, const float *acc2, int v_dim)
{
    float top = kmax(*m, m2) + 0.0f;
    float a = *m == -INFINITY ? 0 : kexp(*m - top);
    float b = m2 == -INFINITY ? 0 : kexp(m2 - top);
    *l = fmaf(*l, a, l2 * b);
    int d = 0;
    for (; d + 4 <= v_dim; d += 4)
        vst1q_f32(acc + d, vfmaq_n_f32(vmulq_n_f32(vld1q_f32(acc2 + d), b), vld1q_f32(acc + d), a));
    for (; d < v_dim; d++) acc[d] = fmaf(acc[d], a, acc2[d] * b);
    *m = top;
}
