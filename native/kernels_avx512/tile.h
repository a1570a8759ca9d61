/* What the parts of the quantized matrix products hand to each other.
 *
 * All of them work on ROW_TILE = 16 weight rows at a time with lane = weight row: one
 * register holds four columns of 16 rows, which is what VPDPBUSD wants beside four
 * activation bytes broadcast to all lanes. Sixteen results then lie in one register, so
 * the float work of a sub-block (conversion, scale, fma) is 16 rows at a time and
 * each output is one lane's chain of fma, in the order that kernels.h prescribes.
 *
 * All of it is one thread's own, in the caller's scratch or on its stack. */
#ifndef INFER_AVX512_TILE_H
#define INFER_AVX512_TILE_H

#include <immintrin.h>

#include "kernels.h"
#include "rows.h"

/* ---- few activation rows: matmul_few.c, stream.c ---- */

enum {
    STREAM_TOKENS = 8,          /* activation rows at most */
    STREAM_SUB_BLOCKS = 16384,  /* of all of them at most */
    SIDE_TOKENS = 4,            /* up to so many rows have functions of their own, which want them side by side */
};

/* T activation rows side by side: dword i of row t is dword SIDE_STEP(T) * i + t. So one register reaches all of them. */
#define SIDE_STEP(T) ((T) > 2 ? 4 : (T))

/* Activation rows, with what the weights' format wants to know of each sub-block. */
struct act_rows {
    const int8_t *q;
    const float *scale;       /* of 32 columns each */
    union {                   /* by sub-block */
        const float *fsum;    /* scale * sum; formats with a minimum */
        const int32_t *start; /* -zero * sum, where the integer sums start; the others */
    };
    size_t ld_q, ld_scale, ld_sub; /* from row to row, where they are not side by side */
};

/* y[t] = the products of 16 rows of n_blocks blocks with activation row t < n_tokens. */
typedef void stream_fn(__m512 *y, const struct rows *r, int n_blocks, const struct act_rows *a, int n_tokens);
/* For rows one after the other, STREAM_TOKENS at most. */
stream_fn *avx512_stream(enum tensor_type t);
/* For exactly n_tokens <= SIDE_TOKENS rows side by side; weights in runs (rows.h) or consecutive. */
stream_fn *avx512_stream_side(enum tensor_type t, int n_tokens, bool runs);

/* ---- many: unpack.c, multiply.c ---- */

enum {
    SLAB = 512,         /* columns of a tile; a multiple of every format's block */
    GROUP_TOKENS = 6,   /* activation rows that are multiplied at once, see multiply.c */
    BLOCK_TOKENS = 256, /* activation rows that one unpacking of the weights serves */
};

/* A slab of 16 weight rows, unpacked. */
struct tile {
    __m512i w[SLAB / 4]; /* [k/4]: bytes k..k+3 of each row, unsigned */
    __m512 d[SLAB / ACT_BLOCK]; /* of 32 columns each */
    __m512 factor[SLAB / 16];   /* [sub-block], integers, formats with sub-blocks of 16 only */
    __m512 m[SLAB / 16];        /* [sub-block], formats with a minimum only */
};

typedef void unpack_fn(struct tile *out, const struct rows *r, int n_blocks);
extern unpack_fn *const avx512_unpack[TYPE_COUNT];
/* The same less the format's zero: signed, but for formats whose zero is 0. */
extern unpack_fn *const avx512_unpack_signed[TYPE_COUNT];

/* The same columns of a group of activation rows. */
struct act_slab {
    const int8_t *q;
    size_t ld_q;
    const float *scale; /* of 32 columns each */
    size_t ld_scale;
    const float (*fsum)[SLAB / 16];    /* [token][sub-block]: scale * sum; formats with a minimum only */
    const int32_t (*start)[SLAB / 16]; /* [token][sub-block]: -zero * sum; the integer sums start here */
};

/* Adds n_sub sub-blocks' products to acc, [tile][token], BLOCK_TOKENS vectors from tile to tile. Meanwhile asks for memory from
 * `far` on, a line every far_step bytes, FAR_PREFETCHES with a sub-block. */
enum { FAR_PREFETCHES = 2 };
typedef void multiply_fn(__m512 *acc, const struct tile *w, const struct act_slab *a, int n_sub, const char *far, size_t far_step);

/* By the number of tiles - 1 (1 or 2) and of tokens (1..GROUP_TOKENS). */
extern multiply_fn *const avx512_multiply32[2][GROUP_TOKENS + 1], *const avx512_multiply16[2][GROUP_TOKENS + 1];

/* The same for the minima, which ask for nothing. */
typedef void minima_fn(__m512 *macc, const struct tile *w, const struct act_slab *a, int n_sub);
extern minima_fn *const avx512_minima[2][GROUP_TOKENS + 1];

#endif
