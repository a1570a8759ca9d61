/* Attention over pages of the KV cache, and vectors as its 16-bit integers.
 *
 * Scores and weighted values are the same sums of products of pairs: K has pairs of dimensions side by side in a column for
 * each slot, V pairs of slots in a column for each dimension, both in strips of KV_STRIP columns. Up to four queries share a
 * pass over a page's columns, whose sums lie in registers while the rows go by. The caller's memory; any thread. */
#include <math.h>
#include <string.h>

#include "neon.h"
#include "simd.h"

enum {
    QUERIES = 4,
    STEP = 16,   /* slots of a step of softmax: lanes16 */
    VECTORS = 4, /* of four columns, at most so many at a time */
};

/* ---- vectors as integers ---- */

/* Also where inv is 0, as scalar has it: NaN and infinity times 0 are NaN, which converts to 0. */
INLINE int32x4_t round_4(const float *x, float inv) { return vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x), inv)); }

INLINE int16x8_t round_8(const float *x, float inv)
{
    return vcombine_s16(vmovn_s32(round_4(x, inv)), vmovn_s32(round_4(x + 4, inv)));
}

/* max|x| as kabsmax has it. */
static uint32_t largest_bits(const float *x, int n)
{
    uint32x4_t tops = vdupq_n_u32(0);
    int i = 0;
    for (; i + 4 <= n; i += 4) tops = vmaxq_u32(tops, vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + i))));
    uint32_t top = vmaxvq_u32(tops);
    for (; i < n; i++) top = kabsmax(top, x[i]);
    return top;
}

float neon_narrow(int16_t *y, const float *x, int n, enum narrow_by by)
{
    float inv, scale = by == NARROW_BY_LENGTH ? kquant_scale_upper(klength_bits(sum_of_squares(x, n)), KEY_LEVELS, &inv)
                                              : kquant_scale_upper(largest_bits(x, n), VALUE_LEVELS, &inv);
    int i = 0;
    for (; i + 8 <= n; i += 8) vst1q_s16(y + i, round_8(x + i, inv));
    for (; i < n; i++) y[i] = (int16_t)vcvtns_s32_f32(x[i] * inv);
    if (n % 2) y[n] = 0;
    return scale;
}

/* ---- attention ---- */

/* A query's part of a page. */
struct part {
    const struct kv_query *query;
    int seen; /* slots of the page, > 0 */
    float *m, *l, *acc;
    /* of softmax: acc = acc * keep + scale * the values times their weights */
    int16_t weight[KV_PAGE];
    float keep, scale;
};

/* sum[i][c] = sum over p of x[i]'s pair p times those of row p in columns 4c..4c+3. x: [n_q][n_pairs, 2], y: [n_pairs, ld, 2] */
INLINE void multiply_pairs(int32x4_t (*sum)[VECTORS], const int16_t *const *x, const int16_t *y, int ld, int n_pairs,
                           const int n_q, const int n_vectors)
{
    int32x4_t low[QUERIES][VECTORS], high[QUERIES][VECTORS]; /* columns 4c and 4c+1, 4c+2 and 4c+3; of each both products' sums */
#pragma GCC unroll 4
    for (int i = 0; i < n_q; i++)
#pragma GCC unroll 4
        for (int c = 0; c < n_vectors; c++) low[i][c] = high[i][c] = vdupq_n_s32(0);
    for (int p = 0; p < n_pairs; p++, y += 2 * (size_t)ld) {
        int16x8_t v[VECTORS];
#pragma GCC unroll 4
        for (int c = 0; c < n_vectors; c++) v[c] = vld1q_s16(y + 8 * c);
#pragma GCC unroll 4
        for (int i = 0; i < n_q; i++) {
            int32_t both;
            memcpy(&both, x[i] + 2 * p, sizeof both);
            int16x8_t pair = vreinterpretq_s16_s32(vdupq_n_s32(both));
#pragma GCC unroll 4
            for (int c = 0; c < n_vectors; c++) {
                low[i][c] = vmlal_s16(low[i][c], vget_low_s16(v[c]), vget_low_s16(pair));
                high[i][c] = vmlal_high_s16(high[i][c], v[c], pair);
            }
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < n_q; i++)
#pragma GCC unroll 4
        for (int c = 0; c < n_vectors; c++) sum[i][c] = vpaddq_s32(low[i][c], high[i][c]);
}

/* Vectors of columns at a time: at most 16 registers of sums. */
INLINE int vectors_of(const int n_q) { return n_q <= 2 ? VECTORS : VECTORS / 2; }

/* Products of the queries with a page's keys. */
INLINE void scores(int32_t (*s)[KV_PAGE], const int16_t *const *q, const int16_t *k, int k_dim, int slots, const int n_q)
{
    const int n_vectors = vectors_of(n_q);
    for (int j = 0; j < slots; j += 4 * n_vectors) {
        int32x4_t sum[QUERIES][VECTORS];
        multiply_pairs(sum, q, k + kv_k_at(k_dim, j, 0), KV_STRIP, (k_dim + 1) / 2, n_q, n_vectors);
#pragma GCC unroll 4
        for (int i = 0; i < n_q; i++)
#pragma GCC unroll 4
            for (int c = 0; c < n_vectors; c++) vst1q_s32(s[i] + j + 4 * c, sum[i][c]);
    }
}

/* Scales of four keys or values. */
INLINE float32x4_t load_scales(const uint16_t *upper) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(upper), 16)); }

/* All ones for those of the slots j..j+3 that are seen. */
INLINE uint32x4_t seen_mask(int j, int seen)
{
    static const int32_t index[4] = {0, 1, 2, 3};
    return vcltq_s32(vld1q_s32(index), vdupq_n_s32(seen - j));
}

/* x, and 0 where the mask is. */
INLINE float32x4_t masked(uint32x4_t mask, float32x4_t x)
{
    return vreinterpretq_f32_u32(vandq_u32(mask, vreinterpretq_u32_f32(x)));
}

/* Products to weights, 0 for slots that are not seen, whose products and scales may be anything. Updates m and l. */
static void softmax(struct part *part, const int32_t product[KV_PAGE], const struct kv_head *page, int slots, bool first)
{
    float s[KV_PAGE];
    float32x4_t tops = vdupq_n_f32(*part->m), none = vdupq_n_f32(-INFINITY);
    for (int j = 0; j < slots; j += 4) {
        float32x4_t scale = vmulq_n_f32(load_scales(page->scale + j), part->query->scale);
        float32x4_t x = vmulq_f32(vcvtq_f32_s32(vld1q_s32(product + j)), scale);
        tops = max_f32(tops, vbslq_f32(seen_mask(j, part->seen), x, none));
        vst1q_f32(s + j, x);
    }
    float top = vmaxvq_f32(tops) + 0.0f;
    part->keep = first ? 0 : kexp(*part->m - top);

    struct lanes16 sum = lanes_zero();
    for (int j = 0; j < slots; j += STEP)
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            int at = j + 4 * c;
            uint32x4_t mask = seen_mask(at, part->seen);
            float32x4_t p = masked(mask, exp_f32(vsubq_f32(vld1q_f32(s + at), vdupq_n_f32(top))));
            sum.v[c] = vaddq_f32(sum.v[c], p);
            vst1q_f32(s + at, masked(mask, vmulq_f32(p, load_scales(page->scale + KV_PAGE + at))));
        }
    *part->l = fmaf(*part->l, part->keep, lanes_fold(sum));
    *part->m = top;

    float inv;
    part->scale = kquant_scale(largest_bits(s, slots), WEIGHT_LEVELS, &inv);
    for (int j = 0; j < slots; j += 8) vst1q_s16(part->weight + j, round_8(s + j, inv));
}

/* The weighted values of columns d.. into acc. */
INLINE void add_columns(const struct part *parts, const int16_t *const *weight, const int16_t *v, int v_dim, int d, int n_pairs,
                        const int n_q, const int n_vectors)
{
    int32x4_t sum[QUERIES][VECTORS];
    int strip = d / KV_STRIP * KV_STRIP, width = v_dim - strip < KV_STRIP ? v_dim - strip : KV_STRIP;
    multiply_pairs(sum, weight, v + kv_v_at(v_dim, 0, d), width, n_pairs, n_q, n_vectors);
#pragma GCC unroll 4
    for (int i = 0; i < n_q; i++)
#pragma GCC unroll 4
        for (int c = 0; c < n_vectors; c++) {
            float *acc = parts[i].acc + d + 4 * c;
            float32x4_t kept = vmulq_n_f32(vld1q_f32(acc), parts[i].keep);
            vst1q_f32(acc, vfmaq_n_f32(kept, vcvtq_f32_s32(sum[i][c]), parts[i].scale));
        }
}

INLINE void values(const struct part *parts, const int16_t *const *weight, const int16_t *v, int v_dim, int n_pairs,
                   const int n_q)
{
    const int n_vectors = vectors_of(n_q);
    int d = 0;
    for (; d + 4 * n_vectors <= v_dim; d += 4 * n_vectors) add_columns(parts, weight, v, v_dim, d, n_pairs, n_q, n_vectors);
    for (; d + 4 <= v_dim; d += 4) add_columns(parts, weight, v, v_dim, d, n_pairs, n_q, 1);
    for (; d < v_dim; d++)
        for (int i = 0; i < n_q; i++) {
            int32_t sum = 0;
            for (int j = 0; j < 2 * n_pairs; j++) sum += weight[i][j] * v[kv_v_at(v_dim, j, d)];
            parts[i].acc[d] = fmaf((float)sum, parts[i].scale, parts[i].acc[d] * parts[i].keep);
        }
}

INLINE void attend_page(struct part *parts, const int n_q, int k_dim, int v_dim, const struct kv_head *page, bool first)
{
    int32_t s[QUERIES][KV_PAGE];
    const int16_t *q[QUERIES], *weight[QUERIES];
    int most = 0;
    for (int i = 0; i < n_q; i++) {
        q[i] = parts[i].query->q;
        weight[i] = parts[i].weight;
        if (parts[i].seen > most) most = parts[i].seen;
    }
    int slots = (most + STEP - 1) / STEP * STEP;
    scores(s, q, page->data, k_dim, slots, n_q);
    for (int i = 0; i < n_q; i++) softmax(&parts[i], s[i], page, slots, first);
    values(parts, weight, page->data + kv_k_count(k_dim), v_dim, (most + 1) / 2, n_q);
}

#define DEFINE_ATTEND_PAGE(n_q) \
    static void attend_page_##n_q(struct part *parts, int k_dim, int v_dim, const struct kv_head *page, bool first) \
    { \
        attend_page(parts, n_q, k_dim, v_dim, page, first); \
    }
DEFINE_ATTEND_PAGE(1)
DEFINE_ATTEND_PAGE(2)
DEFINE_ATTEND_PAGE(3)
DEFINE_ATTEND_PAGE(4)

static void (*const attend_pages[QUERIES + 1])(struct part *parts, int k_dim, int v_dim, const struct kv_head *page,
                                               bool first) = {NULL, attend_page_1, attend_page_2, attend_page_3, attend_page_4};

void neon_attend(const struct kv_query *queries, int n_q, int k_dim, int v_dim, const struct kv_head *pages, float *m,
                 float *l, float *acc, void *scratch)
{
    (void)scratch;
    int most = 0;
    for (int i = 0; i < n_q; i++) {
        m[i] = -INFINITY;
        l[i] = 0;
        if (queries[i].n_keys > most) most = queries[i].n_keys;
    }
    for (size_t d = 0; d < (size_t)n_q * (size_t)v_dim; d++) acc[d] = 0;
    for (int page = 0; page * KV_PAGE < most; page++)
        for (int i = 0; i < n_q;) { /* the next up to four queries that see this page */
            struct part parts[QUERIES];
            int n = 0;
            for (; i < n_q && n < QUERIES; i++) {
                int left = queries[i].n_keys - page * KV_PAGE;
                if (left <= 0) continue;
                struct part *part = &parts[n++];
                part->query = &queries[i];
                part->seen = left < KV_PAGE ? left : KV_PAGE;
                part->m = &m[i];
                part->l = &l[i];
                part->acc = acc + (size_t)i * (size_t)v_dim;
            }
            if (n) attend_pages[n](parts, k_dim, v_dim, &pages[page], page == 0);
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
