/* What the matrix products with VPDPBUSD (matmul_quantized.c, matmul_few.c) and with AMX (matmul_amx.c) share: what they need to
 * know of a format, of the activations' sums, and where a tile's rows are. Pure functions, any thread. */
#ifndef INFER_AVX512_SLAB_H
#define INFER_AVX512_SLAB_H

#include "formats.h"
#include "tile.h"

struct format {
    int block, block_bytes, sub, zero;
    bool has_min;
};

#define LINE(name, NAME, block, sub, zero, has_min) \
    [TYPE_##NAME] = {block, (int)sizeof(struct block_##name), sub, zero, has_min},
static const struct format formats[TYPE_COUNT] = {FOR_EACH_FORMAT(LINE)};

/* The sums of sub-blocks 0..15, of which `left` exist, of 16 or 32 columns. */
INLINE __m512i sub_block_sums(const int32_t *sum, int left, int sub)
{
    if (sub == ACT_SUM_BLOCK) return _mm512_maskz_loadu_epi32(lanes_left(left), sum);
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    __m512i a = _mm512_maskz_loadu_epi32(lanes_left(2 * left), sum);
    __m512i b = left > 8 ? _mm512_maskz_loadu_epi32(lanes_left(2 * left - 16), sum + 16) : _mm512_setzero_si512();
    return _mm512_add_epi32(_mm512_permutex2var_epi32(a, even, b),
                            _mm512_permutex2var_epi32(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b));
}

/* Of the n/sub sub-blocks from column k0 of row t: scale * sum where the format has minima, else -zero * sum. */
INLINE void prepare_sub_blocks(void *out, const struct act *a, int t, int k0, int n, const struct format *f)
{
    size_t k = (size_t)t * (size_t)a->n + (size_t)k0;
    const int32_t *sum = a->sum + k / ACT_SUM_BLOCK;
    for (int s = 0, n_sub = n / f->sub; s < n_sub; s += 16) {
        __mmask16 some = lanes_left(n_sub - s);
        __m512i v = sub_block_sums(sum + s * f->sub / ACT_SUM_BLOCK, n_sub - s, f->sub);
        if (!f->has_min)
            v = _mm512_mullo_epi32(v, _mm512_set1_epi32(-f->zero));
        else if (f->sub == ACT_SUM_BLOCK)
            v = _mm512_castps_si512(_mm512_maskz_loadu_ps(some, a->fsum + k / ACT_SUM_BLOCK + s));
        else
            v = _mm512_castps_si512(_mm512_mul_ps(_mm512_maskz_loadu_ps(some, a->scale + k / ACT_BLOCK + s),
                                                  _mm512_cvtepi32_ps(v)));
        _mm512_mask_storeu_epi32((int32_t *)out + s, some, v);
    }
}

/* Sixteen rows from r0, at column k0. While they are read the next sixteen are fetched. */
INLINE struct rows tile_rows(const struct weight *w, int r0, int k0, const struct format *f)
{
    size_t at = (size_t)(k0 / f->block * f->block_bytes);
    const unsigned char *first = (const unsigned char *)w->data + (size_t)r0 * w->row_bytes;
    return (struct rows){
        .half = {first + at, first + at + ROW_TILE / 2 * w->row_bytes},
        .stride = w->row_bytes,
        .ahead = first + ROW_TILE * w->row_bytes + ROW_TILE / PREFETCH_STREAMS * at,
        .piece = ROW_TILE / PREFETCH_STREAMS * w->row_bytes,
    };
}

/* The same for a tile that is unpacked as one of many: meanwhile half as many bytes are fetched, of the `half` bytes from `next` on,
 * in pieces side by side; the other half is fetched while tiles are multiplied. */
INLINE struct rows unpacked_rows(const struct weight *w, int r0, int k0, const struct format *f, const void *next, size_t half)
{
    struct rows rows = tile_rows(w, r0, k0, f);
    rows.ahead = next;
    rows.piece = half / PREFETCH_STREAMS;
    rows.eight = true;
    return rows;
}

/* Rows r .. row1-1 of the 16 that begin at r0. */
INLINE __mmask16 rows_of_tile(int r, int r0, int row1) { return (__mmask16)(lanes_left(row1 - r0) & (0xffffu << (r - r0))); }

/* Stores them. */
INLINE void store_rows(float *y, int r, int r0, int row1, __m512 v)
{
    _mm512_mask_storeu_ps(y + r0, rows_of_tile(r, r0, row1), v);
}

#endif
