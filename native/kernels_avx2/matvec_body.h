/* One activation row times quantized weight rows, unpacked in registers: template.
 *
 * Decoding one token reads every weight once, so this is to keep up with memory: eight rows at a time,
 * lane = row, each block multiplied as it unpacks and never stored. Eight consecutive
 * rows are one contiguous piece of the file; while one is worked on, the next
 * is prefetched, line by line. Includes a product_*.h before this. */
#include "avx2.h"
#include "correction.h"
#include "kernels.h"

enum { MATVEC_TOKENS = 4 };

struct matvec_scratch {
    int32_t offset[MATVEC_TOKENS][AVX2_MATVEC_MAX / 16];
    float fsum[MATVEC_TOKENS][AVX2_MATVEC_MAX / 32];
};

/* Where unpack8.h delivers to. Offsets are of this block's elements. */
struct sink {
    int n_t, sub, bits, zero; /* constants of the function */
    bool has_min;
    const int8_t *q[MATVEC_TOKENS];
    const float *scale[MATVEC_TOKENS];    /* by 32 elements */
    const int32_t *offset[MATVEC_TOKENS]; /* by sub-block; formats with a zero */
    const float *fsum[MATVEC_TOKENS];     /* by sub-block; formats with a minimum */
    int k;                 /* first element of this block */
    const uint8_t *next;   /* what eight rows later takes the place of this block */
    int lines, puts, n_put; /* cache lines of it, calls of put in a block, and those so far */
    __m256i isum[16][MATVEC_TOKENS];
    __m256 acc[MATVEC_TOKENS], macc[MATVEC_TOKENS];
};

INLINE __m256i start(const struct sink *s, int t, int j, int part)
{
    if (part > 0) return s->isum[j][t];
    return s->zero ? _mm256_set1_epi32(s->offset[t][s->k / s->sub + j]) : _mm256_setzero_si256();
}

/* Asks for this call's share of the bytes at next: spread over the block, since a processor
 * can only wait for some ten lines at a time. */
INLINE void prefetch(struct sink *s)
{
    int end = (s->n_put + 1) * s->lines / s->puts;
#pragma GCC unroll 4
    for (int i = s->n_put * s->lines / s->puts; i < end; i++)
        _mm_prefetch((const char *)(s->next + 64 * i), _MM_HINT_T1);
    s->n_put++;
}

INLINE void put(struct sink *s, int j, int part, const __m256i w[4])
{
    prefetch(s);
#pragma GCC unroll 4
    for (int t = 0; t < s->n_t; t++)
        s->isum[j][t] = dot16(start(s, t, j, part), w, s->q[t] + s->k + j * s->sub + 16 * part, s->bits);
}

INLINE void put_signed(struct sink *s, int j, int part, const __m256i w[4])
{
    prefetch(s);
#pragma GCC unroll 4
    for (int t = 0; t < s->n_t; t++)
        s->isum[j][t] = dot16_signed(start(s, t, j, part), w, s->q[t] + s->k + j * s->sub + 16 * part);
}

INLINE void scale(struct sink *s, int j, __m256 d, __m256 m)
{
#pragma GCC unroll 4
    for (int t = 0; t < s->n_t; t++) {
        __m256 ds = _mm256_mul_ps(d, _mm256_set1_ps(s->scale[t][(s->k + j * s->sub) / 32]));
        s->acc[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s->isum[j][t]), ds, s->acc[t]);
        if (s->has_min) s->macc[t] = _mm256_fmadd_ps(m, _mm256_set1_ps(s->fsum[t][s->k / s->sub + j]), s->macc[t]);
    }
}

#include "unpack8.h"

#define DEFINE_MATVEC_TOKENS(name, elements, sub_elements, n_bits, offset_by, min, tokens) \
    static void matvec_##name##_##tokens(const struct weight *w, int row0, int row1, const struct act *a, float *y, \
                                         size_t ld_y, struct matvec_scratch *sc) \
    { \
        const size_t bytes = sizeof(struct block_##name), stride = w->row_bytes; \
        struct sink s = {.n_t = tokens, .sub = sub_elements, .bits = n_bits, .zero = offset_by, .has_min = min, \
                         .lines = (int)(8 * bytes + 63) / 64, .puts = elements / 16}; \
        int row[MATVEC_TOKENS]; /* a batch that is smaller ends with its last row repeated */ \
        for (int t = 0; t < tokens; t++) { \
            row[t] = t < a->n_rows ? t : a->n_rows - 1; \
            size_t at = (size_t)row[t] * (size_t)a->n; \
            s.q[t] = a->q + at; \
            s.scale[t] = a->scale + at / 32; \
            s.offset[t] = sc->offset[t]; \
            s.fsum[t] = sub_elements == 32 ? sc->fsum[t] : a->fsum + at / 16; \
            if (offset_by) correct_zero(sc->offset[t], a->sum + at / 16, a->n, sub_elements, offset_by); \
            if (min && sub_elements == 32) sum_blocks(sc->fsum[t], a->scale + at / 32, a->sum + at / 16, a->n); \
        } \
        for (int r = row0; r < row1; r += 8) { \
            /* the last rows of a matrix: eight that end with them, some of them computed again */ \
            int first = r + 8 <= w->n_out ? r : w->n_out - 8; \
            const uint8_t *p = (const uint8_t *)w->data + (size_t)first * stride; \
            s.next = p + 8 * stride; \
            for (int t = 0; t < tokens; t++) s.acc[t] = s.macc[t] = _mm256_setzero_ps(); \
            for (s.k = 0; s.k < a->n; s.k += elements, p += bytes, s.next += 8 * bytes) { \
                s.n_put = 0; \
                unpack8_##name(&s, p, stride); \
            } \
            for (int t = 0; t < tokens; t++) \
                store_rows(y + (size_t)row[t] * ld_y, first, r, row1, min ? _mm256_sub_ps(s.acc[t], s.macc[t]) : s.acc[t]); \
        } \
    }
#define DEFINE_MATVEC(name, elements, sub_elements, n_bits, offset_by, min) \
    DEFINE_MATVEC_TOKENS(name, elements, sub_elements, n_bits, offset_by, min, 1) \
    DEFINE_MATVEC_TOKENS(name, elements, sub_elements, n_bits, offset_by, min, 2) \
    DEFINE_MATVEC_TOKENS(name, elements, sub_elements, n_bits, offset_by, min, 4) \
    static void matvec_##name(const struct weight *w, int row0, int row1, const struct act *a, float *y, \
                              size_t ld_y, void *scratch) \
    { \
        if (a->n_rows == 1) matvec_##name##_1(w, row0, row1, a, y, ld_y, scratch); \
        else if (a->n_rows == 2) matvec_##name##_2(w, row0, row1, a, y, ld_y, scratch); \
        else matvec_##name##_4(w, row0, row1, a, y, ld_y, scratch); \
    }

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
