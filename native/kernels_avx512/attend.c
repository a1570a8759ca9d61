/* Attention over pages of the KV cache, and what makes integers of queries, keys and values.
 *
 * Up to ATTEND_QUERIES queries share every load of a page. Scores and values are one product, of the queries' integers with rows of
 * pairs, of K or of V: lanes are keys, four vectors for the 64 of a page, or elements of the head, 64 at a time; VPDPWSSD adds
 * both products of a pair. Registers: ATTEND_QUERIES * 4 sums + 4 loaded + 1 broadcast = 29.
 *
 * Slots that a query does not see may hold anything: their scores are masked before they are
 * used, and their values are multiplied by 0. Scratch is the caller's, one thread's own; any thread. */
#include "attend_pages.h"
#include "avx512.h"
#include "vector.h"

enum { VECTORS = KV_PAGE / 16 };

_Static_assert(sizeof(struct attend_scratch) <= AVX512_SCRATCH_BYTES, "AVX512_SCRATCH_BYTES is too small");

/* Do it now: left alone, GCC copies every sum twice for each product, and keeps a second set of them in memory. */
#ifdef __AVX512F__
#define SETTLE(v) __asm__("" : "+v"(v))
#else /* emulated */
#define SETTLE(v) (void)(v)
#endif

/* Scales of sixteen keys or values. */
INLINE __m512 load_scales(const uint16_t *upper)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)upper)), 16));
}

/* Of n_v vectors of sums from column col, the last lanes masked. */
INLINE void put(const struct attend_output *o, int i, int col, const __m512i *sum, const int n_v, __mmask16 part)
{
    float *y = o->y[i] + col;
    __m512 by = _mm512_set1_ps(o->by[i]);
    if (o->scale) { /* of KV_PAGE keys */
        const uint16_t *scale = o->scale + col;
#pragma GCC unroll 4
        for (int v = 0; v < n_v; v++) {
            __m512 each = _mm512_mul_ps(load_scales(scale + 16 * v), by);
            _mm512_storeu_ps(y + 16 * v, _mm512_mul_ps(_mm512_cvtepi32_ps(sum[v]), each));
        }
    } else {
        __m512 c = o->c ? _mm512_set1_ps(o->c[i]) : _mm512_setzero_ps();
#pragma GCC unroll 4
        for (int v = 0; v < n_v; v++) {
            __m512 before = o->c ? _mm512_mul_ps(_mm512_maskz_loadu_ps(part, y + 16 * v), c) : c;
            _mm512_mask_storeu_ps(y + 16 * v, part, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[v]), by, before));
        }
    }
}

/* A pair of integers, in each lane. */
INLINE __m512i broadcast_pair(const int16_t *x)
{
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    return _mm512_set1_epi32(pair);
}

/* Each line twice, 1 KB apart: the second pass over a page of memory keeps the L2 streamer ahead of the first. */
INLINE void prefetch_line(const void *p)
{
    _mm_prefetch((const char *)p, _MM_HINT_T1);
    _mm_prefetch((const char *)p + 1024, _MM_HINT_T1);
}

/* Columns col .. col + 16*n_v, the last vector masked, of Q queries: two strips, or a vector of one. */
INLINE void pass(const struct attend_output *o, const int16_t *const *x, const struct attend_rows *r, int col, const int Q,
                 const int n_v, const bool fetch)
{
    const int at = col / KV_STRIP * r->strip + 2 * (col % KV_STRIP), stride = attend_stride(r, col);
    const int16_t *row = r->at + at, *next = fetch ? r->next + at : NULL;
    const __mmask16 part = n_v > 1 ? 0xffff : lanes_left(r->width - col);
    __m512i sum[ATTEND_QUERIES][VECTORS];
#pragma GCC unroll 6
    for (int i = 0; i < Q; i++)
#pragma GCC unroll 4
        for (int v = 0; v < n_v; v++) sum[i][v] = _mm512_setzero_si512();
    for (int t = 0; t < r->n; t++, row += stride) {
        __m512i k[VECTORS];
        if (fetch) {
#pragma GCC unroll 4
            for (int v = 0; v < n_v; v++) prefetch_line(next + v / 2 * r->strip + v % 2 * 32);
            next += stride;
        }
#pragma GCC unroll 4
        for (int v = 0; v < n_v; v++) k[v] = _mm512_maskz_loadu_epi32(part, row + v / 2 * r->strip + v % 2 * 32);
#pragma GCC unroll 6
        for (int i = 0; i < Q; i++) {
            __m512i pair = broadcast_pair(x[i] + 2 * t);
#pragma GCC unroll 4
            for (int v = 0; v < n_v; v++) {
                sum[i][v] = _mm512_dpwssd_epi32(sum[i][v], pair, k[v]);
                SETTLE(sum[i][v]);
            }
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < Q; i++) put(o, i, col, sum[i], n_v, part);
}

/* attend_product_fn of Q queries. */
INLINE void product(const struct attend_output *o, const int16_t *const *x, const struct attend_rows *r, const int Q,
                    const bool fetch)
{
    int col = 0;
    for (; col + 64 <= r->width; col += 64) pass(o, x, r, col, Q, 4, fetch);
    for (; col < r->width; col += 16) pass(o, x, r, col, Q, 1, fetch);
}

#define DEFINE(Q)                                                                                      \
    static void product_##Q(const struct attend_output *o, const int16_t *const *x, const struct attend_rows *r)     \
    {                                                                                                  \
        if (r->next)                                                                                   \
            product(o, x, r, Q, true);                                                                 \
        else                                                                                           \
            product(o, x, r, Q, false);                                                                \
    }
DEFINE(1)
DEFINE(2)
DEFINE(3)
DEFINE(4)
DEFINE(5)
DEFINE(6)
#undef DEFINE

enum operation { ADD, MAX, MAX_BITS };

INLINE __m512 operate(__m512 a, __m512 b, const enum operation op)
{
    if (op == ADD) return _mm512_add_ps(a, b);
    if (op == MAX) return _mm512_max_ps(a, b);
    return _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}

/* fold16, or the largest, of four vectors at once. */
INLINE void reduce4(float out[4], const __m512 v[4], const enum operation op)
{
    __m512 half[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) /* lanes l and l + 8 of the first vector in the low half, of the second in the high one */
        half[i] = operate(_mm512_mask_blend_ps(0xff00, v[2 * i], v[2 * i + 1]),
                          _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x4e), op);
    __m512 quarters = operate(_mm512_shuffle_f32x4(half[0], half[1], 0x88), _mm512_shuffle_f32x4(half[0], half[1], 0xdd), op);
    quarters = operate(quarters, _mm512_permute_ps(quarters, 0x4e), op);
    quarters = operate(quarters, _mm512_permute_ps(quarters, 0xb1), op);
    const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(first, quarters)));
}

enum { REDUCED = (ATTEND_QUERIES + 3) / 4 * 4 };

INLINE void reduce(float out[16], const __m512 v[REDUCED], int n, const enum operation op)
{
    for (int i = 0; i < n; i += 4) reduce4(out + i, v + i, op);
}

/* Of page slots 16*j and up, those that a query sees. */
INLINE __mmask16 seen_of(int seen, int j) { return seen > 16 * j ? lanes_left(seen - 16 * j) : 0; }

/* What is one number a query is done for all of them in one register. */
static void soften(struct attend_scratch *s, const struct attend_block *b, const uint16_t *v_scale, bool first,
                   float c[ATTEND_LANES], float scale[ATTEND_LANES])
{
    _Alignas(64) float m[ATTEND_LANES] = {0}, sum[ATTEND_LANES] = {0}, top[ATTEND_LANES] = {0}, before[ATTEND_LANES] = {0};
    _Alignas(64) float inv[ATTEND_LANES];
    __m512 of_each[REDUCED], top_of_each[REDUCED];
    for (int i = b->n; i < REDUCED; i++) of_each[i] = top_of_each[i] = _mm512_setzero_ps();
    for (int i = 0; i < b->n; i++) {
        __m512 all = _mm512_set1_ps(before[i] = *b->m[i]);
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++) /* a NaN among the scores gives the other operand */
            all = _mm512_mask_max_ps(all, seen_of(b->seen[i], j), _mm512_load_ps(s->p[i] + 16 * j), all);
        of_each[i] = all;
    }
    reduce(m, of_each, b->n, MAX);
    __m512 tops = _mm512_add_ps(_mm512_load_ps(m), _mm512_setzero_ps());
    _mm512_store_ps(m, tops);
    _mm512_store_ps(c, first ? _mm512_setzero_ps() : kexp16(_mm512_sub_ps(_mm512_load_ps(before), tops)));
    for (int i = 0; i < b->n; i++) {
        __m512 all = _mm512_setzero_ps(), m_all = _mm512_set1_ps(m[i]);
        __m512i largest = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++) {
            __mmask16 some = seen_of(b->seen[i], j);
            __m512 e = kexp16(_mm512_sub_ps(_mm512_load_ps(s->p[i] + 16 * j), m_all));
            all = _mm512_mask_add_ps(all, some, all, e);
            __m512 w = _mm512_maskz_mov_ps(some, _mm512_mul_ps(e, load_scales(v_scale + 16 * j)));
            /* None is negative, but NaN may be: above all others either way. */
            largest = _mm512_max_epu32(largest, _mm512_castps_si512(w));
            _mm512_store_ps(s->p[i] + 16 * j, w);
        }
        of_each[i] = all;
        top_of_each[i] = _mm512_castsi512_ps(largest);
    }
    reduce(sum, of_each, b->n, ADD);
    reduce(top, top_of_each, b->n, MAX_BITS);

    /* kquant_scale; number: neither NaN nor infinite */
    __m512 largest = _mm512_load_ps(top), by = _mm512_set1_ps(WEIGHT_LEVELS);
    __mmask16 number = _mm512_cmplt_epu32_mask(_mm512_castps_si512(largest), _mm512_set1_epi32(0x7f800000));
    __mmask16 some = _mm512_mask_cmp_ps_mask(number, largest, _mm512_set1_ps(KQUANT_TINY), _CMP_NLT_UQ);
    __m512 scales = _mm512_maskz_mov_ps(some, _mm512_div_ps(largest, by));
    _mm512_store_ps(scale, _mm512_mask_mov_ps(_mm512_set1_ps(kfloat_of_bits(0x7fc00000u)), number, scales));
    _mm512_store_ps(inv, _mm512_div_ps(by, largest));

    for (int i = 0; i < b->n; i++) {
        __m512 each = _mm512_set1_ps(inv[i]);
        __mmask16 any = (__mmask16)-(some >> i & 1);
        *b->m[i] = m[i];
        *b->l[i] = fmaf(*b->l[i], c[i], sum[i]);
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++) {
            __m512i w = _mm512_maskz_cvtps_epi32(any, _mm512_mul_ps(_mm512_load_ps(s->p[i] + 16 * j), each));
            _mm256_storeu_si256((void *)(s->weight[i] + 16 * j), _mm512_cvtepi32_epi16(w));
        }
    }
}

static const struct attend_kernel kernel = {
    .product = {NULL, product_1, product_2, product_3, product_4, product_5, product_6},
    .key_step = KV_PAGE,
    .soften = soften,
};

void avx512_attend(const struct kv_query *queries, int n_q, int k_dim, int v_dim, const struct kv_head *pages, float *m,
                   float *l, float *acc, void *scratch)
{
    attend_pages(&kernel, queries, n_q, k_dim, v_dim, pages, m, l, acc, scratch);
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

float avx512_narrow(int16_t *y, const float *x, int n, enum narrow_by by)
{
    __m512 all = _mm512_setzero_ps();
    __m512i magnitude = _mm512_set1_epi32(0x7fffffff), largest = _mm512_setzero_si512();
    uint32_t top_bits;
    for (int i = 0; i < n; i += 16) { /* zeros change neither */
        __m512 v = _mm512_maskz_loadu_ps(lanes_left(n - i), x + i);
        all = _mm512_fmadd_ps(v, v, all);
        largest = _mm512_max_epu32(largest, _mm512_and_si512(_mm512_castps_si512(v), magnitude));
    }
    if (by == NARROW_BY_LENGTH) {
        top_bits = klength_bits(fold16(all));
    } else {
        __m512 v = _mm512_castsi512_ps(largest), same[4] = {v, v, v, v};
        float top[4];
        reduce4(top, same, MAX_BITS);
        top_bits = kbits_of_float(top[0]);
    }
    float inv, scale = kquant_scale_upper(top_bits, by == NARROW_BY_LENGTH ? KEY_LEVELS : VALUE_LEVELS, &inv);
    __m512 each = _mm512_set1_ps(inv);
    for (int i = 0; i < n; i += 16) {
        __mmask16 some = lanes_left(n - i);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, x + i), each);
        __m512i integers = _mm512_maskz_cvtps_epi32(inv > 0 ? 0xffff : 0, v); /* NaN times 0 is not 0 */
        _mm256_mask_storeu_epi16(y + i, lanes_left((n - i + 1) / 2 * 2), _mm512_cvtepi32_epi16(integers));
    }
    return scale;
}
