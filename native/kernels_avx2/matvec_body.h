/* One activation row times quantized weight rows, unpacked in registers: template.
 *
 * Decoding one token reads every weight once, so this is to keep up with memory: eight rows at a time,
 * lane = row, each block multiplied as it unpacks and never stored. Eight consecutive
 * rows are one contiguous piece of the file; while one is worked on, the next
 * is prefetched, line by line. Includes a product_*.h before this. */
#include "avx2.h"
#include "correction.h"
#include "kernels.h"

struct matvec_scratch {
    int32_t offset[AVX2_MATVEC_MAX / 16];
    float fsum[AVX2_MATVEC_MAX / 32];
};

/* Where unpack8.h delivers to. Pointers are at this block's elements. */
struct sink {
    int sub, bits, zero; /* constants of the format */
    bool has_min;
    const int8_t *q;
    const float *scale;    /* by 32 elements */
    const int32_t *offset; /* by sub-block; formats with a zero */
    const float *fsum;     /* by sub-block; formats with a minimum */
    const uint8_t *next;   /* what eight rows later takes the place of this block */
    int lines, puts, n_put; /* cache lines of it, calls of put in a block, and those so far */
    __m256i isum[16];
    __m256 acc, macc;
};

INLINE __m256i start(const struct sink *s, int j, int part)
{
    if (part > 0) return s->isum[j];
    return s->zero ? _mm256_set1_epi32(s->offset[j]) : _mm256_setzero_si256();
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
    s->isum[j] = dot16(start(s, j, part), w, s->q + j * s->sub + 16 * part, s->bits);
}

INLINE void put_signed(struct sink *s, int j, int part, const __m256i w[4])
{
    prefetch(s);
    s->isum[j] = dot16_signed(start(s, j, part), w, s->q + j * s->sub + 16 * part);
}

INLINE void scale(struct sink *s, int j, __m256 d, __m256 m)
{
    __m256 ds = _mm256_mul_ps(d, _mm256_set1_ps(s->scale[j * s->sub / 32]));
    s->acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s->isum[j]), ds, s->acc);
    if (s->has_min) s->macc = _mm256_fmadd_ps(m, _mm256_set1_ps(s->fsum[j]), s->macc);
}

#include "unpack8.h"

#define DEFINE_MATVEC(name, elements, sub_elements, n_bits, offset_by, min) \
    static void matvec_##name(const struct weight *w, int row0, int row1, const struct act *a, float *y, \
                              size_t ld_y, void *scratch) \
    { \
        (void)ld_y; \
        struct matvec_scratch *sc = scratch; \
        if (offset_by) correct_zero(sc->offset, a->sum, a->n, sub_elements, offset_by); \
        if (min && sub_elements == 32) sum_blocks(sc->fsum, a->scale, a->sum, a->n); \
        const size_t bytes = sizeof(struct block_##name), stride = w->row_bytes; \
        for (int r = row0; r < row1; r += 8) { \
            /* the last rows of a matrix: eight that end with them, some of them computed again */ \
            int first = r + 8 <= w->n_out ? r : w->n_out - 8; \
            const uint8_t *p = (const uint8_t *)w->data + (size_t)first * stride; \
            struct sink s = {.sub = sub_elements, .bits = n_bits, .zero = offset_by, .has_min = min, \
                             .q = a->q, .scale = a->scale, .offset = sc->offset, \
                             .fsum = sub_elements == 32 ? sc->fsum : a->fsum, \
                             .next = p + 8 * stride, .lines = (int)(8 * bytes + 63) / 64, .puts = elements / 16, \
                             .acc = _mm256_setzero_ps(), .macc = _mm256_setzero_ps()}; \
            for (int k = 0; k < a->n; k += elements) { \
                s.n_put = 0; \
                unpack8_##name(&s, p, stride); \
                p += bytes; \
                s.next += 8 * bytes; \
                s.q += elements; \
                s.scale += elements / 32; \
                s.offset += elements / sub_elements; \
                s.fsum += elements / sub_elements; \
            } \
            store_rows(y, first, r, row1, min ? _mm256_sub_ps(s.acc, s.macc) : s.acc); \
        } \
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
