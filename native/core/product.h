/* What the forward passes share: products of a weight matrix with rows of activations, in chunks, and the memory of
 * activations.
 *
 * A product is cut into chunks of rows of the matrix by blocks of tokens, which the pool's threads take. Which chunks
 * there are changes no result: kernels compute each output by itself (kernels.h).
 *
 * Buffers are the caller's; inside a step any of the pool's threads calls. */
#ifndef INFER_PRODUCT_H
#define INFER_PRODUCT_H

#include "kernels.h"
#include "pool.h"

enum {
    CHUNK_ROWS = 32,     /* least rows of one chunk: a multiple of ROW_TILE and of ACT_BLOCK */
    CHUNK_ROWS_MAX = 512,
    CHUNKS = 128,        /* about as many chunks of rows, where a matrix is tall enough */
    MANY_TOKENS = 16,    /* from here on a chunk has more rows, which pays for looking at its tokens: */
    MANY_ROWS = 512,     /* so many, or a half, a quarter or an eighth of them, */
    MANY_CHUNKS = 32,    /* so that there are at least so many chunks */
    FEW_TOKENS = 4,      /* up to here memory is the limit, which is read faster in long pieces: several chunks at once, */
    LONG_BYTES = 1 << 20, /* up to so many bytes of weights */
};

bool weight_is_quantized(const struct weight *w);

/* ---- activations ---- */

/* Rows t0 .. t1-1 of a. */
struct act act_rows(const struct act *a, int t0, int t1);

/* Quantizes columns c0 .. c0+n-1 of one row of a, which are x; c0 and n are multiples of ACT_BLOCK. */
void act_quantize_part(const struct kernels *k, const struct act *a, int row, int c0, const float *x, int n);

/* Row `to` of a, whose floats are y, = the quantized rounding errors of row `from`: a second product with them
 * makes up for most of what int8 activations lose. Columns c0 .. c0+n-1 (multiples of ACT_BLOCK). */
void act_quantize_error(const struct kernels *k, const struct act *a, const float *x, int from, int to, int c0, int n);

/* ---- products ---- */

/* y[t*ld_y + r - row0] = rows row0 <= r < row1 of w times rows t of a; row0 is a multiple of ROW_TILE. */
void multiply_rows(const struct kernels *k, const struct weight *w, int row0, int row1, const struct act *a, float *y,
                   size_t ld_y, void *scratch);

/* y [a->n_rows, row1-row0] in one piece = rows row0 .. row1-1 of w times a. */
void multiply_tile(const struct kernels *k, const struct weight *w, int row0, int row1, const struct act *a, float *y,
                   void *scratch);

struct chunk {
    int row0, row1, t0, t1;
};

/* The next chunk for this thread, of `rows` of n_out rows and `block` of n_tokens tokens, or what is left of them; false:
 * none is left, and pool_barrier comes next. */
bool next_chunk(struct pool_thread *t, int n_out, int rows, int n_tokens, int block, struct chunk *c);
/* The same of n_units units of rows, with unit_bytes of weights each; c's rows count units. Up to FEW_TOKENS tokens take
 * several units at once. */
bool next_units(struct pool_thread *t, int n_units, size_t unit_bytes, int n_tokens, int block, struct chunk *c);
/* The same of the rows of w: how many make a chunk is decided here. */
bool next_rows(struct pool_thread *t, const struct weight *w, int n_tokens, int block, struct chunk *c);

/* Fewest heads whose rows of a and of b elements are whole tiles. */
int heads_of_whole_tiles(int a, int b);

/* ---- memory ---- */

/* Hands out pieces of one mapping; with base NULL it only adds up. */
struct arena {
    char *base;
    size_t used;
};

void *arena_take(struct arena *a, size_t n, size_t element_bytes);
/* Activations of n_rows rows; their floats too if x is not NULL: *x is where to write them. */
struct act arena_take_act(struct arena *a, size_t n_rows, int n, float **x);

#endif
