/* What the parts of the AMX products hand to each other: matmul_amx.c and multiply_amx.c.
 *
 * All of it lies in the caller's scratch, one thread's own. */
#ifndef INFER_AVX512_AMX_H
#define INFER_AVX512_AMX_H

#include "tile.h"

enum {
    AMX_TOKENS = 16, /* activation rows of a group: the rows of an AMX tile */
};

/* The same columns of a group of activation rows, in the order in which they are read. */
struct amx_group {
    int8_t q[SLAB / 64][AMX_TOKENS][64];
    float scale[SLAB / ACT_BLOCK][AMX_TOKENS];
    float fsum[SLAB / 16][AMX_TOKENS]; /* of each sub-block: scale * sum; formats with a minimum only */
};

/* The float sums of 16 weight rows and a group. */
struct amx_sums {
    __m512 acc[AMX_TOKENS];
};

/* Configures this thread's tiles for sub-blocks of `sub` columns, and frees them again. */
void avx512_amx_begin(int sub);
void avx512_amx_end(void);

/* What is asked for while a tile is multiplied: from memory what is unpacked some time later, evenly, and from L2 into L1
 * the rows that are unpacked next, with the last of the products. */
struct amx_ahead {
    const char *far;           /* two pieces */
    size_t piece, bytes;       /* from one to the other, and of each */
    const char *near;          /* ROW_TILE rows */
    size_t stride, near_bytes; /* from row to row, and of each */
};

/* Adds n_sub sub-blocks' products to the sums of each group, or to 0 if they are the first. */
typedef void amx_multiply_fn(struct amx_sums *c, const struct tile *w, const struct amx_group *a, int n_groups, int n_sub,
                             bool first, const struct amx_ahead *ahead);

/* By whether the weights are unsigned (formats with a minimum), and sub-block / 16 - 1. */
extern amx_multiply_fn *const avx512_amx_multiply[2][2];

#endif
