/* Attention over pages of the f16 KV cache, and what puts keys and values there.
 *
 * Up to QUERIES queries share every load of a page. Scores: lanes are keys, four vectors
 * for the 64 of a page, K lies transposed so that each step over the head's
 * dimension loads them and broadcasts one element per query. Values: lanes are the
 * head's dimension, 64 at a time. Registers: QUERIES * 4 sums + 4 loaded + 1
 * broadcast = 29. When there are more queries than two blocks, the page is widened to float32
 * once in scratch, for all of them.
 *
 * Slots that a query does not see may hold anything: their scores are masked before they are
 * used, and their values are not touched. Scratch is the caller's, one thread's own; any thread. */
#include "avx512.h"
#include "vector.h"

enum {
    QUERIES = 6,
    VECTORS = KV_PAGE / 16,
    WIDE_DIM = 256, /* largest head that is widened in scratch */
};

struct scratch {
    float k[WIDE_DIM * KV_PAGE], v[WIDE_DIM * KV_PAGE];
    float p[QUERIES][KV_PAGE];
};
_Static_assert(sizeof(struct scratch) <= AVX512_SCRATCH_BYTES, "AVX512_SCRATCH_BYTES is too small");

/* One page, as stored or widened. */
struct page {
    const uint16_t *k, *v;
    const float *k_wide, *v_wide;    /* used where wide */
    const uint16_t *next_k, *next_v; /* fetched meanwhile */
};

/* A block of queries and their running results. */
struct queries {
    const float *q[QUERIES];
    int seen[QUERIES]; /* keys of this page, 0..KV_PAGE */
    float *m[QUERIES], *l[QUERIES], *acc[QUERIES];
};

/* Twice, for the reason given in rows.h. */
INLINE void prefetch_line(const uint16_t *p)
{
    _mm_prefetch((const char *)p, _MM_HINT_T1);
    _mm_prefetch((const char *)p + 1024, _MM_HINT_T1);
}

INLINE __m512 load_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }

INLINE void scores(__m512 s[QUERIES][VECTORS], const struct queries *b, const struct page *page, int k_dim,
                   const int Q, const bool wide)
{
#pragma GCC unroll 6
    for (int i = 0; i < Q; i++)
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++) s[i][j] = _mm512_setzero_ps();
    for (int d = 0; d < k_dim; d++) {
        __m512 k[VECTORS];
        if (!wide) {
            prefetch_line(page->next_k + d * KV_PAGE);
            prefetch_line(page->next_k + d * KV_PAGE + KV_PAGE / 2);
        }
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++)
            k[j] = wide ? _mm512_loadu_ps(page->k_wide + d * KV_PAGE + 16 * j)
                        : load_half(page->k + d * KV_PAGE + 16 * j);
#pragma GCC unroll 6
        for (int i = 0; i < Q; i++) {
            __m512 q = _mm512_set1_ps(b->q[i][d]);
#pragma GCC unroll 4
            for (int j = 0; j < VECTORS; j++) s[i][j] = _mm512_fmadd_ps(q, k[j], s[i][j]);
        }
    }
}

/* Scores to probabilities p; updates m and l, scales acc. */
INLINE void softmax(float p[KV_PAGE], const __m512 s[VECTORS], int seen, float *m, float *l, float *acc, int v_dim,
                    bool first)
{
    __m512 top = _mm512_set1_ps(*m), sum = _mm512_setzero_ps();
    __mmask16 some[VECTORS];
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) {
        some[j] = seen > 16 * j ? lanes_left(seen - 16 * j) : 0;
        top = _mm512_mask_max_ps(top, some[j], s[j], top); /* a NaN in s[j] gives top */
    }
    float m_new = _mm512_reduce_max_ps(top) + 0.0f;
    __m512 m_all = _mm512_set1_ps(m_new);
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) {
        __m512 e = _mm512_maskz_mov_ps(some[j], kexp16(_mm512_sub_ps(s[j], m_all)));
        _mm512_storeu_ps(p + 16 * j, e);
        sum = _mm512_mask_add_ps(sum, some[j], sum, e);
    }
    float c = first ? 0 : kexp(*m - m_new);
    *l = fmaf(*l, c, fold16(sum));
    *m = m_new;
    __m512 c_all = _mm512_set1_ps(c);
    for (int d = 0; d < v_dim; d += 16) {
        __mmask16 part = lanes_left(v_dim - d);
        _mm512_mask_storeu_ps(acc + d, part, _mm512_mul_ps(_mm512_maskz_loadu_ps(part, acc + d), c_all));
    }
}

/* Adds the values of slots j0 .. j1, dimensions d0 .. d0 + 16 * n (the last vector masked), of Q queries. */
INLINE void values(const float p[QUERIES][KV_PAGE], float *const acc_out[QUERIES], const struct page *page,
                   int j0, int j1, int d0, int v_dim, const int Q, const int n, const bool wide)
{
    __m512 acc[QUERIES][VECTORS];
    __mmask16 part[VECTORS];
#pragma GCC unroll 4
    for (int x = 0; x < n; x++) part[x] = lanes_left(v_dim - d0 - 16 * x);
#pragma GCC unroll 6
    for (int i = 0; i < Q; i++)
#pragma GCC unroll 4
        for (int x = 0; x < n; x++) acc[i][x] = _mm512_maskz_loadu_ps(part[x], acc_out[i] + d0 + 16 * x);
    for (int j = j0; j < j1; j++) {
        __m512 v[VECTORS];
        if (!wide) {
            const uint16_t *next = page->next_v + j * v_dim + d0;
            prefetch_line(next);
            prefetch_line(next + 32);
        }
#pragma GCC unroll 4
        for (int x = 0; x < n; x++) {
            int at = j * v_dim + d0 + 16 * x;
            v[x] = wide ? _mm512_maskz_loadu_ps(part[x], page->v_wide + at)
                        : _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(part[x], page->v + at));
        }
#pragma GCC unroll 6
        for (int i = 0; i < Q; i++) {
            __m512 pj = _mm512_set1_ps(p[i][j]);
#pragma GCC unroll 4
            for (int x = 0; x < n; x++) acc[i][x] = _mm512_fmadd_ps(pj, v[x], acc[i][x]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < Q; i++)
#pragma GCC unroll 4
        for (int x = 0; x < n; x++) _mm512_mask_storeu_ps(acc_out[i] + d0 + 16 * x, part[x], acc[i][x]);
}

/* All dimensions. */
INLINE void all_values(const float p[QUERIES][KV_PAGE], float *const acc[QUERIES], const struct page *page,
                       int j0, int j1, int v_dim, const int Q, const bool wide)
{
    int d = 0;
    for (; d + 64 <= v_dim; d += 64) values(p, acc, page, j0, j1, d, v_dim, Q, 4, wide);
    for (; d < v_dim; d += 16) values(p, acc, page, j0, j1, d, v_dim, Q, 1, wide);
}

/* One page for Q queries, each of which sees some of it. */
INLINE void attend_page(const struct queries *b, const struct page *page, int k_dim, int v_dim, bool first,
                        float p[QUERIES][KV_PAGE], const int Q, const bool wide)
{
    __m512 s[QUERIES][VECTORS];
    int common = KV_PAGE;
    scores(s, b, page, k_dim, Q, wide);
#pragma GCC unroll 6
    for (int i = 0; i < Q; i++) {
        softmax(p[i], s[i], b->seen[i], b->m[i], b->l[i], b->acc[i], v_dim, first);
        if (b->seen[i] < common) common = b->seen[i];
    }
    all_values(p, b->acc, page, 0, common, v_dim, Q, wide);
    for (int i = 0; i < Q; i++) /* what only some of them see */
        if (b->seen[i] > common) all_values(p + i, b->acc + i, page, common, b->seen[i], v_dim, 1, wide);
}

#define DEFINE(Q)                                                                                                  \
    static void attend_page_##Q(const struct queries *b, const struct page *page, int k_dim, int v_dim,            \
                                bool first, bool wide, float p[QUERIES][KV_PAGE])                                  \
    {                                                                                                              \
        if (wide)                                                                                                  \
            attend_page(b, page, k_dim, v_dim, first, p, Q, true);                                                 \
        else                                                                                                       \
            attend_page(b, page, k_dim, v_dim, first, p, Q, false);                                                \
    }
DEFINE(1)
DEFINE(2)
DEFINE(3)
DEFINE(4)
DEFINE(5)
DEFINE(6)

typedef void attend_page_fn(const struct queries *b, const struct page *page, int k_dim, int v_dim, bool first,
                            bool wide, float p[QUERIES][KV_PAGE]);
static attend_page_fn *const attend_page_q[QUERIES + 1] = {
    NULL, attend_page_1, attend_page_2, attend_page_3, attend_page_4, attend_page_5, attend_page_6,
};

static void widen(float *out, const uint16_t *half, const uint16_t *next, int n)
{
    for (int i = 0; i < n; i += 32) {
        prefetch_line(next + i);
        _mm512_storeu_ps(out + i, load_half(half + i));
        _mm512_storeu_ps(out + i + 16, load_half(half + i + 16));
    }
}

void avx512_attend(const float *const *q, const int *n_keys, int n_q, int k_dim, int v_dim,
                   const uint16_t *const *k_pages, const uint16_t *const *v_pages, float *m, float *l, float *acc,
                   void *scratch)
{
    struct scratch *sc = scratch;
    int most_keys = 0;
    for (int i = 0; i < n_q; i++) {
        m[i] = -INFINITY;
        l[i] = 0;
        if (n_keys[i] > most_keys) most_keys = n_keys[i];
    }
    memset(acc, 0, sizeof *acc * (size_t)n_q * (size_t)v_dim);
    int n_blocks = (n_q + QUERIES - 1) / QUERIES, n_pages = (most_keys + KV_PAGE - 1) / KV_PAGE;
    bool wide = n_blocks > 2 && k_dim <= WIDE_DIM && v_dim <= WIDE_DIM;
    for (int j = 0; j < n_pages; j++) {
        int next = j + 1 < n_pages ? j + 1 : j;
        struct page page = {k_pages[j], v_pages[j], sc->k, sc->v, k_pages[next], v_pages[next]};
        if (wide) {
            widen(sc->k, page.k, page.next_k, k_dim * KV_PAGE);
            widen(sc->v, page.v, page.next_v, v_dim * KV_PAGE);
        }
        for (int i = 0; i < n_q;) {
            struct queries b;
            int n = 0;
            int left = n_q - i, blocks_left = (left + QUERIES - 1) / QUERIES;
            int most = (left + blocks_left - 1) / blocks_left; /* blocks of equal size */
            for (; i < n_q && n < most; i++) {
                int seen = n_keys[i] - j * KV_PAGE;
                if (seen <= 0) continue;
                b.q[n] = q[i];
                b.seen[n] = seen < KV_PAGE ? seen : KV_PAGE;
                b.m[n] = m + i;
                b.l[n] = l + i;
                b.acc[n++] = acc + (size_t)i * (size_t)v_dim;
            }
            if (n == 0) continue;
            attend_page_q[n](&b, &page, k_dim, v_dim, j == 0, wide, sc->p);
            page.next_k = page.k; /* fetched once */
            page.next_v = page.v;
        }
    }
}

void avx512_attend_merge(float *m, float *l, float *acc, float m2, float l2, const float *acc2, int v_dim)
{
    float top = kmax(*m, m2) + 0.0f;
    float a = *m == -INFINITY ? 0 : kexp(*m - top);
    float b = m2 == -INFINITY ? 0 : kexp(m2 - top);
    __m512 a_all = _mm512_set1_ps(a), b_all = _mm512_set1_ps(b);
    *l = fmaf(*l, a, l2 * b);
    for (int d = 0; d < v_dim; d += 16) {
        __mmask16 part = lanes_left(v_dim - d);
        __m512 x2 = _mm512_mul_ps(_mm512_maskz_loadu_ps(part, acc2 + d), b_all);
        _mm512_mask_storeu_ps(acc + d, part, _mm512_fmadd_ps(_mm512_maskz_loadu_ps(part, acc + d), a_all, x2));
    }
    *m = top;
}

void avx512_kv_store(uint16_t *k_page, uint16_t *v_page, const float *k, const float *v, int k_dim, int v_dim,
                     int slot)
{
    for (int d = 0; d < k_dim; d += 16) {
        uint16_t half[16];
        __m512 x = _mm512_maskz_loadu_ps(lanes_left(k_dim - d), k + d);
        _mm256_storeu_si256((void *)half, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        for (int i = 0; i < 16 && d + i < k_dim; i++) k_page[(d + i) * KV_PAGE + slot] = half[i];
    }
    for (int d = 0; d < v_dim; d += 16) {
        __mmask16 part = lanes_left(v_dim - d);
        __m256i half = _mm512_cvtps_ph(_mm512_maskz_loadu_ps(part, v + d), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm256_mask_storeu_epi16(v_page + slot * v_dim + d, part, half);
    }
}
