/* Sixteen weight rows in the file, read so that lane = row.
 *
 * Lane i is a row that begins i % 8 * stride bytes after that of lane 0 or, from lane 8 on, of lane 8. A "dword" below is any
 * four bytes of a row, aligned or not; loading n of them from each of 16 rows is an n x 16 transposition in registers. The
 * first step of it is done by inserting loads, which run on both vector ports; the
 * shuffles that follow run on one only. Nothing is read but what is named. */
#ifndef INFER_AVX512_ROWS_H
#define INFER_AVX512_ROWS_H

#include "kernels.h"
#include "vector.h"

/* Sixteen rows that follow each other are one piece of memory, and what comes after it is asked for in PREFETCH_STREAMS places
 * at once: requests that have to wait for memory are limited by the core's few line buffers, but the L2 streamer, which works
 * page by page, stays ahead of them in as many pages.
 *
 * Rows that are far apart, each the next of a run of rows, leave more to the streamer: for each 64 bytes of a block one line
 * RUN_LEAD bytes ahead is requested of each row, which are most of its lines, and none where blocks of 32 columns are read one by one. */
enum { PREFETCH_STREAMS = 4, RUN_LEAD = 512 };

struct rows {
    const unsigned char *half[2]; /* lanes 0 and 8 */
    size_t stride;                /* from row to row of a half */
    bool runs;                    /* the rows are far apart; otherwise: */
    const unsigned char *ahead;   /* what is read some time later, to be prefetched: PREFETCH_STREAMS pieces of together 16 rows' worth */
    size_t piece;                 /* bytes from piece to piece */
    bool eight;                   /* the pieces are of 8 rows' worth, the other 8 are the caller's to fetch */
    size_t stride3, stride5, stride7, piece3; /* see begin */
};

/* Every row is a pointer, a multiple of a number in a register and a constant away, which one instruction can name. GCC would
 * compute them each time, from fewer numbers. */
INLINE size_t in_register(size_t v)
{
    __asm__("" : "+r"(v));
    return v;
}

/* *r, to be read. */
INLINE struct rows begin(const struct rows *r)
{
    struct rows v = *r;
    v.stride = in_register(r->stride);
    v.stride3 = in_register(3 * r->stride);
    v.stride5 = in_register(5 * r->stride);
    v.stride7 = in_register(7 * r->stride);
    v.piece3 = in_register(3 * r->piece);
    return v;
}

INLINE const unsigned char *row_at(const struct rows *r, int i, size_t at)
{
    const unsigned char *p = r->half[i / 8] + at;
    switch (i % 8) {
    case 1: return p + r->stride;
    case 2: return p + 2 * r->stride;
    case 3: return p + r->stride3;
    case 4: return p + 4 * r->stride;
    case 5: return p + r->stride5;
    case 6: return p + 2 * r->stride3;
    case 7: return p + r->stride7;
    default: return p;
    }
}

INLINE size_t rows_of_piece(const struct rows *r) { return (r->eight ? ROW_TILE / 2 : ROW_TILE) / PREFETCH_STREAMS; }

/* Fetches into L2 what is to be read some time after bytes at .. at+n of all rows. */
INLINE void prefetch_rows(const struct rows *r, size_t at, size_t n)
{
    if (r->runs) {
        if ((at + n) / 64 == at / 64) return;
#pragma GCC unroll 16
        for (int i = 0; i < ROW_TILE; i++) _mm_prefetch((const char *)row_at(r, i, at + RUN_LEAD), _MM_HINT_T1);
        return;
    }
    const size_t rows = rows_of_piece(r);
#pragma GCC unroll 4
    for (size_t j = 0; j < PREFETCH_STREAMS; j++) {
        const char *p = (const char *)r->ahead + (j == 3 ? r->piece3 : j * r->piece) + rows * at;
#pragma GCC unroll 2
        for (size_t i = 0; i < rows * n; i += 64) _mm_prefetch(p + i, _MM_HINT_T1);
    }
}

/* On to what comes n bytes later in each row. */
INLINE void move_on(struct rows *r, size_t n)
{
    r->half[0] += n;
    r->half[1] += n;
    if (!r->runs) r->ahead += rows_of_piece(r) * n;
}

/* The 4 x 4 dwords of each quarter, transposed. */
INLINE void transpose_quarters(__m512i out[4], const __m512i v[4])
{
    __m512i t0 = _mm512_unpacklo_epi32(v[0], v[1]), t1 = _mm512_unpackhi_epi32(v[0], v[1]);
    __m512i t2 = _mm512_unpacklo_epi32(v[2], v[3]), t3 = _mm512_unpackhi_epi32(v[2], v[3]);
    out[0] = _mm512_unpacklo_epi64(t0, t2);
    out[1] = _mm512_unpackhi_epi64(t0, t2);
    out[2] = _mm512_unpacklo_epi64(t1, t3);
    out[3] = _mm512_unpackhi_epi64(t1, t3);
}

INLINE __m512i load_two_rows(const struct rows *r, int low, int high, size_t at)
{
    __m256i l = _mm256_loadu_si256((const void *)row_at(r, low, at));
    return _mm512_inserti64x4(_mm512_castsi256_si512(l), _mm256_loadu_si256((const void *)row_at(r, high, at)), 1);
}

/* out[j] = dword j of the 32 bytes at `at` of each row. */
INLINE void load_8(__m512i out[8], const struct rows *r, size_t at)
{
    prefetch_rows(r, at, 32);
    __m512i a[4], b[4]; /* rows i, i+4, i+8, i+12 in the four quarters: dwords 0..3 and 4..7 */
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512i x = load_two_rows(r, i, i + 4, at), y = load_two_rows(r, i + 8, i + 12, at);
        a[i] = _mm512_shuffle_i64x2(x, y, 0x88);
        b[i] = _mm512_shuffle_i64x2(x, y, 0xdd);
    }
    transpose_quarters(out, a);
    transpose_quarters(out + 4, b);
}

/* The same for 16 bytes. */
INLINE void load_4(__m512i out[4], const struct rows *r, size_t at)
{
    prefetch_rows(r, at, 16);
    __m512i v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        v[i] = _mm512_castsi128_si512(_mm_loadu_si128((const void *)row_at(r, i, at)));
        v[i] = _mm512_inserti32x4(v[i], _mm_loadu_si128((const void *)row_at(r, i + 4, at)), 1);
        v[i] = _mm512_inserti32x4(v[i], _mm_loadu_si128((const void *)row_at(r, i + 8, at)), 2);
        v[i] = _mm512_inserti32x4(v[i], _mm_loadu_si128((const void *)row_at(r, i + 12, at)), 3);
    }
    transpose_quarters(out, v);
}

/* The same for 4 bytes. Not by a gather: those are slow on some CPUs, and on others since Downfall's mitigation. */
INLINE __m512i load_1(const struct rows *r, size_t at)
{
    prefetch_rows(r, at, 4);
    __m128i v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m128i a = _mm_loadu_si32(row_at(r, 4 * i, at)), b = _mm_loadu_si32(row_at(r, 4 * i + 1, at));
        __m128i c = _mm_loadu_si32(row_at(r, 4 * i + 2, at)), d = _mm_loadu_si32(row_at(r, 4 * i + 3, at));
        v[i] = _mm_unpacklo_epi64(_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
    }
    __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(v[0]), v[1], 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), _mm256_inserti128_si256(_mm256_castsi128_si256(v[2]), v[3], 1), 1);
}

#endif
