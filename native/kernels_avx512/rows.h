/* Sixteen weight rows in the file, read so that lane = row.
 *
 * Row i begins i * stride bytes after the first. A "dword" below is any four bytes of a row, aligned or
 * not; loading n of them from each of 16 rows is an n x 16 transposition in registers. The
 * first step of it is done by inserting loads, which run on both vector ports; the
 * shuffles that follow run on one only. Nothing is read but what is named. */
#ifndef INFER_AVX512_ROWS_H
#define INFER_AVX512_ROWS_H

#include "kernels.h"
#include "vector.h"

/* What is read some time later is asked for in PREFETCH_STREAMS places at once: requests that have to wait for memory are limited
 * by the core's few line buffers, but the L2 streamer, which works page by page, stays ahead of them in as many pages.
 *
 * One row of activations and blocks of 32, where there is least arithmetic, are faster in one place with every line asked for
 * twice, PREFETCH_LEAD bytes apart: the second pass over a page keeps the streamer ahead of the first. */
enum { PREFETCH_STREAMS = 4, PREFETCH_LEAD = 2048 };

struct rows {
    const unsigned char *first;
    size_t stride;
    const unsigned char *ahead; /* what is read some time later, to be prefetched: PREFETCH_STREAMS pieces of together 16 rows' worth */
    size_t piece;               /* bytes from piece to piece */
    bool half;                  /* the pieces are of 8 rows' worth, the other 8 are the caller's to fetch */
    bool one;                   /* all 16 rows' worth as one piece */
};

INLINE const unsigned char *row_at(const struct rows *r, int i, size_t at)
{
    return r->first + (size_t)i * r->stride + at;
}

/* Fetches into L2 the lines of `ahead` that correspond to bytes at .. at+n of all 16 rows. */
INLINE void prefetch_rows(const struct rows *r, size_t at, size_t n)
{
    if (r->one) {
        const char *p = (const char *)r->ahead + ROW_TILE * at;
#pragma GCC unroll 8
        for (size_t i = 0; i < ROW_TILE * n; i += 64) {
            _mm_prefetch(p + i, _MM_HINT_T1);
            _mm_prefetch(p + i + PREFETCH_LEAD, _MM_HINT_T1);
        }
        return;
    }
    const size_t rows = r->half ? ROW_TILE / PREFETCH_STREAMS / 2 : ROW_TILE / PREFETCH_STREAMS;
#pragma GCC unroll 4
    for (size_t j = 0; j < PREFETCH_STREAMS; j++) {
        const char *p = (const char *)r->ahead + j * r->piece + rows * at;
#pragma GCC unroll 2
        for (size_t i = 0; i < rows * n; i += 64) _mm_prefetch(p + i, _MM_HINT_T1);
    }
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
