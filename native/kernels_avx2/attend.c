/* Attention over pages of the KV cache. Memory is the caller's; any thread.
 *
 * Page by page, so that a page's K and V (33 KB for heads of 128) are read from L1 or L2 by all queries.
 * Scores and values are one product, of a few queries' integers with rows of pairs, of K or of V: a lane is a key or an
 * element of the head, no sum crosses lanes, and every load of K or V serves all the queries of a block. VPMADDWD multiplies
 * a row with a query's pair and adds the two products, twice as many in an instruction as an FMA of floats.
 *
 * Registers: sums wait for nothing but an addition, so what counts is how many products a load serves. Twelve sums leave
 * four: 3 queries x 4 vectors with a broadcast of each query, the row from memory, or 6 x 2 with both vectors and one
 * broadcast at a time. There is not one to spare: hence a function of its own for each number of queries, in which no constant
 * of the softmax is kept in a register.
 *
 * Decoding, K and V come from memory, and there are few queries to pay for it. The page that comes
 * next is fetched into L2 meanwhile: as large a share of it as the queries see of this page. */
#include "attend_pages.h"
#include "avx2.h"
#include "simd.h"

const size_t avx2_attend_scratch = sizeof(struct attend_scratch);

/* Scales of eight keys or values. */
INLINE __m256 load_scales(const uint16_t *upper)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)upper)), 16));
}

/* Of n_v vectors of sums from column col. */
INLINE void put(const struct attend_output *o, int i, int col, const __m256i *sum, const int n_v)
{
    float *y = o->y[i] + col;
    __m256 by = _mm256_set1_ps(o->by[i]);
    if (o->scale) {
        const uint16_t *scale = o->scale + col;
#pragma GCC unroll 4
        for (int v = 0; v < n_v; v++) {
            __m256 each = _mm256_mul_ps(load_scales(scale + 8 * v), by);
            _mm256_storeu_ps(y + 8 * v, _mm256_mul_ps(_mm256_cvtepi32_ps(sum[v]), each));
        }
    } else {
        __m256 c = o->c ? _mm256_set1_ps(o->c[i]) : _mm256_setzero_ps();
#pragma GCC unroll 4
        for (int v = 0; v < n_v; v++) {
            __m256 before = o->c ? _mm256_mul_ps(_mm256_loadu_ps(y + 8 * v), c) : c;
            _mm256_storeu_ps(y + 8 * v, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[v]), by, before));
        }
    }
}

INLINE void fetch_line(const int16_t **next)
{
    _mm_prefetch((const char *)*next, _MM_HINT_T1);
    *next += CACHE_LINE / (int)sizeof **next;
}

/* Columns col .. col + 8*n_v of product() for n_q queries; they lie in one strip.
 *
 * fetch: also asks for these columns' share of next, a line a row for every two vectors. So the requests are
 * spread over the page's work, since a processor can only wait for some 20 lines at a time. They are in the order of
 * memory, which keeps the processor's own prefetcher ahead of them. */
INLINE void pass(const struct attend_output *o, const int16_t *const *x, const struct attend_rows *r, int col, const int n_q,
                 const int n_v, const bool fetch)
{
    const int n = r->n, stride = attend_stride(r, col);
    const int16_t *row = r->at + col / KV_STRIP * r->strip + 2 * (col % KV_STRIP);
    const int16_t *next = fetch ? r->next + col * n * 2 : NULL;
    __m256i sum[ATTEND_QUERIES][4];
#pragma GCC unroll 6
    for (int i = 0; i < n_q; i++)
#pragma GCC unroll 4
        for (int v = 0; v < n_v; v++) sum[i][v] = _mm256_setzero_si256();
    for (int t = 0; t < n; t++) {
        if (n_v > 2) {
            __m256i w[ATTEND_QUERIES];
#pragma GCC unroll 6
            for (int i = 0; i < n_q; i++) w[i] = broadcast4(x[i] + 2 * t);
#pragma GCC unroll 4
            for (int v = 0; v < n_v; v++) {
                __m256i k = _mm256_loadu_si256((const __m256i *)(row + 16 * v));
                if (fetch && v % 2 == 0) fetch_line(&next);
#pragma GCC unroll 6
                for (int i = 0; i < n_q; i++) {
                    sum[i][v] = _mm256_add_epi32(sum[i][v], _mm256_madd_epi16(w[i], k));
                    SETTLE(sum[i][v]);
                }
            }
        } else {
            __m256i k[2];
            if (fetch) fetch_line(&next);
#pragma GCC unroll 2
            for (int v = 0; v < n_v; v++) k[v] = _mm256_loadu_si256((const __m256i *)(row + 16 * v));
#pragma GCC unroll 6
            for (int i = 0; i < n_q; i++) {
                __m256i w = broadcast4(x[i] + 2 * t);
#pragma GCC unroll 2
                for (int v = 0; v < n_v; v++) {
                    sum[i][v] = _mm256_add_epi32(sum[i][v], _mm256_madd_epi16(w, k[v]));
                    SETTLE(sum[i][v]);
                }
            }
        }
        row += stride;
    }
#pragma GCC unroll 6
    for (int i = 0; i < n_q; i++) put(o, i, col, sum[i], n_v);
}

/* Passes of 8*n_v columns, as many as fit, from col. Returns the first column that is left. */
INLINE int passes(const struct attend_output *o, const int16_t *const *x, const struct attend_rows *r, int col, const int n_q,
                  const int n_v)
{
    for (; col + 8 * n_v <= r->width; col += 8 * n_v) {
        if (n_v > 1 && r->next) /* whole lines */
            pass(o, x, r, col, n_q, n_v, true);
        else
            pass(o, x, r, col, n_q, n_v, false);
    }
    return col;
}

/* attend_product_fn of n_q queries. */
INLINE void product(const struct attend_output *o, const int16_t *const *x, const struct attend_rows *r, const int n_q)
{
    int col = 0;
    if (n_q <= 3) col = passes(o, x, r, col, n_q, 4);
    col = passes(o, x, r, col, n_q, 2);
    col = passes(o, x, r, col, n_q, 1);
    for (; col < r->width; col++) { /* of V: there are KV_PAGE keys */
        for (int i = 0; i < n_q; i++) {
            int32_t sum = 0;
            for (int t = 0; t < r->n; t++) {
                const int16_t *pair = r->at + kv_v_at(r->all, 2 * t, col);
                sum += x[i][2 * t] * pair[0] + x[i][2 * t + 1] * pair[1];
            }
            o->y[i][col] = fmaf((float)sum, o->by[i], o->c ? o->y[i][col] * o->c[i] : 0);
        }
    }
}

#define DEFINE(n_q)                                                                                        \
    static void product_##n_q(const struct attend_output *o, const int16_t *const *x, const struct attend_rows *r)       \
    {                                                                                                      \
        product(o, x, r, n_q);                                                                             \
    }
DEFINE(1)
DEFINE(2)
DEFINE(3)
DEFINE(4)
DEFINE(5)
DEFINE(6)
#undef DEFINE

/* Scores of unseen keys become such whose weight is 0, up to a multiple of 16 keys. */
INLINE void hide_unseen(float *p, int seen)
{
    for (int j = seen / 8 * 8; j % 16 || j < seen; j += 8) {
        __m256 visible = _mm256_castsi256_ps(lanes_below(seen - j));
        _mm256_store_ps(p + j, _mm256_blendv_ps(_mm256_set1_ps(-INFINITY), _mm256_load_ps(p + j), visible));
    }
}

/* Lane by lane, the larger of m and some of the scores; a NaN among them is passed over. */
INLINE __m256 highest(const float *p, int seen, float m)
{
    __m256 even = _mm256_set1_ps(m), odd = even;
    for (int j = 0; j < seen; j += 16) { /* in this order max passes over NaN */
        even = _mm256_max_ps(_mm256_load_ps(p + j), even);
        odd = _mm256_max_ps(_mm256_load_ps(p + j + 8), odd);
    }
    return _mm256_max_ps(odd, even);
}

INLINE uint32_t largest_of(__m256i v)
{
    __m128i top = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    top = _mm_max_epu32(top, _mm_shuffle_epi32(top, 0x4e));
    top = _mm_max_epu32(top, _mm_shuffle_epi32(top, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(top);
}

/* What eight scores weigh, and added to *sum; then times v_scale, for those below `seen` only, and the largest of these in *top. */
INLINE void weigh_8(float *p, const uint16_t *v_scale, __m256 m, int seen, const bool all, __m256 *sum, __m256i *top)
{
    __m256 e = exp8_capped(_mm256_sub_ps(_mm256_load_ps(p), m));
    *sum = _mm256_add_ps(*sum, e);
    __m256i w = _mm256_castps_si256(_mm256_mul_ps(e, load_scales(v_scale)));
    if (!all) w = _mm256_and_si256(w, lanes_below(seen)); /* scales of other slots may be anything */
    *top = _mm256_max_epu32(*top, w); /* none is negative, but NaN may be: above all others either way */
    _mm256_store_si256((__m256i *)p, w);
}

/* Turns scores into weights, and these into weights of values' integers: times v_scale. *sums: the weights', as lanes16 of kernels.h,
 * the upper lanes added to the lower ones; *tops: the largest of the integers' weights, lane by lane. */
INLINE void weigh(float *p, const uint16_t *v_scale, int seen, float m, __m256 *sums, __m256i *tops)
{
    __m256 lo = _mm256_setzero_ps(), hi = lo, m8 = _mm256_set1_ps(m);
    __m256i top_lo = _mm256_setzero_si256(), top_hi = top_lo;
    int j = 0;
    for (; j + 16 <= seen; j += 16) {
        weigh_8(p + j, v_scale + j, m8, 0, true, &lo, &top_lo);
        weigh_8(p + j + 8, v_scale + j + 8, m8, 0, true, &hi, &top_hi);
    }
    if (j < seen) {
        weigh_8(p + j, v_scale + j, m8, seen - j, false, &lo, &top_lo);
        weigh_8(p + j + 8, v_scale + j + 8, m8, seen - j - 8, false, &hi, &top_hi);
    }
    *sums = _mm256_add_ps(lo, hi);
    *tops = _mm256_max_epu32(top_lo, top_hi);
}

/* round(p * inv), and as often 0 as other queries see more keys. any: all ones, or 0: all are 0. */
INLINE void to_integers(int16_t *out, const float *p, int seen, int most, float inv, int32_t any)
{
    __m256 each = _mm256_set1_ps(inv);
    __m256i mask = _mm256_set1_epi32(any);
    int j = 0;
    for (; j < seen; j += 16) {
        __m256i lo = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_load_ps(p + j), each));
        __m256i hi = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_load_ps(p + j + 8), each));
        __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(lo, hi), 0xd8);
        _mm256_store_si256((__m256i *)(out + j), _mm256_and_si256(packed, mask));
    }
    for (; j < most; j += 16) _mm256_store_si256((__m256i *)(out + j), _mm256_setzero_si256());
}

/* kquant_scale with WEIGHT_LEVELS in eight lanes; any: all ones where integers may be other than 0. */
INLINE void weight_scales(__m256i top, float scale[8], float inv[8], int32_t any[8])
{
    __m256 largest = _mm256_castsi256_ps(top), by = _mm256_set1_ps(WEIGHT_LEVELS);
    __m256 number = _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_min_epu32(top, _mm256_set1_epi32(0x7f7fffff)), top));
    __m256 some = _mm256_and_ps(number, _mm256_cmp_ps(largest, _mm256_set1_ps(KQUANT_TINY), _CMP_NLT_UQ));
    __m256 scales = _mm256_and_ps(some, _mm256_div_ps(largest, by));
    _mm256_store_ps(scale, _mm256_blendv_ps(_mm256_set1_ps(kfloat_of_bits(0x7fc00000u)), scales, number));
    _mm256_store_ps(inv, _mm256_and_ps(some, _mm256_div_ps(by, largest)));
    _mm256_store_ps((float *)any, some);
}

enum fold_by { FOLD_SUM, FOLD_MAX, FOLD_MAX_BITS };

INLINE __m256 fold_two(__m256 a, __m256 b, enum fold_by by)
{
    switch (by) {
    case FOLD_SUM: return _mm256_add_ps(a, b);
    case FOLD_MAX: return _mm256_max_ps(a, b);
    case FOLD_MAX_BITS: break;
    }
    return _mm256_castsi256_ps(_mm256_max_epu32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}

/* Lane i = v[i] folded in the order of lanes16: lane j with j + 4, then with j + 2, then with j + 1. All at once, since one alone is
 * a chain of latencies that the processor can't look beyond. */
INLINE __m256 fold_each(const __m256 v[8], enum fold_by by)
{
    __m256 w[4], x[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        w[i] = fold_two(_mm256_permute2f128_ps(v[i], v[i + 4], 0x20), _mm256_permute2f128_ps(v[i], v[i + 4], 0x31), by);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        __m256d a = _mm256_castps_pd(w[2 * i]), b = _mm256_castps_pd(w[2 * i + 1]);
        x[i] = fold_two(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)), by);
    }
    return fold_two(_mm256_shuffle_ps(x[0], x[1], 0x88), _mm256_shuffle_ps(x[0], x[1], 0xdd), by);
}

/* What is one number a query is done for all of them in one register, and query by query within each step, so that one's
 * latencies hide behind another's. */
static void soften(struct attend_scratch *s, const struct attend_block *b, const uint16_t *v_scale, bool first,
                   float c[ATTEND_LANES], float scale[ATTEND_LANES])
{
    _Alignas(32) float m[8] = {0}, l[8] = {0}, inv[8];
    _Alignas(32) int32_t any[8];
    __m256 lanes[8], sums[8];
    for (int i = b->n; i < 8; i++) lanes[i] = sums[i] = _mm256_setzero_ps();
    for (int i = 0; i < b->n; i++) {
        hide_unseen(s->p[i], b->seen[i]);
        m[i] = *b->m[i];
        l[i] = *b->l[i];
        lanes[i] = highest(s->p[i], b->seen[i], m[i]);
    }
    __m256 before = _mm256_load_ps(m), top = _mm256_add_ps(fold_each(lanes, FOLD_MAX), _mm256_setzero_ps());
    __m256 shrink = first ? _mm256_setzero_ps() : exp8(_mm256_sub_ps(before, top));
    _mm256_store_ps(m, top);
    _mm256_store_ps(c, shrink);
    for (int i = 0; i < b->n; i++) {
        __m256i tops;
        weigh(s->p[i], v_scale, b->seen[i], m[i], &sums[i], &tops);
        lanes[i] = _mm256_castsi256_ps(tops);
    }
    _mm256_store_ps(l, _mm256_fmadd_ps(_mm256_load_ps(l), shrink, fold_each(sums, FOLD_SUM)));
    weight_scales(_mm256_castps_si256(fold_each(lanes, FOLD_MAX_BITS)), scale, inv, any);
    for (int i = 0; i < b->n; i++) {
        *b->m[i] = m[i];
        *b->l[i] = l[i];
        to_integers(s->weight[i], s->p[i], b->seen[i], b->most, inv[i], any[i]);
    }
}

static const struct attend_kernel kernel = {
    .product = {NULL, product_1, product_2, product_3, product_4, product_5, product_6},
    .key_step = 16,
    .soften = soften,
};

void avx2_attend(const struct kv_query *queries, int n_q, int k_dim, int v_dim, const struct kv_head *pages, float *m,
                 float *l, float *acc, void *scratch)
{
    attend_pages(&kernel, queries, n_q, k_dim, v_dim, pages, m, l, acc, scratch);
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

/* Eight floats, or as many as n if that is less, and zeros. */
INLINE __m256 load_up_to_8(const float *x, int n)
{
    return n >= 8 ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, lanes_below(n));
}

float avx2_narrow(int16_t *y, const float *x, int n, enum narrow_by by)
{
    uint32_t top_bits;
    if (by == NARROW_BY_LENGTH) {
        __m256 lo = _mm256_setzero_ps(), hi = lo;
        for (int i = 0; i < n; i += 16) { /* squares of zeros change no sum */
            __m256 a = load_up_to_8(x + i, n - i), b = load_up_to_8(x + i + 8, n - i - 8);
            lo = _mm256_fmadd_ps(a, a, lo);
            hi = _mm256_fmadd_ps(b, b, hi);
        }
        top_bits = klength_bits(fold16(lo, hi));
    } else {
        __m256i top = _mm256_setzero_si256(), magnitude = _mm256_set1_epi32(0x7fffffff);
        for (int i = 0; i < n; i += 8)
            top = _mm256_max_epu32(top, _mm256_and_si256(_mm256_castps_si256(load_up_to_8(x + i, n - i)), magnitude));
        top_bits = largest_of(top);
    }
    float inv, scale = kquant_scale_upper(top_bits, by == NARROW_BY_LENGTH ? KEY_LEVELS : VALUE_LEVELS, &inv);
    __m256 each = _mm256_set1_ps(inv);
    __m128i any = _mm_set1_epi16(inv > 0 ? -1 : 0); /* NaN times 0 is not 0 */
    for (int i = 0; i < n; i += 8) {
        __m256i v = _mm256_cvtps_epi32(_mm256_mul_ps(load_up_to_8(x + i, n - i), each)); /* ties to even */
        __m128i packed = _mm_and_si128(_mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)), any);
        if (n - i >= 8) _mm_storeu_si128((__m128i *)(y + i), packed);
        else memcpy(y + i, &packed, (size_t)((n - i + 1) / 2 * 2) * sizeof *y);
    }
    return scale;
}
