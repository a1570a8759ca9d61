/* Products in chunks, and the memory of activations: see product.h. */
#include "product.h"

enum { ERROR_FLOATS = 1024 }; /* a multiple of ACT_BLOCK */

bool weight_is_quantized(const struct weight *w)
{
    return w->type != TYPE_F32 && w->type != TYPE_F16 && w->type != TYPE_BF16;
}

struct act act_rows(const struct act *a, int t0, int t1)
{
    struct act v = *a;
    size_t t = (size_t)t0, n = (size_t)a->n;
    v.n_rows = t1 - t0;
    v.x = a->x ? a->x + t * a->ld_x : NULL;
    v.q += t * n;
    v.scale += t * n / ACT_BLOCK;
    v.sum += t * n / ACT_SUM_BLOCK;
    v.fsum += t * n / ACT_SUM_BLOCK;
    return v;
}

void act_quantize_part(const struct kernels *k, const struct act *a, int row, int c0, const float *x, int n)
{
    size_t at = (size_t)row * (size_t)a->n + (size_t)c0;
    struct act part = {.n_rows = 1, .n = n, .x = x, .ld_x = (size_t)n, .q = a->q + at,
                       .scale = a->scale + at / ACT_BLOCK, .sum = a->sum + at / ACT_SUM_BLOCK,
                       .fsum = a->fsum + at / ACT_SUM_BLOCK};
    k->quantize(&part, 0);
}

void act_quantize_error(const struct kernels *k, const struct act *a, const float *x, int from, int to, int c0, int n)
{
    float error[ERROR_FLOATS];
    for (int done = 0, part; done < n; done += part, x += part) {
        part = n - done < ERROR_FLOATS ? n - done : ERROR_FLOATS;
        size_t at = (size_t)from * (size_t)a->n + (size_t)(c0 + done);
        const int8_t *q = a->q + at;
        const float *scale = a->scale + at / ACT_BLOCK;
        for (int b = 0; b < part; b += ACT_BLOCK, scale++)
            for (int i = b; i < b + ACT_BLOCK; i++) error[i] = x[i] - *scale * (float)q[i];
        act_quantize_part(k, a, to, c0 + done, error, part);
    }
}

void multiply_rows(const struct kernels *k, const struct weight *w, int row0, int row1, const struct act *a, float *y,
                   size_t ld_y, void *scratch)
{
    struct weight part = *w;
    part.data = (const char *)w->data + (size_t)row0 * w->row_bytes;
    part.n_out = row1 - row0;
    k->matmul[w->type](&part, 0, part.n_out, a, y, ld_y, scratch);
}

void multiply_tile(const struct kernels *k, const struct weight *w, int row0, int row1, const struct act *a, float *y,
                   void *scratch)
{
    multiply_rows(k, w, row0, row1, a, y, (size_t)(row1 - row0), scratch);
}

/* Rows of a matrix that a chunk has. */
static int chunk_rows(int n_out, int n_tokens, int block)
{
    if (n_tokens < MANY_TOKENS) {
        int rows = n_out / CHUNKS / CHUNK_ROWS * CHUNK_ROWS;
        return rows < CHUNK_ROWS ? CHUNK_ROWS : rows > CHUNK_ROWS_MAX ? CHUNK_ROWS_MAX : rows;
    }
    int rows = MANY_ROWS, blocks = (n_tokens + block - 1) / block;
    while (rows > MANY_ROWS / 8 && n_out / rows * blocks < MANY_CHUNKS) rows /= 2;
    return rows;
}

bool next_chunk(struct pool_thread *t, int n_out, int rows, int n_tokens, int block, struct chunk *c)
{
    int blocks = (n_tokens + block - 1) / block, begin, end;
    if (!pool_share(t, (n_out + rows - 1) / rows * blocks, 1, &begin, &end)) return false;
    c->row0 = begin / blocks * rows;
    c->row1 = c->row0 + rows < n_out ? c->row0 + rows : n_out;
    c->t0 = begin % blocks * block;
    c->t1 = c->t0 + block < n_tokens ? c->t0 + block : n_tokens;
    return true;
}

/* next_chunk for few tokens, chunk_bytes: of `rows` rows. */
static bool next_long_chunk(struct pool_thread *t, int n_out, int rows, size_t chunk_bytes, int n_tokens, struct chunk *c)
{
    size_t most = LONG_BYTES / chunk_bytes;
    c->t0 = 0;
    c->t1 = n_tokens;
    return pool_share_long(t, n_out, rows, most > 1 ? (int)most : 1, &c->row0, &c->row1);
}

bool next_units(struct pool_thread *t, int n_units, size_t unit_bytes, int n_tokens, int block, struct chunk *c)
{
    if (n_tokens <= FEW_TOKENS) return next_long_chunk(t, n_units, 1, unit_bytes, n_tokens, c);
    return next_chunk(t, n_units, 1, n_tokens, block, c);
}

bool next_rows(struct pool_thread *t, const struct weight *w, int n_tokens, int block, struct chunk *c)
{
    int rows = chunk_rows(w->n_out, n_tokens, block);
    if (n_tokens <= FEW_TOKENS) return next_long_chunk(t, w->n_out, rows, (size_t)rows * w->row_bytes, n_tokens, c);
    return next_chunk(t, w->n_out, rows, n_tokens, block, c);
}

int heads_of_whole_tiles(int a, int b)
{
    int n = 1;
    while (n * a % ROW_TILE || n * b % ROW_TILE) n++;
    return n;
}

void *arena_take(struct arena *a, size_t n, size_t element_bytes)
{
    void *p = a->base ? a->base + a->used : NULL;
    a->used += (n * element_bytes + 127) / 128 * 128;
    return p;
}

struct act arena_take_act(struct arena *a, size_t n_rows, int n, float **x)
{
    size_t elements = n_rows * (size_t)n;
    if (x) *x = arena_take(a, elements, sizeof **x);
    struct act v = {.n = n, .x = x ? *x : NULL, .ld_x = (size_t)n};
    v.q = arena_take(a, elements, sizeof *v.q);
    v.scale = arena_take(a, elements / ACT_BLOCK + 1, sizeof *v.scale);
    v.sum = arena_take(a, elements / ACT_SUM_BLOCK + 1, sizeof *v.sum);
    v.fsum = arena_take(a, elements / ACT_SUM_BLOCK + 1, sizeof *v.fsum);
    return v;
}
