/* A few activation rows times quantized weight rows, unpacked in registers: template.
 *
 * Decoding one token reads every weight once, so this is to keep up with memory: eight rows at a time,
 * lane = row, each block multiplied as it unpacks and never stored. Eight consecutive
 * rows are one contiguous piece of the file; while one is worked on, the next
 * is prefetched, line by line. Includes a product_*.h before this.
 *
 * The eight rows' pointers fill the general registers. So that one more reaches all activations, those of several rows
 * are laid side by side first: dword by dword, STRIDE of them. */
#include "avx2.h"
#include "correction.h"
#include "kernels.h"

/* Dwords from group to group of T rows' activations. */
#define STRIDE(T) ((T) > 2 ? 4 : (T))

/* By row, as the corrections are computed, and side by side. */
struct matvec_scratch {
    int32_t row_offset[AVX2_MATVEC_TOKENS][AVX2_MATVEC_MAX / 16];
    float row_fsum[AVX2_MATVEC_TOKENS][AVX2_MATVEC_MAX / 32];
    int8_t q[AVX2_MATVEC_TOKENS * AVX2_MATVEC_MAX];
    float scale[AVX2_MATVEC_TOKENS * AVX2_MATVEC_MAX / 32];
    int32_t offset[AVX2_MATVEC_TOKENS * AVX2_MATVEC_MAX / 16];
    float fsum[AVX2_MATVEC_TOKENS * AVX2_MATVEC_MAX / 16];
};

/* Activations as the products read them, at one block. T rows: element i of each is STRIDE(T) * i. */
struct side_by_side {
    const int8_t *q;       /* by group of four elements, four bytes each */
    const float *scale;    /* by 32 elements */
    const int32_t *offset; /* by sub-block; formats with a zero */
    const float *fsum;     /* by sub-block; formats with a minimum */
};

/* dst: the n dwords of T rows, side by side. */
static inline void interleave(void *dst, const void *const rows[], int n, int T)
{
    uint8_t *out = dst;
    const uint8_t *r[4]; /* where T is 3, the third twice */
    for (int t = 0; t < 4; t++) r[t] = rows[t < T ? t : T - 1];
    int i = 0;
    for (; T > 2 && i + 4 <= n; i += 4, out += 64) {
        __m128i v[4];
        for (int t = 0; t < 4; t++) v[t] = _mm_loadu_si128((const __m128i *)(r[t] + 4 * i));
        __m128i a = _mm_unpacklo_epi32(v[0], v[1]), b = _mm_unpacklo_epi32(v[2], v[3]);
        __m128i c = _mm_unpackhi_epi32(v[0], v[1]), d = _mm_unpackhi_epi32(v[2], v[3]);
        _mm_storeu_si128((__m128i *)out, _mm_unpacklo_epi64(a, b));
        _mm_storeu_si128((__m128i *)(out + 16), _mm_unpackhi_epi64(a, b));
        _mm_storeu_si128((__m128i *)(out + 32), _mm_unpacklo_epi64(c, d));
        _mm_storeu_si128((__m128i *)(out + 48), _mm_unpackhi_epi64(c, d));
    }
    for (; T == 2 && i + 4 <= n; i += 4, out += 32) {
        __m128i a = _mm_loadu_si128((const __m128i *)(r[0] + 4 * i)), b = _mm_loadu_si128((const __m128i *)(r[1] + 4 * i));
        _mm_storeu_si128((__m128i *)out, _mm_unpacklo_epi32(a, b));
        _mm_storeu_si128((__m128i *)(out + 16), _mm_unpackhi_epi32(a, b));
    }
    for (; i < n; i++)
        for (int t = 0; t < STRIDE(T); t++, out += 4) memcpy(out, r[t] + 4 * i, 4);
}

/* The first T rows of a. */
static struct side_by_side lay_side_by_side(struct matvec_scratch *sc, const struct act *a, int T, int sub, int zero,
                                            bool has_min)
{
    const void *q[AVX2_MATVEC_TOKENS], *scale[AVX2_MATVEC_TOKENS], *offset[AVX2_MATVEC_TOKENS], *fsum[AVX2_MATVEC_TOKENS];
    for (int t = 0; t < T; t++) {
        size_t at = (size_t)t * (size_t)a->n;
        if (zero) correct_zero(sc->row_offset[t], a->q + at, a->sum + at / ACT_SUM_BLOCK, a->n, sub, zero);
        if (has_min && sub == ACT_BLOCK) sum_blocks(sc->row_fsum[t], a->scale + at / ACT_BLOCK, a->sum + at / ACT_SUM_BLOCK, a->n);
        q[t] = a->q + at;
        scale[t] = a->scale + at / ACT_BLOCK;
        offset[t] = sc->row_offset[t];
        fsum[t] = sub == ACT_BLOCK ? sc->row_fsum[t] : a->fsum + at / ACT_SUM_BLOCK;
    }
    if (T == 1) return (struct side_by_side){q[0], scale[0], offset[0], fsum[0]};
    interleave(sc->q, q, a->n / 4, T);
    interleave(sc->scale, scale, a->n / ACT_BLOCK, T);
    if (zero) interleave(sc->offset, offset, a->n / sub, T);
    if (has_min) interleave(sc->fsum, fsum, a->n / sub, T);
    return (struct side_by_side){sc->q, sc->scale, sc->offset, sc->fsum};
}

/* Where unpack8.h delivers to. */
struct sink {
    int n_t, sub, bits; /* constants of the function */
    bool has_zero, has_min;
    struct side_by_side a;  /* this block's */
    const uint8_t *next;    /* this block's share of the eight rows that come next, which are one piece */
    int lines, puts, n_put; /* cache lines of it, calls of put in a block, and those so far */
    struct dot dot[16][AVX2_MATVEC_TOKENS];
    __m256 acc[AVX2_MATVEC_TOKENS], macc[AVX2_MATVEC_TOKENS];
};

INLINE const int32_t *start(const struct sink *s, int t, int j)
{
    return s->a.offset + j * STRIDE(s->n_t) + t;
}

INLINE const int8_t *group(const struct sink *s, int t, int j, int g)
{
    return s->a.q + ((j * s->sub / 4 + g) * STRIDE(s->n_t) + t) * 4;
}

/* Asks for this call's share of the bytes at next: spread over the block, since a processor
 * can only wait for some ten to twenty lines at a time. GCC would put a block's requests in one place if it could. */
INLINE void prefetch(struct sink *s)
{
    int end = (s->n_put + 1) * s->lines / s->puts;
#pragma GCC unroll 4
    for (int i = s->n_put * s->lines / s->puts; i < end; i++)
        __asm__ volatile("prefetcht1 %0" : : "m"(s->next[64 * i]) : "memory");
    s->n_put++;
}

INLINE void put(struct sink *s, int j, int g, __m256i w)
{
    prefetch(s);
#pragma GCC unroll 4
    for (int t = 0; t < s->n_t; t++)
        dot_put(&s->dot[j][t], start(s, t, j), s->has_zero, w, group(s, t, j, g), g, s->sub / 4, s->bits);
}

INLINE void put_signed(struct sink *s, int j, int g, __m256i w)
{
    prefetch(s);
#pragma GCC unroll 4
    for (int t = 0; t < s->n_t; t++) dot_put_signed(&s->dot[j][t], start(s, t, j), s->has_zero, w, group(s, t, j, g), g);
}

INLINE void scale(struct sink *s, int j, __m256 d, __m256 m)
{
    const float *scales = s->a.scale + j * s->sub / ACT_BLOCK * STRIDE(s->n_t), *fsum = s->a.fsum + j * STRIDE(s->n_t);
#pragma GCC unroll 4
    for (int t = 0; t < s->n_t; t++) {
        __m256 ds = _mm256_mul_ps(d, _mm256_set1_ps(scales[t]));
        s->acc[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s->dot[j][t].sum), ds, s->acc[t]);
        if (s->has_min) s->macc[t] = _mm256_fmadd_ps(m, _mm256_set1_ps(fsum[t]), s->macc[t]);
    }
}

#include "unpack8.h"

/* v is rows first .. first+7; of them r and up are wanted, below row1. */
INLINE void store_rows(float *y, int first, int r, int row1, __m256 v)
{
    if (first == r && r + 8 <= row1) {
        _mm256_storeu_ps(y + r, v);
        return;
    }
    float lane[8];
    _mm256_storeu_ps(lane, v);
    for (; r < row1 && r < first + 8; r++) y[r] = lane[r - first];
}

#define DEFINE_MATVEC_TOKENS(name, elements, sub_elements, n_bits, offset_by, min, T) \
    static void matvec_##name##_##T(const struct weight *w, int row0, int row1, const struct act *a, float *y, \
                                    size_t ld_y, struct matvec_scratch *sc) \
    { \
        const size_t bytes = sizeof(struct block_##name), stride = w->row_bytes; \
        const int corrections = elements / sub_elements * STRIDE(T); \
        const struct side_by_side act = lay_side_by_side(sc, a, T, sub_elements, offset_by, min); \
        struct sink s = {.n_t = T, .sub = sub_elements, .bits = n_bits, .has_zero = offset_by != 0, .has_min = min, \
                         .lines = (int)(8 * bytes + 63) / 64, .puts = elements / 4}; \
        for (int r = row0; r < row1; r += 8) { \
            /* the last rows of a matrix: eight that end with them, some of them computed again */ \
            int first = r + 8 <= w->n_out ? r : w->n_out - 8; \
            const uint8_t *p = (const uint8_t *)w->data + (size_t)first * stride; \
            s.next = p + 8 * stride; \
            s.a = act; \
            for (int t = 0; t < T; t++) s.acc[t] = s.macc[t] = _mm256_setzero_ps(); \
            for (int k = 0; k < a->n; k += elements) { \
                s.n_put = 0; \
                unpack8_##name(&s, p, stride); \
                p += bytes; \
                s.next += 8 * bytes; \
                s.a.q += elements * STRIDE(T); \
                s.a.scale += elements / 32 * STRIDE(T); \
                if (offset_by) s.a.offset += corrections; \
                if (min) s.a.fsum += corrections; \
            } \
            for (int t = 0; t < T; t++) \
                store_rows(y + (size_t)t * ld_y, first, r, row1, min ? _mm256_sub_ps(s.acc[t], s.macc[t]) : s.acc[t]); \
        } \
    }
#define DEFINE_MATVEC(name, elements, sub_elements, n_bits, offset_by, min) \
    DEFINE_MATVEC_TOKENS(name, elements, sub_elements, n_bits, offset_by, min, 1) \
    DEFINE_MATVEC_TOKENS(name, elements, sub_elements, n_bits, offset_by, min, 2) \
    DEFINE_MATVEC_TOKENS(name, elements, sub_elements, n_bits, offset_by, min, 3) \
    DEFINE_MATVEC_TOKENS(name, elements, sub_elements, n_bits, offset_by, min, 4) \
    static void matvec_##name(const struct weight *w, int row0, int row1, const struct act *a, float *y, \
                              size_t ld_y, void *scratch) \
    { \
        switch (a->n_rows) { \
        case 1: matvec_##name##_1(w, row0, row1, a, y, ld_y, scratch); break; \
        case 2: matvec_##name##_2(w, row0, row1, a, y, ld_y, scratch); break; \
        case 3: matvec_##name##_3(w, row0, row1, a, y, ld_y, scratch); break; \
        case 4: matvec_##name##_4(w, row0, row1, a, y, ld_y, scratch); break; \
        } \
    }

DEFINE_MATVEC(q4_0, 32, 32, 4, 8, false)
DEFINE_MATVEC(q4_1, 32, 32, 4, 0, true)
DEFINE_MATVEC(q5_0, 32, 32, 5, 16, false)
DEFINE_MATVEC(q5_1, 32, 32, 5, 0, true)
DEFINE_MATVEC(q8_0, 32, 32, 8, PRODUCT_Q8_ZERO, false)
DEFINE_MATVEC(q2_K, 256, 16, 4, 0, true)
DEFINE_MATVEC(q3_K, 256, 16, 4, 4, false)
DEFINE_MATVEC(q4_K, 256, 32, 4, 0, true)
DEFINE_MATVEC(q5_K, 256, 32, 5, 0, true)
DEFINE_MATVEC(q6_K, 256, 16, 6, 32, false)

#define MATVEC_TABLE { \
    [TYPE_Q4_0] = matvec_q4_0, [TYPE_Q4_1] = matvec_q4_1, [TYPE_Q5_0] = matvec_q5_0, [TYPE_Q5_1] = matvec_q5_1, \
    [TYPE_Q8_0] = matvec_q8_0, [TYPE_Q2_K] = matvec_q2_K, [TYPE_Q3_K] = matvec_q3_K, [TYPE_Q4_K] = matvec_q4_K, \
    [TYPE_Q5_K] = matvec_q5_K, [TYPE_Q6_K] = matvec_q6_K, \
}
