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
    int8_t q[SLAB / ACT_BLOCK][AMX_TOKENS][ACT_BLOCK];
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

/* Weights that are unpacked some time later, to be fetched meanwhile: `step` bytes (at most a line) AMX_PREFETCHES times with
 * each sub-block of each group. */
struct amx_ahead {
    const char *p;
    ptrdiff_t step;
};
enum { AMX_PREFETCHES = AMX_TOKENS / 2 };

/* Adds n_sub sub-blocks' products to the sums of each group, or to 0 if they are the first. */
typedef void amx_multiply_fn(struct amx_sums *c, const struct tile *w, const struct amx_group *a, int n_groups, int n_sub,
                             bool first, struct amx_ahead ahead);

/* By whether the weights are unsigned (formats with a minimum), and sub-block / 16 - 1. */
extern amx_multiply_fn *const avx512_amx_multiply[2][2];

#endif
