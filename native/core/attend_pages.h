/* What the attention of AVX2 and AVX-512 have in common: all but the arithmetic.
 *
 * Page by page, blocks of queries of (nearly) equal size take their scores, soften them, and add their values. Both products
 * are of a block's integers with rows of pairs. The caller's memory; any thread. */
#ifndef INFER_ATTEND_PAGES_H
#define INFER_ATTEND_PAGES_H

#include <math.h>
#include <string.h>

#include "kernels.h"

enum {
    ATTEND_QUERIES = 6, /* most in a block */
    ATTEND_LANES = 16,  /* room for one number a query in a register */
    CACHE_LINE = 64,    /* bytes */
};

/* A thread's own. */
struct attend_scratch {
    float p[ATTEND_QUERIES][KV_PAGE];        /* scores, then weights, of one page */
    int16_t weight[ATTEND_QUERIES][KV_PAGE]; /* as integers */
};

/* Queries of a block, all of which see some of a page, and their running results. */
struct attend_block {
    int n, most; /* queries; most keys of the page that one of them sees */
    const int16_t *q[ATTEND_QUERIES];
    float scale[ATTEND_QUERIES];
    int seen[ATTEND_QUERIES]; /* 1..KV_PAGE */
    float *m[ATTEND_QUERIES], *l[ATTEND_QUERIES], *acc[ATTEND_QUERIES];
};

/* Rows of pairs of K or V, in strips: n rows, of each of which the first `width` of its `all` columns are multiplied. */
struct attend_rows {
    const int16_t *at;
    int n, width, all;
    int strip;           /* integers from one strip to the next */
    const int16_t *next; /* rows that may be fetched meanwhile, or NULL */
};

/* Integers from a row to the next one in the strip that column col lies in. */
static inline int attend_stride(const struct attend_rows *r, int col)
{
    int left = r->all - col / KV_STRIP * KV_STRIP;
    return 2 * (left < KV_STRIP ? left : KV_STRIP);
}

/* What becomes of the sums of query i with column j: scale given, y[i][j] = sum * (scale[j] * by[i]), a score;
 * else y[i][j] = fma(sum, by[i], y[i][j] * c[i]), a value, y taken as 0 if c is NULL. */
struct attend_output {
    float *const *y;
    const uint16_t *scale; /* as in struct kv_head */
    const float *by, *c;
};

/* Sums over t of x[i][2t] * row t's first integer and x[i][2t + 1] * its second one, of a block's queries and all columns, to o. */
typedef void attend_product_fn(const struct attend_output *o, const int16_t *const *x, const struct attend_rows *r);

struct attend_kernel {
    attend_product_fn *product[ATTEND_QUERIES + 1]; /* by number of queries */
    int key_step;                                   /* keys whose scores it makes at a time, more than are seen */

    /* Turns the block's scores in s into weights, as integers times scale, 0 where a key is not seen (up to 2*((most+1)/2) keys),
     * and merges them into m and l. c: what acc is multiplied by. v_scale: of the page's values. */
    void (*soften)(struct attend_scratch *s, const struct attend_block *b, const uint16_t *v_scale, bool first,
                   float c[ATTEND_LANES], float scale[ATTEND_LANES]);
};

/* One page. next: the page to be fetched meanwhile, or NULL. */
static inline void attend_page(const struct attend_kernel *kernel, const struct attend_block *b, struct attend_scratch *s,
                               int k_dim, int v_dim, const struct kv_head *page, const struct kv_head *next, bool first)
{
    _Alignas(64) float c[ATTEND_LANES] = {0}, scale[ATTEND_LANES];
    float *scores[ATTEND_QUERIES];
    const int16_t *weights[ATTEND_QUERIES];
    for (int i = 0; i < b->n; i++) {
        scores[i] = s->p[i];
        weights[i] = s->weight[i];
    }
    for (int i = 0; next && i < KV_SCALES; i += CACHE_LINE / (int)sizeof *next->scale) __builtin_prefetch(next->scale + i, 0, 2);
    const int16_t *v_at = page->data + kv_k_count(k_dim);
    int n_pairs = (k_dim + 1) / 2, step = kernel->key_step;
    struct attend_rows k = {.at = page->data, .n = n_pairs, .width = (b->most + step - 1) / step * step, .all = KV_PAGE,
                            .strip = n_pairs * KV_STRIP * 2, .next = next ? next->data : NULL};
    kernel->product[b->n](&(struct attend_output){.y = scores, .scale = page->scale, .by = b->scale}, b->q, &k);
    kernel->soften(s, b, page->scale + KV_PAGE, first, c, scale);
    struct attend_rows v = {.at = v_at, .n = (b->most + 1) / 2, .width = v_dim, .all = v_dim,
                            .strip = KV_PAGE / 2 * KV_STRIP * 2, .next = next ? next->data + kv_k_count(k_dim) : NULL};
    kernel->product[b->n](&(struct attend_output){.y = b->acc, .by = scale, .c = first ? NULL : c}, weights, &v);
}

/* kernels.attend */
static inline void attend_pages(const struct attend_kernel *kernel, const struct kv_query *queries, int n_q, int k_dim, int v_dim,
                                const struct kv_head *pages, float *m, float *l, float *acc, struct attend_scratch *s)
{
    const size_t ld_acc = (size_t)v_dim;
    int last = 0, n_blocks = (n_q + ATTEND_QUERIES - 1) / ATTEND_QUERIES;
    for (int i = 0; i < n_q; i++) {
        int n_keys = queries[i].n_keys;
        m[i] = -INFINITY;
        l[i] = 0;
        last = n_keys > last ? n_keys : last;
        if (n_keys <= 0) memset(acc + (size_t)i * ld_acc, 0, ld_acc * sizeof *acc); /* the others' first page writes it */
    }
    for (int page = 0; page * KV_PAGE < last; page++) {
        const struct kv_head *next = pages[page + 1].data ? &pages[page + 1] : NULL;
        for (int j = 0, begin = 0, end; j < n_blocks; j++, begin = end) {
            end = begin + (n_q - begin) / (n_blocks - j);
            struct attend_block b; /* not initialized: with one query, clearing it takes a twentieth of the time */
            b.n = b.most = 0;
            for (int i = begin; i < end; i++) {
                int seen = queries[i].n_keys - page * KV_PAGE;
                if (seen <= 0) continue;
                if (seen > KV_PAGE) seen = KV_PAGE;
                b.most = seen > b.most ? seen : b.most;
                b.seen[b.n] = seen;
                b.q[b.n] = queries[i].q;
                b.scale[b.n] = queries[i].scale;
                b.m[b.n] = m + i;
                b.l[b.n] = l + i;
                b.acc[b.n++] = acc + (size_t)i * ld_acc;
            }
            if (b.n == 0) continue;
            attend_page(kernel, &b, s, k_dim, v_dim, &pages[page], next, page == 0);
            next = NULL; /* fetched once */
        }
    }
}

#endif
