/* The shape that every quantized format is unpacked to, and what is multiplied with it.
 *
 * A tile is ROW_TILE = 16 weight rows by a slab of columns, lane = weight row: one
 * register holds four columns of all 16 rows, which is what VPDPBUSD wants beside four
 * activation bytes broadcast to all lanes. Sixteen results then lie in one register, so
 * the float work of a sub-block (conversion, scale, fma) is 16 rows at a time and
 * each output is one lane's chain of fma, in the order that kernels.h prescribes.
 *
 * Everything here lies in the caller's scratch, one thread's own. */
#ifndef INFER_AVX512_TILE_H
#define INFER_AVX512_TILE_H

#include <immintrin.h>

#include "kernels.h"

enum {
    SLAB = 512,       /* columns of a tile: two super-blocks, so that slabs end on whole dwords in every format */
    GROUP_TOKENS = 12, /* activation rows that are multiplied at once, see multiply.c */
    ACT_STRIDE = SLAB + 64,
};

struct tile {
    __m512i w[SLAB / 4]; /* [k/4]: bytes k..k+3 of each row, unsigned */
    __m512 d[SLAB / 16]; /* [sub-block] */
    __m512 m[SLAB / 16]; /* [sub-block], formats with a minimum only */
};

/* The same columns of up to GROUP_TOKENS activation rows, copied so that each is a fixed
 * distance from the next: that saves a pointer per row, and rows of the act whose length is a
 * multiple of the page would all fall on the same lines of L1. */
struct act_slab {
    int8_t q[GROUP_TOKENS][ACT_STRIDE];
    float scale[GROUP_TOKENS][SLAB / 16];   /* [sub-block] */
    float fsum[GROUP_TOKENS][SLAB / 16];    /* [sub-block], scale * sum; formats with a minimum only */
    int32_t start[GROUP_TOKENS][SLAB / 16]; /* [sub-block], -zero * sum: the integer sums start here */
};

/* Adds n_sub sub-blocks' products to acc, one vector of 16 rows for each of the tokens. */
typedef void multiply_fn(__m512 *acc, const struct tile *w, const struct act_slab *a, int n_sub);
/* The same for the minima. */
typedef void minima_fn(__m512 *macc, const struct tile *w, const struct act_slab *a, int n_sub);

/* By the number of tokens, 1..GROUP_TOKENS. */
extern multiply_fn *const avx512_multiply32[GROUP_TOKENS + 1], *const avx512_multiply16[GROUP_TOKENS + 1];
extern minima_fn *const avx512_minima[GROUP_TOKENS + 1];

/* One quantized format: how its blocks become a tile. */
struct tile_format {
    int block, block_bytes; /* elements and bytes of a block; block 0: no such format */
    int sub;                /* elements of a sub-block: 16 or 32 */
    int zero;               /* what w has too much, because it is unsigned */
    bool has_min;
    /* columns[j] is dword j of the 16 rows' n_blocks blocks. */
    void (*unpack)(struct tile *out, const __m512i *columns, int n_blocks);
};

extern const struct tile_format avx512_formats[TYPE_COUNT];

enum {
    SLAB_MAX_BYTES = SLAB / 32 * 34, /* of one row in the file: Q8_0 is the widest */
    SLAB_COLUMNS = (SLAB_MAX_BYTES + 63) / 64 * 16 + 1,
};

#endif
