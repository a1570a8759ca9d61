/* A few activation rows times quantized weight rows, unpacked in registers: template.
 *
 * Decoding one token reads every weight once, so this is to keep up with memory: eight rows at a time,
 * lane = row, each block multiplied as it unpacks and never stored. Includes a product_*.h before this.
 *
 * Which eight? The hardware's prefetchers are at their best where a few long pieces of memory are read, each in order. So with
 * one or two rows of activations, where memory is the limit, the rows asked for are cut into eight runs, and lane i goes
 * through run i; of each run the bytes a little ahead are requested. Where runs would be short, and with more rows of
 * activations, whose arithmetic takes longer, the eight are consecutive: a contiguous piece of the file, and while it is
 * worked on, the next piece is requested. */
#include "formats.h"
#include "side_by_side.h"

enum {
    RUN_BYTES = 8192,    /* the least bytes of a run for one row of activations, since the prefetchers begin anew in each, */
    RUN_BYTES_2 = 32768, /* and for two, where less of the time is waiting for memory */
    RUN_LEAD = 512,      /* how far ahead the bytes of a run are requested */
    RUN_PRIMED = 2,      /* cache lines of each of the next runs that are requested at the end of these */
};

/* Where unpack8.h delivers to. */
struct sink {
    int n_t, sub, bits; /* constants of the function */
    bool has_zero, has_min, runs;
    struct side_by_side a;  /* this block's */
    /* What is requested meanwhile. Runs: of each of the eight rows the lines RUN_LEAD after this block. Otherwise this block's
     * share of the eight rows that come next. */
    const uint8_t *next;
    size_t stride;          /* bytes from row to row */
    int lines, puts, n_put; /* requests of a block, calls of put in it, and those so far */
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

/* This call's share of the block's requests: spread over the block, since a processor can only wait for some ten to
 * twenty lines at a time. */
INLINE void prefetch(struct sink *s)
{
    int end = (s->n_put + 1) * s->lines / s->puts;
#pragma GCC unroll 4
    for (int i = s->n_put * s->lines / s->puts; i < end; i++)
        request(s->next + (s->runs ? (size_t)(i % 8) * s->stride + 64 * (size_t)(i / 8) : 64 * (size_t)i));
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
    const float *scales = s->a.scale + j * STRIDE(s->n_t), *fsum = s->a.fsum + j * STRIDE(s->n_t);
#pragma GCC unroll 4
    for (int t = 0; t < s->n_t; t++) {
        __m256 ds = _mm256_mul_ps(d, _mm256_set1_ps(scales[t]));
        s->acc[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s->dot[j][t].sum), ds, s->acc[t]);
        if (s->has_min) s->macc[t] = _mm256_fmadd_ps(m, _mm256_set1_ps(fsum[t]), s->macc[t]);
    }
}

INLINE void scale16(struct sink *s, int i, __m256 d, const __m256i factor[2], const __m256 m[2])
{
    const float *scales = s->a.scale + i * STRIDE(s->n_t), *fsum = s->a.fsum + 2 * i * STRIDE(s->n_t);
    const __m256 f[2] = {_mm256_cvtepi32_ps(factor[0]), _mm256_cvtepi32_ps(factor[1])};
#pragma GCC unroll 4
    for (int t = 0; t < s->n_t; t++) {
        /* Products with factors and their sums are integers below 2^24: exact. */
        __m256 sum = _mm256_mul_ps(_mm256_cvtepi32_ps(s->dot[2 * i][t].sum), f[0]);
        sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s->dot[2 * i + 1][t].sum), f[1], sum);
        s->acc[t] = _mm256_fmadd_ps(sum, _mm256_mul_ps(d, _mm256_set1_ps(scales[t])), s->acc[t]);
        if (!s->has_min) continue;
        s->macc[t] = _mm256_fmadd_ps(m[0], _mm256_set1_ps(fsum[t]), s->macc[t]);
        s->macc[t] = _mm256_fmadd_ps(m[1], _mm256_set1_ps(fsum[STRIDE(s->n_t) + t]), s->macc[t]);
    }
}

#define UNPACK8_MULTIPLIES
#include "unpack8.h"

/* Rows that are multiplied together: lane i is row first + i * step. Of consecutive ones, row `from` and up are wanted, below
 * `to`. */
struct eight {
    int first, step, from, to;
};

/* Rows in each of the eight runs that n rows of w are cut into for T rows of activations, one or two; 0: in none. What is left of them is less than eight rows. */
static inline int rows_of_run(const struct weight *w, int n, int T)
{
    size_t least = T == 1 ? RUN_BYTES : RUN_BYTES_2;
    return (size_t)(n / 8) * w->row_bytes >= least ? n / 8 : 0;
}

/* The ends of the runs, of `rows` rows each, are near: the next rows of the matrix are likely to come in runs as long. p: the
 * last row of the first one. */
static inline void prime(const uint8_t *p, int rows, size_t row_bytes)
{
    const uint8_t *next = p + (7 * (size_t)rows + 1) * row_bytes;
    for (size_t i = 0; i < 8 * RUN_PRIMED; i++) request(next + i % 8 * (size_t)rows * row_bytes + i / 8 * 64);
}

INLINE void store_eight(float *y, const struct eight *e, __m256 v, bool in_runs)
{
    if (!in_runs) {
        store_rows(y, e->first, e->from, e->to, v);
        return;
    }
    float lane[8];
    _mm256_storeu_ps(lane, v);
    for (int i = 0; i < 8; i++) y[e->first + i * e->step] = lane[i];
}

/* y = an eight times T rows of activations. in_runs: it has one row of each run; otherwise its rows are consecutive. */
#define DEFINE_EIGHT(name, elements, sub_elements, n_bits, offset_by, min, T, in_runs) \
    INLINE void eight_##name##_##T##_##in_runs(const struct weight *w, const struct eight *e, const struct side_by_side *act, \
                                               float *y, size_t ld_y) \
    { \
        const size_t bytes = sizeof(struct block_##name), stride = (in_runs ? (size_t)e->step : 1) * w->row_bytes; \
        const int corrections = elements / sub_elements * STRIDE(T); \
        const uint8_t *p = (const uint8_t *)w->data + (size_t)e->first * w->row_bytes; \
        struct sink s; /* not cleared: all sums begin with what is put first */ \
        s.n_t = T, s.sub = sub_elements, s.bits = n_bits, s.has_zero = offset_by != 0, s.has_min = min, s.runs = in_runs; \
        s.a = *act; \
        s.next = p + (in_runs ? RUN_LEAD : 8 * stride); \
        s.stride = stride; \
        s.lines = (int)(in_runs ? (bytes + 63) / 64 * 8 : (8 * bytes + 63) / 64); \
        s.puts = elements / 4; \
        for (int t = 0; t < T; t++) s.acc[t] = s.macc[t] = _mm256_setzero_ps(); \
        for (int k = 0; k < w->n_in; k += elements) { \
            s.n_put = 0; \
            unpack8_##name(&s, p, stride); \
            p += bytes; \
            s.next += in_runs ? bytes : 8 * bytes; \
            s.a.q += elements * STRIDE(T); \
            s.a.scale += elements / 32 * STRIDE(T); \
            if (offset_by) s.a.offset += corrections; \
            if (min) s.a.fsum += corrections; \
        } \
        for (int t = 0; t < T; t++) \
            store_eight(y + (size_t)t * ld_y, e, min ? _mm256_sub_ps(s.acc[t], s.macc[t]) : s.acc[t], in_runs); \
    }
#define DEFINE_RUNS(name, elements, sub_elements, n_bits, offset_by, min, T) \
    DEFINE_EIGHT(name, elements, sub_elements, n_bits, offset_by, min, T, true) \
    static void runs_##name##_##T(const struct weight *w, int row0, int rows, const struct side_by_side *act, float *y, \
                                  size_t ld_y) \
    { \
        for (int r = row0; r < row0 + rows; r++) { \
            struct eight e = {.first = r, .step = rows}; \
            if (r + 1 == row0 + rows) prime((const uint8_t *)w->data + (size_t)r * w->row_bytes, rows, w->row_bytes); \
            eight_##name##_##T##_true(w, &e, act, y, ld_y); \
        } \
    }
#define DEFINE_CONSECUTIVE(name, elements, sub_elements, n_bits, offset_by, min, T) \
    DEFINE_EIGHT(name, elements, sub_elements, n_bits, offset_by, min, T, false) \
    static void consecutive_##name##_##T(const struct weight *w, int row0, int row1, const struct side_by_side *act, \
                                         float *y, size_t ld_y) \
    { \
        for (int r = row0; r < row1; r += 8) { \
            /* the last rows of a matrix: eight that end with them, some of them computed again */ \
            struct eight e = {.first = r + 8 <= w->n_out ? r : w->n_out - 8, .step = 1, .from = r, .to = row1}; \
            eight_##name##_##T##_false(w, &e, act, y, ld_y); \
        } \
    }
/* One or two rows of activations. */
#define DEFINE_MATVEC(name, elements, sub_elements, n_bits, offset_by, min) \
    DEFINE_RUNS(name, elements, sub_elements, n_bits, offset_by, min, 1) \
    DEFINE_RUNS(name, elements, sub_elements, n_bits, offset_by, min, 2) \
    DEFINE_CONSECUTIVE(name, elements, sub_elements, n_bits, offset_by, min, 1) \
    DEFINE_CONSECUTIVE(name, elements, sub_elements, n_bits, offset_by, min, 2) \
    static void matvec_##name(const struct weight *w, int row0, int row1, const struct act *a, float *y, \
                              size_t ld_y, void *scratch) \
    { \
        const int rows = rows_of_run(w, row1 - row0, a->n_rows), rest = row0 + 8 * rows; \
        struct side_by_side act; /* how many rows is a constant to those who lay and read it */ \
        if (a->n_rows == 1) { \
            act = lay_side_by_side(scratch, a, 1, sub_elements, offset_by, min); \
            if (rows) runs_##name##_1(w, row0, rows, &act, y, ld_y); \
            consecutive_##name##_1(w, rest, row1, &act, y, ld_y); \
        } else { \
            act = lay_side_by_side(scratch, a, 2, sub_elements, offset_by, min); \
            if (rows) runs_##name##_2(w, row0, rows, &act, y, ld_y); \
            consecutive_##name##_2(w, rest, row1, &act, y, ld_y); \
        } \
    }
/* Three or four. */
#define DEFINE_MATVEC_FEW(name, elements, sub_elements, n_bits, offset_by, min) \
    DEFINE_CONSECUTIVE(name, elements, sub_elements, n_bits, offset_by, min, 3) \
    DEFINE_CONSECUTIVE(name, elements, sub_elements, n_bits, offset_by, min, 4) \
    static void matvec_few_##name(const struct weight *w, int row0, int row1, const struct act *a, float *y, \
                                  size_t ld_y, void *scratch) \
    { \
        struct side_by_side act; \
        if (a->n_rows == 3) { \
            act = lay_side_by_side(scratch, a, 3, sub_elements, offset_by, min); \
            consecutive_##name##_3(w, row0, row1, &act, y, ld_y); \
        } else { \
            act = lay_side_by_side(scratch, a, 4, sub_elements, offset_by, min); \
            consecutive_##name##_4(w, row0, row1, &act, y, ld_y); \
        } \
    }

EXPAND_FORMAT(DEFINE_MATVEC, Q4_0_FORMAT)
EXPAND_FORMAT(DEFINE_MATVEC, Q4_1_FORMAT)
EXPAND_FORMAT(DEFINE_MATVEC, Q5_0_FORMAT)
EXPAND_FORMAT(DEFINE_MATVEC, Q5_1_FORMAT)
EXPAND_FORMAT(DEFINE_MATVEC, Q8_0_FORMAT(PRODUCT_Q8_ZERO))
EXPAND_FORMAT(DEFINE_MATVEC, Q2_K_FORMAT)
EXPAND_FORMAT(DEFINE_MATVEC, Q3_K_FORMAT)
EXPAND_FORMAT(DEFINE_MATVEC, Q4_K_FORMAT)
EXPAND_FORMAT(DEFINE_MATVEC, Q5_K_FORMAT)
EXPAND_FORMAT(DEFINE_MATVEC, Q6_K_FORMAT)

#define MATVEC_TABLE { \
    [TYPE_Q4_0] = matvec_q4_0, [TYPE_Q4_1] = matvec_q4_1, [TYPE_Q5_0] = matvec_q5_0, [TYPE_Q5_1] = matvec_q5_1, \
    [TYPE_Q8_0] = matvec_q8_0, [TYPE_Q2_K] = matvec_q2_K, [TYPE_Q3_K] = matvec_q3_K, [TYPE_Q4_K] = matvec_q4_K, \
    [TYPE_Q5_K] = matvec_q5_K, [TYPE_Q6_K] = matvec_q6_K, \
}
