/* Attention over pages of the f16 KV cache, and what puts keys and values there.
 *
 * Up to QUERIES queries share every load of a page. Scores: lanes are keys, four vectors
 * for the 64 of a page, K lies transposed so that each step over the head's
 * dimension loads them and broadcasts one element per query. Values: lanes are the
 * head's dimension, 64 at a time. Registers: QUERIES * 4 sums + 4 loaded + 1
 * broadcast = 29.
 *
 * Many queries: up to CHUNK of them take a page together, first all their scores, then all their
 * values; K and then V are widened to float32 once for them, in the same 16 KB (heads of 64) to
 * 32 KB (of 128), which stay in L1.
 *
 * Slots that a query does not see may hold anything: their scores are masked before they are
 * used, and their values are not touched. Scratch is the caller's, one thread's own; any thread. */
#include "avx512.h"
#include "vector.h"

enum {
    QUERIES = 6,
    CHUNK = 66,
    CHUNK_BLOCKS = CHUNK / QUERIES,
    VECTORS = KV_PAGE / 16,
    WIDE_DIM = 256, /* largest head that is widened in scratch */
};

struct scratch {
    float wide[WIDE_DIM * KV_PAGE];
    float p[CHUNK][KV_PAGE];
};
_Static_assert(sizeof(struct scratch) <= AVX512_SCRATCH_BYTES, "AVX512_SCRATCH_BYTES is too small");

/* K or V of one page, as stored or, if wide is not NULL, widened; next: the page to be fetched meanwhile. */
struct page {
    const uint16_t *half, *next;
    const float *wide;
};

/* A block of queries and their running results. */
struct queries {
    int n, common;     /* queries, and the slots that all of them see */
    const float *q[QUERIES];
    int seen[QUERIES]; /* keys of this page, 1..KV_PAGE */
    float *m[QUERIES], *l[QUERIES], *acc[QUERIES];
};

/* Each line twice, 1 KB apart: the second pass over a page of memory keeps the L2 streamer ahead of the first. */
INLINE void prefetch_line(const uint16_t *p)
{
    _mm_prefetch((const char *)p, _MM_HINT_T1);
    _mm_prefetch((const char *)p + 1024, _MM_HINT_T1);
}

INLINE __m512 load_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }

INLINE void scores(float out[QUERIES][KV_PAGE], const struct queries *b, const struct page *page, int k_dim,
                   const int Q, const bool wide)
{
    __m512 s[QUERIES][VECTORS];
#pragma GCC unroll 6
    for (int i = 0; i < Q; i++)
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++) s[i][j] = _mm512_setzero_ps();
    for (int d = 0; d < k_dim; d++) {
        __m512 k[VECTORS];
        if (!wide) {
            prefetch_line(page->next + d * KV_PAGE);
            prefetch_line(page->next + d * KV_PAGE + KV_PAGE / 2);
        }
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++)
            k[j] = wide ? _mm512_loadu_ps(page->wide + d * KV_PAGE + 16 * j)
                        : load_half(page->half + d * KV_PAGE + 16 * j);
#pragma GCC unroll 6
        for (int i = 0; i < Q; i++) {
            __m512 q = _mm512_set1_ps(b->q[i][d]);
#pragma GCC unroll 4
            for (int j = 0; j < VECTORS; j++) s[i][j] = _mm512_fmadd_ps(q, k[j], s[i][j]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < Q; i++)
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++) _mm512_storeu_ps(out[i] + 16 * j, s[i][j]);
}

/* fold16, or the maximum, of four vectors at once. */
INLINE void reduce4(float out[4], const __m512 v[4], const bool add)
{
#define OP(a, b) (add ? _mm512_add_ps(a, b) : _mm512_max_ps(a, b))
    __m512 half[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) /* lanes l and l + 8 of the first vector in the low half, of the second in the high one */
        half[i] = OP(_mm512_mask_blend_ps(0xff00, v[2 * i], v[2 * i + 1]),
                     _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x4e));
    __m512 quarters = OP(_mm512_shuffle_f32x4(half[0], half[1], 0x88), _mm512_shuffle_f32x4(half[0], half[1], 0xdd));
    quarters = OP(quarters, _mm512_permute_ps(quarters, 0x4e));
    quarters = OP(quarters, _mm512_permute_ps(quarters, 0xb1));
#undef OP
    const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(first, quarters)));
}

enum { REDUCED = (QUERIES + 3) / 4 * 4 };

INLINE void reduce(float out[REDUCED], const __m512 v[REDUCED], int n, const bool add)
{
    for (int i = 0; i < n; i += 4) reduce4(out + i, v + i, add);
}

/* The block's scores in p become probabilities; updates m and l, scales acc. */
static void softmax(float p[QUERIES][KV_PAGE], const struct queries *b, int v_dim, bool first)
{
    __m512 of_each[REDUCED];
    float m[REDUCED], sum[REDUCED];
    for (int i = b->n; i < REDUCED; i++) of_each[i] = _mm512_setzero_ps();
    for (int i = 0; i < b->n; i++) {
        uint64_t slots = b->seen[i] < KV_PAGE ? (1ULL << b->seen[i]) - 1 : ~0ULL;
        __m512 top = _mm512_set1_ps(*b->m[i]);
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++) /* a NaN among the scores gives top */
            top = _mm512_mask_max_ps(top, (__mmask16)(slots >> 16 * j), _mm512_loadu_ps(p[i] + 16 * j), top);
        of_each[i] = top;
    }
    reduce(m, of_each, b->n, false);
    for (int i = 0; i < b->n; i++) {
        uint64_t slots = b->seen[i] < KV_PAGE ? (1ULL << b->seen[i]) - 1 : ~0ULL;
        __m512 all = _mm512_setzero_ps(), m_all = _mm512_set1_ps(m[i] += 0.0f);
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++) {
            __mmask16 some = (__mmask16)(slots >> 16 * j);
            __m512 e = _mm512_maskz_mov_ps(some, kexp16(_mm512_sub_ps(_mm512_loadu_ps(p[i] + 16 * j), m_all)));
            _mm512_storeu_ps(p[i] + 16 * j, e);
            all = _mm512_mask_add_ps(all, some, all, e);
        }
        of_each[i] = all;
    }
    reduce(sum, of_each, b->n, true);
    for (int i = 0; i < b->n; i++) {
        float before = *b->m[i], *l = b->l[i], *acc = b->acc[i];
        *b->m[i] = m[i];
        if (first || before == m[i]) { /* acc is 0, or is to be multiplied by kexp(0) = 1 */
            *l = sum[i] + *l;
            continue;
        }
        float c = kexp(before - m[i]);
        *l = fmaf(*l, c, sum[i]);
        __m512 c_all = _mm512_set1_ps(c);
        for (int d = 0; d < v_dim; d += 16) {
            __mmask16 part = lanes_left(v_dim - d);
            _mm512_mask_storeu_ps(acc + d, part, _mm512_mul_ps(_mm512_maskz_loadu_ps(part, acc + d), c_all));
        }
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
            const uint16_t *next = page->next + j * v_dim + d0;
            prefetch_line(next);
            prefetch_line(next + 32);
        }
#pragma GCC unroll 4
        for (int x = 0; x < n; x++) {
            int at = j * v_dim + d0 + 16 * x;
            v[x] = wide ? _mm512_maskz_loadu_ps(part[x], page->wide + at)
                        : _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(part[x], page->half + at));
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

INLINE void block_values(const struct queries *b, const struct page *v, int v_dim, const float p[QUERIES][KV_PAGE],
                         const int Q, const bool wide)
{
    all_values(p, b->acc, v, 0, b->common, v_dim, Q, wide);
    for (int i = 0; i < Q; i++) /* what only some of them see */
        if (b->seen[i] > b->common) all_values(p + i, b->acc + i, v, b->common, b->seen[i], v_dim, 1, wide);
}

#define DEFINE(Q)                                                                                                  \
    static void scores_##Q(float p[QUERIES][KV_PAGE], const struct queries *b, const struct page *k, int k_dim)     \
    {                                                                                                              \
        if (k->wide)                                                                                               \
            scores(p, b, k, k_dim, Q, true);                                                                       \
        else                                                                                                       \
            scores(p, b, k, k_dim, Q, false);                                                                      \
    }                                                                                                              \
    static void values_##Q(const struct queries *b, const struct page *v, int v_dim, float p[QUERIES][KV_PAGE])    \
    {                                                                                                              \
        if (v->wide)                                                                                               \
            block_values(b, v, v_dim, p, Q, true);                                                                 \
        else                                                                                                       \
            block_values(b, v, v_dim, p, Q, false);                                                                \
    }
DEFINE(1)
DEFINE(2)
DEFINE(3)
DEFINE(4)
DEFINE(5)
DEFINE(6)

typedef void scores_fn(float p[QUERIES][KV_PAGE], const struct queries *b, const struct page *k, int k_dim);
typedef void values_fn(const struct queries *b, const struct page *v, int v_dim, float p[QUERIES][KV_PAGE]);
static scores_fn *const scores_of[QUERIES + 1] = {NULL, scores_1, scores_2, scores_3, scores_4, scores_5, scores_6};
static values_fn *const values_of[QUERIES + 1] = {NULL, values_1, values_2, values_3, values_4, values_5, values_6};

/* A page as it is taken: widened into buffer, or as stored if that is NULL. */
static struct page open_page(const uint16_t *half, const uint16_t *next, int n, float *buffer)
{
    struct page page = {.half = half, .next = next ? next : half, .wide = buffer};
    for (int i = 0; buffer && i < n; i += 32) {
        prefetch_line(page.next + i);
        _mm512_storeu_ps(buffer + i, load_half(half + i));
        _mm512_storeu_ps(buffer + i + 16, load_half(half + i + 16));
    }
    return page;
}

/* Queries first .. end-1 that see some of page j. */
static struct queries gather_block(const float *const *q, const int *n_keys, int first, int end, int j, int v_dim, float *m,
                                   float *l, float *acc)
{
    struct queries b = {.n = 0, .common = KV_PAGE};
    for (int i = first; i < end; i++) {
        int seen = n_keys[i] - j * KV_PAGE;
        if (seen <= 0) continue;
        if (seen < b.common) b.common = seen;
        b.q[b.n] = q[i];
        b.seen[b.n] = seen < KV_PAGE ? seen : KV_PAGE;
        b.m[b.n] = m + i;
        b.l[b.n] = l + i;
        b.acc[b.n++] = acc + (size_t)i * (size_t)v_dim;
    }
    return b;
}

/* At most CHUNK queries. */
static void attend_chunk(const float *const *q, const int *n_keys, int n_q, int k_dim, int v_dim,
                         const uint16_t *const *k_pages, const uint16_t *const *v_pages, float *m, float *l, float *acc,
                         struct scratch *sc)
{
    int n_blocks = (n_q + QUERIES - 1) / QUERIES, most_keys = 0;
    for (int i = 0; i < n_q; i++) {
        m[i] = -INFINITY;
        l[i] = 0;
        if (n_keys[i] > most_keys) most_keys = n_keys[i];
    }
    memset(acc, 0, sizeof *acc * (size_t)n_q * (size_t)v_dim);
    float *buffer = n_blocks > 2 && k_dim <= WIDE_DIM && v_dim <= WIDE_DIM ? sc->wide : NULL;
    for (int j = 0; j * KV_PAGE < most_keys; j++) {
        struct queries blocks[CHUNK_BLOCKS];
        struct page k = open_page(k_pages[j], k_pages[j + 1], k_dim * KV_PAGE, buffer);
        for (int b = 0; b < n_blocks; b++) { /* of (nearly) equal size */
            struct queries *block = &blocks[b];
            float(*p)[KV_PAGE] = sc->p + QUERIES * b;
            *block = gather_block(q, n_keys, n_q * b / n_blocks, n_q * (b + 1) / n_blocks, j, v_dim, m, l, acc);
            if (block->n == 0) continue;
            scores_of[block->n](p, block, &k, k_dim);
            k.next = k.half; /* fetched once */
            softmax(p, block, v_dim, j == 0);
        }
        struct page v = open_page(v_pages[j], v_pages[j + 1], v_dim * KV_PAGE, buffer);
        for (int b = 0; b < n_blocks; b++) {
            if (blocks[b].n == 0) continue;
            values_of[blocks[b].n](&blocks[b], &v, v_dim, sc->p + QUERIES * b);
            v.next = v.half;
        }
    }
}

void avx512_attend(const float *const *q, const int *n_keys, int n_q, int k_dim, int v_dim,
                   const uint16_t *const *k_pages, const uint16_t *const *v_pages, float *m, float *l, float *acc,
                   void *scratch)
{
    for (int i = 0; i < n_q; i += CHUNK)
        attend_chunk(q + i, n_keys + i, n_q - i < CHUNK ? n_q - i : CHUNK, k_dim, v_dim, k_pages, v_pages, m + i, l + i,
                     acc + (size_t)i * (size_t)v_dim, scratch);
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
