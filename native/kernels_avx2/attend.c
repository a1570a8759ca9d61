/* Attention over pages of the KV cache. Memory is the caller's; any thread.
 *
 * Page by page, so that a page's K and V (f16, 32 KB for heads of 128) are read from L1 or L2 by all queries.
 * Scores and values are one product, y = c * y + x * rows, of a few queries with the rows of K, which lies
 * transposed, or of V: a lane is a key or an element of the head, no sum crosses lanes, and every load of
 * K or V serves all the queries of a block.
 *
 * Registers: a step of the product needs eight sums at least, since two FMAs start in a cycle and each takes
 * four. Twelve leave four for what is multiplied: 3 queries x 4 vectors with a broadcast of each
 * query and one vector of the row, or 6 x 2 with both vectors and one broadcast at a time.
 * There is not one to spare: hence a function of its own for each number of queries, in which no constant
 * of the softmax is kept in a register.
 *
 * Decoding, K and V come from memory, and there are few queries to pay for it. The page that comes
 * next is fetched into L2 meanwhile: as large a share of it as the queries see of this page. */
#include "avx2.h"
#include "quant.h"
#include "simd.h"

#include <string.h>

enum {
    QUERIES = 6,      /* most that share a pass */
    LINE_HALVES = 32, /* f16 numbers of a cache line */
};

struct attend_scratch {
    float p[QUERIES][KV_PAGE]; /* scores, then weights, of one page */
};

const size_t avx2_attend_scratch = sizeof(struct attend_scratch);

/* Rows of K or V, [n, width] f16 numbers, stride apart. */
struct rows {
    const uint16_t *at;
    int n, width, stride;
    const uint16_t *next; /* what is fetched meanwhile, a line for each whole one of these rows; NULL if nothing */
};

/* Columns col .. col + 8*n_v of product() for n_q queries.
 *
 * fetch: also asks for these columns' share of next, a line a row for every four vectors. So the requests are
 * spread over the page's work, since a processor can only wait for some 20 lines at a time. The share is n
 * consecutive lines, not what lies at the same place in each row: lines asked for in the order of
 * memory keep the processor's own prefetcher ahead of them. */
INLINE void pass(float *const *y, const float *c, const float *const *x, const struct rows *r, int col, const int n_q,
                 const int n_v, const bool fetch)
{
    const uint16_t *row = r->at + col, *next = fetch ? r->next + col * r->n : NULL;
    const int n = r->n, stride = r->stride;
    __m256 sum[QUERIES][8];
#pragma GCC unroll 6
    for (int i = 0; i < n_q; i++)
#pragma GCC unroll 8
        for (int v = 0; v < n_v; v++)
            sum[i][v] = c ? _mm256_mul_ps(_mm256_loadu_ps(y[i] + col + 8 * v), _mm256_set1_ps(c[i])) : _mm256_setzero_ps();
    for (int t = 0; t < n; t++) {
        if (fetch) {
#pragma GCC unroll 2
            for (int v = 0; v < n_v; v += LINE_HALVES / 8) _mm_prefetch((const char *)(next + 8 * v * n), _MM_HINT_T1);
            next += LINE_HALVES;
        }
        if (n_v > 2) {
            __m256 w[QUERIES];
#pragma GCC unroll 6
            for (int i = 0; i < n_q; i++) w[i] = _mm256_set1_ps(x[i][t]);
#pragma GCC unroll 8
            for (int v = 0; v < n_v; v++) {
                __m256 k = load_f16(row + 8 * v);
#pragma GCC unroll 6
                for (int i = 0; i < n_q; i++) sum[i][v] = _mm256_fmadd_ps(w[i], k, sum[i][v]);
            }
        } else {
            __m256 k[2];
#pragma GCC unroll 2
            for (int v = 0; v < n_v; v++) k[v] = load_f16(row + 8 * v);
#pragma GCC unroll 6
            for (int i = 0; i < n_q; i++) {
                __m256 w = _mm256_set1_ps(x[i][t]);
#pragma GCC unroll 2
                for (int v = 0; v < n_v; v++) sum[i][v] = _mm256_fmadd_ps(w, k[v], sum[i][v]);
            }
        }
        row += stride;
    }
#pragma GCC unroll 6
    for (int i = 0; i < n_q; i++)
#pragma GCC unroll 8
        for (int v = 0; v < n_v; v++) _mm256_storeu_ps(y[i] + col + 8 * v, sum[i][v]);
}

/* Passes of 8*n_v columns, as many as fit, from col. Returns the first column that is left. */
INLINE int passes(float *const *y, const float *c, const float *const *x, const struct rows *r, int col, const int n_q,
                  const int n_v)
{
    for (; col + 8 * n_v <= r->width; col += 8 * n_v) {
        if (n_v > 1 && r->next && col % LINE_HALVES == 0 && col + LINE_HALVES <= r->width)
            pass(y, c, x, r, col, n_q, n_v, true);
        else
            pass(y, c, x, r, col, n_q, n_v, false);
    }
    return col;
}

/* y[i][0 .. width-1] = y[i] * c[i] (0 if c is NULL), then fma(x[i][t], row t, y[i]) for t ascending: n_q queries. */
INLINE void product(float *const *y, const float *c, const float *const *x, const struct rows *r, const int n_q)
{
    int col = 0;
    if (n_q == 1) col = passes(y, c, x, r, col, n_q, 8);
    if (n_q <= 3) col = passes(y, c, x, r, col, n_q, 4);
    col = passes(y, c, x, r, col, n_q, 2);
    col = passes(y, c, x, r, col, n_q, 1);
    for (; col < r->width; col++) {
        for (int i = 0; i < n_q; i++) {
            float sum = c ? y[i][col] * c[i] : 0;
            for (int t = 0; t < r->n; t++) sum = fmaf(x[i][t], _cvtsh_ss(r->at[t * r->stride + col]), sum);
            y[i][col] = sum;
        }
    }
}

typedef void product_fn(float *const *y, const float *c, const float *const *x, const struct rows *r);

#define DEFINE(n_q)                                                                                              \
    static void product_##n_q(float *const *y, const float *c, const float *const *x, const struct rows *r)      \
    {                                                                                                            \
        product(y, c, x, r, n_q);                                                                                \
    }
DEFINE(1)
DEFINE(2)
DEFINE(3)
DEFINE(4)
DEFINE(5)
DEFINE(6)
#undef DEFINE

static product_fn *const product_of[QUERIES + 1] = {NULL,      product_1, product_2, product_3,
                                                    product_4, product_5, product_6};

/* Queries of a block, all of which see some of a page, and their running results. */
struct block {
    int n, least, most;           /* queries; fewest and most keys of the page that one of them sees */
    const float *q[QUERIES];
    int seen[QUERIES];            /* 1..KV_PAGE */
    float *m[QUERIES], *l[QUERIES], *acc[QUERIES];
};

/* Scores of unseen keys become such whose weight is 0, up to a multiple of 16 keys. */
INLINE void hide_unseen(float *p, int seen)
{
    for (int j = seen / 8 * 8; j % 16 || j < seen; j += 8) {
        __m256 visible = _mm256_castsi256_ps(lanes_below(seen - j));
        _mm256_store_ps(p + j, _mm256_blendv_ps(_mm256_set1_ps(-INFINITY), _mm256_load_ps(p + j), visible));
    }
}

/* The larger of m and the scores; a NaN among them is passed over. */
INLINE float highest(const float *p, int seen, float m)
{
    __m256 top8 = _mm256_set1_ps(m), odd = top8;
    for (int j = 0; j < seen; j += 16) { /* in this order max passes over NaN */
        top8 = _mm256_max_ps(_mm256_load_ps(p + j), top8);
        odd = _mm256_max_ps(_mm256_load_ps(p + j + 8), odd);
    }
    top8 = _mm256_max_ps(odd, top8);
    __m128 top4 = _mm_max_ps(_mm256_castps256_ps128(top8), _mm256_extractf128_ps(top8, 1));
    top4 = _mm_max_ps(top4, _mm_movehl_ps(top4, top4));
    return _mm_cvtss_f32(_mm_max_ss(top4, _mm_movehdup_ps(top4))) + 0.0f;
}

/* Turns scores into weights and returns their sum. */
INLINE float weigh(float *p, int seen, float top)
{
    __m256 lo = _mm256_setzero_ps(), hi = lo, top8 = _mm256_set1_ps(top);
    for (int j = 0; j < seen; j += 16) {
        __m256 even = exp8(_mm256_sub_ps(_mm256_load_ps(p + j), top8));
        __m256 odd = exp8(_mm256_sub_ps(_mm256_load_ps(p + j + 8), top8));
        _mm256_store_ps(p + j, even);
        _mm256_store_ps(p + j + 8, odd);
        lo = _mm256_add_ps(lo, even);
        hi = _mm256_add_ps(hi, odd);
    }
    return fold16(lo, hi);
}

/* Turns the block's scores into weights and merges them into m and l. c: what acc shrinks by, of all queries by one
 * exponential. Query by query within each step, so that one's latencies hide behind another's. */
static void soften(float (*p)[KV_PAGE], const struct block *b, bool first, float c[8])
{
    for (int i = 0; i < b->n; i++) {
        hide_unseen(p[i], b->seen[i]);
        float top = highest(p[i], b->seen[i], *b->m[i]);
        c[i] = *b->m[i] - top;
        *b->m[i] = top;
    }
    _mm256_store_ps(c, first ? _mm256_setzero_ps() : exp8(_mm256_load_ps(c)));
    for (int i = 0; i < b->n; i++) *b->l[i] = fmaf(*b->l[i], c[i], weigh(p[i], b->seen[i], *b->m[i]));
}

/* One page. k_next, v_next: the page to be fetched meanwhile, or NULL. */
static void attend_block(const struct block *b, float (*p)[KV_PAGE], int k_dim, int v_dim, const uint16_t *k_page,
                         const uint16_t *v_page, const uint16_t *k_next, const uint16_t *v_next, bool first)
{
    _Alignas(32) float c[8] = {0};
    float *scores[QUERIES];
    const float *weights[QUERIES];
    for (int i = 0; i < b->n; i++) weights[i] = scores[i] = p[i];
    struct rows k = {.at = k_page, .n = k_dim, .width = (b->most + 15) / 16 * 16, .stride = KV_PAGE, .next = k_next};
    product_of[b->n](scores, NULL, b->q, &k);
    soften(p, b, first, c);
    struct rows v = {.at = v_page, .n = b->least, .width = v_dim, .stride = v_dim, .next = v_next};
    product_of[b->n](b->acc, first ? NULL : c, weights, &v);
    for (int i = 0; i < b->n; i++) { /* what only some of them see */
        if (b->seen[i] == b->least) continue;
        const float one = 1, *rest = weights[i] + b->least;
        v = (struct rows){.at = v_page + b->least * v_dim, .n = b->seen[i] - b->least, .width = v_dim, .stride = v_dim};
        product_1(&b->acc[i], &one, &rest, &v);
    }
}

void avx2_attend(const float *const *q, const int *n_keys, int n_q, int k_dim, int v_dim,
                 const uint16_t *const *k_pages, const uint16_t *const *v_pages, float *m, float *l, float *acc,
                 void *scratch)
{
    struct attend_scratch *s = scratch;
    const size_t ld_acc = (size_t)v_dim;
    int last = 0, n_blocks = (n_q + QUERIES - 1) / QUERIES;
    for (int i = 0; i < n_q; i++) {
        m[i] = -INFINITY;
        l[i] = 0;
        last = n_keys[i] > last ? n_keys[i] : last;
        if (n_keys[i] <= 0) memset(acc + (size_t)i * ld_acc, 0, ld_acc * sizeof *acc); /* the others' first page writes it */
    }
    for (int page = 0; page * KV_PAGE < last; page++) {
        const uint16_t *k_next = k_pages[page + 1], *v_next = v_pages[page + 1];
        for (int j = 0, begin = 0, end; j < n_blocks; j++, begin = end) { /* of (nearly) equal size */
            end = begin + (n_q - begin) / (n_blocks - j);
            struct block b; /* not initialized: with one query, clearing it takes a twentieth of the time */
            b.n = b.most = 0;
            b.least = KV_PAGE;
            for (int i = begin; i < end; i++) {
                int seen = n_keys[i] - page * KV_PAGE;
                if (seen <= 0) continue;
                if (seen > KV_PAGE) seen = KV_PAGE;
                b.least = seen < b.least ? seen : b.least;
                b.most = seen > b.most ? seen : b.most;
                b.seen[b.n] = seen;
                b.q[b.n] = q[i];
                b.m[b.n] = m + i;
                b.l[b.n] = l + i;
                b.acc[b.n++] = acc + (size_t)i * ld_acc;
            }
            if (b.n == 0) continue;
            attend_block(&b, s->p, k_dim, v_dim, k_pages[page], v_pages[page], k_next, v_next, page == 0);
            k_next = v_next = NULL; /* fetched once */
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
