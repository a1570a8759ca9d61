/* Matrix products of all quantized formats: which rows meet which activations when.
 *
 * Few activation rows (STREAM_TOKENS): 16 weight rows after the other straight from the file
 * (stream.c); their bytes are one contiguous run through it, and the next 16 rows' are prefetched.
 *
 * More: weights are unpacked once into tiles (unpack.c), which are multiplied by 6 tokens
 * at a time (multiply.c). BLOCK_TILES tiles (4 * 12 KB) stay in L2, streamed through L1 once per group of
 * tokens at two vectors per 12 VPDPBUSD; the group's activations (6 * 512 bytes) stay in
 * L1. Float sums of BLOCK_TOKENS tokens wait in L2 from slab to slab, so that each weight is unpacked once
 * for as many tokens.
 *
 * Rows that are not a whole tile: the last tile takes the 16 rows that end there, and stores
 * the new ones only. Matrices of fewer than 16 rows go to the scalar table.
 *
 * Scratch is the caller's, one thread's own; pure otherwise, any thread. */
#include "avx512.h"
#include "formats.h"
#include "tile.h"

enum { BLOCK_TILES = 4, BLOCK_TOKENS = 256 };

struct scratch {
    union {
        struct act_rows act_rows;
        struct {
            struct tile tiles[BLOCK_TILES];
            struct act_slab acts;
            __m512 acc[BLOCK_TILES][BLOCK_TOKENS];
            __m512 macc[BLOCK_TILES][BLOCK_TOKENS];
        };
    };
};
_Static_assert(sizeof(struct scratch) <= AVX512_SCRATCH_BYTES, "AVX512_SCRATCH_BYTES is too small");

struct format {
    int block, block_bytes, sub, zero;
    bool has_min;
};

#define LINE(name, NAME, block, sub, zero, has_min) \
    [TYPE_##NAME] = {block, (int)sizeof(struct block_##name), sub, zero, has_min},
static const struct format formats[TYPE_COUNT] = {FOR_EACH_FORMAT(LINE)};

/* Scale, sum times scale, and start value of the n/f->sub sub-blocks from column k0 of row t. */
static void act_sub_blocks(float *scale, float *fsum, int32_t *start, const struct act *a, int t, int k0, int n,
                           const struct format *f)
{
    size_t k = (size_t)t * (size_t)a->n + (size_t)k0;
    const float *from = a->scale + k / ACT_BLOCK;
    const int32_t *sum = a->sum + k / ACT_SUM_BLOCK;
    for (int s = 0; s < n / f->sub; s++) {
        float sc = f->sub == 16 ? from[s / 2] : from[s];
        int32_t total = f->sub == 16 ? sum[s] : sum[2 * s] + sum[2 * s + 1];
        scale[s] = sc;
        fsum[s] = sc * (float)total;
        start[s] = -f->zero * total;
    }
}

static struct rows tile_rows(const struct weight *w, int r0, int k0, int n_tiles, const struct format *f)
{
    size_t at = (size_t)(k0 / f->block * f->block_bytes);
    const unsigned char *first = (const unsigned char *)w->data + (size_t)r0 * w->row_bytes;
    return (struct rows){
        .first = first + at,
        .stride = w->row_bytes,
        .ahead = first + ROW_TILE * (at + (size_t)n_tiles * w->row_bytes),
    };
}

/* Stores rows r.. of the 16 that begin at r0. */
static void store_rows(float *y, int r, int r0, int row1, __m512 v)
{
    __mmask16 some = (__mmask16)(lanes_left(row1 - r0) & (0xffffu << (r - r0)));
    _mm512_mask_storeu_ps(y + r0, some, v);
}

static void stream(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                   struct act_rows *rows)
{
    const struct format *f = &formats[w->type];
    rows->q = a->q;
    rows->ld_q = (size_t)a->n;
    for (int t = 0; t < a->n_rows; t++)
        act_sub_blocks(rows->scale[t], rows->fsum[t], rows->start[t], a, t, 0, a->n, f);
    stream_fn *multiply = avx512_stream[w->type][a->n_rows];
    for (int r = row0; r < row1; r += ROW_TILE) {
        int r0 = r + ROW_TILE <= row1 ? r : row1 - ROW_TILE;
        struct rows tile = tile_rows(w, r0, 0, 1, f);
        __m512 v[STREAM_TOKENS];
        multiply(v, &tile, w->n_in / f->block, rows);
        for (int t = 0; t < a->n_rows; t++) store_rows(y + (size_t)t * ld_y, r, r0, row1, v[t]);
    }
}

/* Tiles that begin at rows r0[] against tokens t0 .. t0+n_tokens, summed up in s->acc, s->macc. */
static void multiply_tiles(const struct weight *w, const int *r0, int n_tiles, const struct act *a, int t0,
                           int n_tokens, struct scratch *s)
{
    const struct format *f = &formats[w->type];
    multiply_fn *const(*multiply)[GROUP_TOKENS + 1] = f->sub == 16 ? avx512_multiply16 : avx512_multiply32;
    int n_groups = (n_tokens + GROUP_TOKENS - 1) / GROUP_TOKENS;
    for (int i = 0; i < n_tiles; i++) {
        memset(s->acc[i], 0, sizeof **s->acc * (size_t)n_tokens);
        memset(s->macc[i], 0, sizeof **s->macc * (size_t)n_tokens);
    }
    for (int k0 = 0; k0 < w->n_in; k0 += SLAB) {
        int n = w->n_in - k0 < SLAB ? w->n_in - k0 : SLAB;
        int n_sub = n / f->sub;
        for (int i = 0; i < n_tiles; i++) {
            struct rows rows = tile_rows(w, r0[i], k0, n_tiles, f);
            avx512_unpack[w->type](&s->tiles[i], &rows, n / f->block);
        }
        for (int g = 0; g < n_groups; g++) {
            int t = n_tokens * g / n_groups, n_t = n_tokens * (g + 1) / n_groups - t;
            for (int i = 0; i < n_t; i++) {
                memcpy(s->acts.q[i], a->q + (size_t)(t0 + t + i) * (size_t)a->n + (size_t)k0, (size_t)n);
                act_sub_blocks(s->acts.scale[i], s->acts.fsum[i], s->acts.start[i], a, t0 + t + i, k0, n, f);
            }
            for (int i = 0; i < n_tiles; i += 2) {
                int two = i + 1 < n_tiles;
                multiply[two][n_t](s->acc[i] + t, BLOCK_TOKENS, &s->tiles[i], &s->acts, n_sub);
                if (f->has_min) avx512_minima[two][n_t](s->macc[i] + t, BLOCK_TOKENS, &s->tiles[i], &s->acts, n_sub);
            }
        }
    }
}

void avx512_matmul_quantized(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                             void *scratch)
{
    struct scratch *s = scratch;
    if (w->n_out < ROW_TILE) {
        kernels_scalar.matmul[w->type](w, row0, row1, a, y, ld_y, scratch);
        return;
    }
    if (a->n_rows <= STREAM_TOKENS && a->n <= STREAM_COLUMNS) {
        stream(w, row0, row1, a, y, ld_y, &s->act_rows);
        return;
    }
    bool has_min = formats[w->type].has_min;
    for (int t0 = 0; t0 < a->n_rows; t0 += BLOCK_TOKENS) {
        int n_tokens = a->n_rows - t0 < BLOCK_TOKENS ? a->n_rows - t0 : BLOCK_TOKENS;
        for (int r = row0; r < row1; r += BLOCK_TILES * ROW_TILE) {
            int r0[BLOCK_TILES], n_tiles = 0;
            for (int i = r; i < row1 && n_tiles < BLOCK_TILES; i += ROW_TILE)
                r0[n_tiles++] = i + ROW_TILE <= row1 ? i : row1 - ROW_TILE;
            multiply_tiles(w, r0, n_tiles, a, t0, n_tokens, s);
            for (int t = 0; t < n_tokens; t++)
                for (int i = 0; i < n_tiles; i++) {
                    __m512 v = s->acc[i][t];
                    if (has_min) v = _mm512_sub_ps(v, s->macc[i][t]);
                    store_rows(y + (size_t)(t0 + t) * ld_y, r + i * ROW_TILE, r0[i], row1, v);
                }
        }
    }
}
