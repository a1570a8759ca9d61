/* What the parts of the quantized matrix products hand to each other.
 *
 * All of them work on ROW_TILE = 16 weight rows at a time with lane = weight row: one
 * register holds four columns of 16 rows, which is what VPDPBUSD wants beside four
 * activation bytes broadcast to all lanes. Sixteen results then lie in one register, so
 * the float work of a sub-block (conversion, scale, fma) is 16 rows at a time and
 * each output is one lane's chain of fma, in the order that kernels.h prescribes.
 *
 * Everything here lies in the caller's scratch, one thread's own. */
#ifndef INFER_AVX512_TILE_H
#define INFER_AVX512_TILE_H

#include <immintrin.h>

#include "kernels.h"
#include "rows.h"

/* ---- few activation rows: stream.c ---- */

enum {
    STREAM_TOKENS = 4,        /* activation rows at most */
    STREAM_COLUMNS = 32768,   /* columns at most; wider matrices go through tiles */
};

/* Activation rows, per sub-block of the weights' format. */
struct act_rows {
    const int8_t *q;
    size_t ld_q;
    float scale[STREAM_TOKENS][STREAM_COLUMNS / 16];
    float fsum[STREAM_TOKENS][STREAM_COLUMNS / 16];     /* scale * sum; formats with a minimum only */
    int32_t start[STREAM_TOKENS][STREAM_COLUMNS / 16];  /* -zero * sum: the integer sums start here */
};

/* y[t] = the products of 16 rows of n_blocks blocks with activation row t. By type and number of tokens. */
typedef void stream_fn(__m512 *y, const struct rows *r, int n_blocks, const struct act_rows *a);
extern stream_fn *const avx512_stream[TYPE_COUNT][STREAM_TOKENS + 1];

/* ---- many: unpack.c, multiply.c ---- */

enum {
    SLAB = 512,        /* columns of a tile; a multiple of every format's block */
    GROUP_TOKENS = 6,  /* activation rows that are multiplied at once, see multiply.c */
    ACT_STRIDE = SLAB + 64,
};

/* A slab of 16 weight rows, unpacked. */
struct tile {
    __m512i w[SLAB / 4]; /* [k/4]: bytes k..k+3 of each row, unsigned */
    __m512 d[SLAB / 16]; /* [sub-block] */
    __m512 m[SLAB / 16]; /* [sub-block], formats with a minimum only */
};

/* The same columns of up to GROUP_TOKENS activation rows, copied so that each is a fixed
 * distance from the next: that saves a pointer per row, and rows whose length is a
 * multiple of the page would all fall on the same lines of L1. */
struct act_slab {
    int8_t q[GROUP_TOKENS][ACT_STRIDE];
    float scale[GROUP_TOKENS][SLAB / 16];
    float fsum[GROUP_TOKENS][SLAB / 16];
    int32_t start[GROUP_TOKENS][SLAB / 16];
};

typedef void unpack_fn(struct tile *out, const struct rows *r, int n_blocks);
extern unpack_fn *const avx512_unpack[TYPE_COUNT];

/* Adds n_sub sub-blocks' products to acc, [tile][token], ld_acc vectors from tile to tile. */
typedef void multiply_fn(__m512 *acc, size_t ld_acc, const struct tile *w, const struct act_slab *a, int n_sub);

/* By the number of tiles - 1 (1 or 2) and of tokens (1..GROUP_TOKENS). */
extern multiply_fn *const avx512_multiply32[2][GROUP_TOKENS + 1], *const avx512_multiply16[2][GROUP_TOKENS + 1];
/* The same for the minima. */
extern multiply_fn *const avx512_minima[2][GROUP_TOKENS + 1];

#endif
