/* Attention over pages of the KV cache. Memory is the caller's; any thread.
 *
 * Page by page, so that a page's K and V (f16, 32 KB for heads of 128) are read from L1 by all queries.
 * Scores: lane = key, since K lies transposed, and no sum crosses lanes. Values: lane = element of the head.
 * Each pass takes as many queries and keys, or queries and elements, as fill
 * the registers with sums, and every load of K or V serves all the queries of the pass. */
#include "avx2.h"
#include "quant.h"
#include "simd.h"

enum { QUERIES = 4 }; /* that share a pass */

struct attend_scratch {
    float p[QUERIES][KV_PAGE]; /* scores, then weights, of one page */
};

const size_t avx2_attend_scratch = sizeof(struct attend_scratch);

/* Scores of n_q queries for 8*n_v keys from key j0. */
INLINE void score(float (*p)[KV_PAGE], const float *const *q, const uint16_t *k_page, int k_dim, int j0, int n_q,
                  int n_v)
{
    __m256 s[QUERIES][8];
#pragma GCC unroll 4
    for (int i = 0; i < n_q; i++)
#pragma GCC unroll 8
        for (int v = 0; v < n_v; v++) s[i][v] = _mm256_setzero_ps();
    for (int d = 0; d < k_dim; d++) {
        __m256 x[QUERIES];
#pragma GCC unroll 4
        for (int i = 0; i < n_q; i++) x[i] = _mm256_set1_ps(q[i][d]);
#pragma GCC unroll 8
        for (int v = 0; v < n_v; v++) {
            __m256 k = load_f16(k_page + d * KV_PAGE + j0 + 8 * v);
#pragma GCC unroll 4
            for (int i = 0; i < n_q; i++) s[i][v] = _mm256_fmadd_ps(x[i], k, s[i][v]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < n_q; i++)
#pragma GCC unroll 8
        for (int v = 0; v < n_v; v++) _mm256_store_ps(p[i] + j0 + 8 * v, s[i][v]);
}

/* All scores that one of n_q queries needs: keys below `keys`, rounded up to whole registers. */
INLINE void score_page(float (*p)[KV_PAGE], const float *const *q, const uint16_t *k_page, int k_dim, int keys,
                       int n_q)
{
    const int n_v = n_q == 1 ? 8 : n_q <= 3 ? 4 : 2;
    for (int j = 0; j < keys; j += 8 * n_v) score(p, q, k_page, k_dim, j, n_q, n_v);
}

/* Turns scores into weights (0 for unseen keys) and merges the page into m and l. Returns what acc shrinks by. */
INLINE float soften(float *p, int seen, bool first, float *m, float *l)
{
    __m256 top8 = _mm256_set1_ps(*m);
    for (int j = 0; j < seen; j += 8) {
        __m256 masked = _mm256_blendv_ps(top8, _mm256_load_ps(p + j), _mm256_castsi256_ps(lanes_below(seen - j)));
        top8 = _mm256_max_ps(masked, top8); /* this order passes over NaN */
    }
    __m128 top4 = _mm_max_ps(_mm256_castps256_ps128(top8), _mm256_extractf128_ps(top8, 1));
    top4 = _mm_max_ps(top4, _mm_movehl_ps(top4, top4));
    float top = _mm_cvtss_f32(_mm_max_ss(top4, _mm_movehdup_ps(top4))) + 0.0f;
    __m256 lane[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int j = 0; j < seen; j += 16) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            if (j + 8 * h >= seen) break;
            __m256 e = exp8(_mm256_sub_ps(_mm256_load_ps(p + j + 8 * h), _mm256_set1_ps(top)));
            e = _mm256_and_ps(e, _mm256_castsi256_ps(lanes_below(seen - j - 8 * h)));
            _mm256_store_ps(p + j + 8 * h, e);
            lane[h] = _mm256_add_ps(lane[h], e);
        }
    }
    float c = first ? 0 : _mm256_cvtss_f32(exp8(_mm256_set1_ps(*m - top)));
    *l = fmaf(*l, c, fold16(lane[0], lane[1]));
    *m = top;
    return c;
}

/* acc = acc * c, then += p_j * v_j for j0 <= j < j1: 8*n_v elements of n_q queries at element d. */
INLINE void add_values(float *const *acc, const float *c, float (*p)[KV_PAGE], const uint16_t *v_page, int v_dim,
                       int d, int j0, int j1, int n_q, int n_v)
{
    __m256 sum[QUERIES][8];
#pragma GCC unroll 4
    for (int i = 0; i < n_q; i++)
#pragma GCC unroll 8
        for (int v = 0; v < n_v; v++) {
            sum[i][v] = _mm256_loadu_ps(acc[i] + d + 8 * v);
            if (c) sum[i][v] = _mm256_mul_ps(sum[i][v], _mm256_set1_ps(c[i]));
        }
    for (int j = j0; j < j1; j++) {
        __m256 w[QUERIES];
#pragma GCC unroll 4
        for (int i = 0; i < n_q; i++) w[i] = _mm256_set1_ps(p[i][j]);
#pragma GCC unroll 8
        for (int v = 0; v < n_v; v++) {
            __m256 x = load_f16(v_page + j * v_dim + d + 8 * v);
#pragma GCC unroll 4
            for (int i = 0; i < n_q; i++) sum[i][v] = _mm256_fmadd_ps(w[i], x, sum[i][v]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < n_q; i++)
#pragma GCC unroll 8
        for (int v = 0; v < n_v; v++) _mm256_storeu_ps(acc[i] + d + 8 * v, sum[i][v]);
}

INLINE void add_all_values(float *const *acc, const float *c, float (*p)[KV_PAGE], const uint16_t *v_page, int v_dim,
                           int j0, int j1, int n_q)
{
    const int n_v = n_q == 1 ? 8 : n_q <= 3 ? 4 : 2;
    int d = 0;
    for (; d + 8 * n_v <= v_dim; d += 8 * n_v) add_values(acc, c, p, v_page, v_dim, d, j0, j1, n_q, n_v);
    for (; d + 8 <= v_dim; d += 8) add_values(acc, c, p, v_page, v_dim, d, j0, j1, n_q, 1);
    for (; d < v_dim; d++) {
        for (int i = 0; i < n_q; i++) {
            float sum = c ? acc[i][d] * c[i] : acc[i][d];
            for (int j = j0; j < j1; j++) sum = fmaf(p[i][j], _cvtsh_ss(v_page[j * v_dim + d]), sum);
            acc[i][d] = sum;
        }
    }
}

/* n_q queries that all see at least one key of the page. */
INLINE void attend_queries(float (*p)[KV_PAGE], const float *const *q, const int *seen, int k_dim, int v_dim,
                           const uint16_t *k_page, const uint16_t *v_page, bool first, float *const *m,
                           float *const *l, float *const *acc, int n_q)
{
    float c[QUERIES];
    int least = seen[0], most = seen[0];
    for (int i = 1; i < n_q; i++) {
        least = seen[i] < least ? seen[i] : least;
        most = seen[i] > most ? seen[i] : most;
    }
    score_page(p, q, k_page, k_dim, most, n_q);
    for (int i = 0; i < n_q; i++) c[i] = soften(p[i], seen[i], first, m[i], l[i]);
    add_all_values(acc, c, p, v_page, v_dim, 0, least, n_q);
    for (int i = 0; i < n_q; i++)
        if (seen[i] > least) add_all_values(acc + i, NULL, p + i, v_page, v_dim, least, seen[i], 1);
}

void avx2_attend(const float *const *q, const int *n_keys, int n_q, int k_dim, int v_dim,
                 const uint16_t *const *k_pages, const uint16_t *const *v_pages, float *m, float *l, float *acc,
                 void *scratch)
{
    struct attend_scratch *s = scratch;
    int last = 0;
    for (int i = 0; i < n_q; i++) {
        m[i] = -INFINITY;
        l[i] = 0;
        last = n_keys[i] > last ? n_keys[i] : last;
    }
    for (size_t i = 0; i < (size_t)n_q * (size_t)v_dim; i++) acc[i] = 0;
    for (int page = 0; page * KV_PAGE < last; page++) {
        const float *q_of[QUERIES];
        float *m_of[QUERIES], *l_of[QUERIES], *acc_of[QUERIES];
        int seen[QUERIES], n = 0;
        for (int i = 0; i < n_q; i++) {
            int sees = n_keys[i] - page * KV_PAGE;
            if (sees > 0) {
                q_of[n] = q[i];
                m_of[n] = m + i;
                l_of[n] = l + i;
                acc_of[n] = acc + (size_t)i * (size_t)v_dim;
                seen[n++] = sees < KV_PAGE ? sees : KV_PAGE;
            }
            if (n < QUERIES && i < n_q - 1) continue;
#define ATTEND(count) \
    attend_queries(s->p, q_of, seen, k_dim, v_dim, k_pages[page], v_pages[page], page == 0, m_of, l_of, acc_of, count)
            switch (n) {
            case 1: ATTEND(1); break;
            case 2: ATTEND(2); break;
            case 3: ATTEND(3); break;
            case 4: ATTEND(4); break;
            }
#undef ATTEND
            n = 0;
        }
    }
}

void avx2_attend_merge(float *m, float *l, float *acc, float m2, float l2, const float *acc2, int v_dim)
{
    float top = kmax(*m, m2) + 0.0f;
    float a = *m == -INFINITY ? 0 : kexp(*m - top);
    float b = m2 == -INFINITY ? 0 : kexp(m2 - top);
    __m256 a8 = _mm256_set1_ps(a), b8 = _mm256_set1_ps(b);
    *l = fmaf(*l, a, l2 * b);
    int d = 0;
    for (; d + 8 <= v_dim; d += 8) {
        __m256 later = _mm256_mul_ps(_mm256_loadu_ps(acc2 + d), b8);
        _mm256_storeu_ps(acc + d, _mm256_fmadd_ps(_mm256_loadu_ps(acc + d), a8, later));
    }
    for (; d < v_dim; d++) acc[d] = fmaf(acc[d], a, acc2[d] * b);
    *m = top;
}

void avx2_kv_store(uint16_t *k_page, uint16_t *v_page, const float *k, const float *v, int k_dim, int v_dim,
                   int slot)
{
    for (int d = 0; d < k_dim; d++) k_page[d * KV_PAGE + slot] = _cvtss_sh(k[d], _MM_FROUND_TO_NEAREST_INT);
    int d = 0;
    uint16_t *out = v_page + slot * v_dim;
    for (; d + 8 <= v_dim; d += 8) {
        __m128i h = _mm256_cvtps_ph(_mm256_loadu_ps(v + d), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128((__m128i *)(out + d), h);
    }
    for (; d < v_dim; d++) out[d] = _cvtss_sh(v[d], _MM_FROUND_TO_NEAREST_INT);
}
