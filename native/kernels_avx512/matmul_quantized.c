/* Matrix products of all quantized formats: which rows meet which activations when.
 *
 * Few activation rows (STREAM_TOKENS): weights straight from the file (matmul_few.c).
 *
 * More: weights are unpacked once into tiles (unpack.c), which are multiplied by 6 tokens
 * at a time (multiply.c). Two tiles (24 KB) stay in L1 while all tokens pass by, 3 KB of a group
 * at a time, the next group's being prefetched. Float sums of BLOCK_TOKENS tokens wait in L2 from slab to
 * slab, so that each weight is unpacked once for as many tokens; what is prepared of the
 * activations' sums is shared by a block of tiles: 4, or with few tokens, whose sums are small, 16.
 *
 * Of the tiles that come next half is asked for while weights are unpacked, in four places, and half while they are multiplied.
 *
 * Rows that are not a whole tile: where the matrix ends, the tile takes its last 16 rows; stored are
 * those that were asked for and not before. Matrices of fewer than 16 rows go to the scalar table.
 *
 * Scratch is the caller's, one thread's own; pure otherwise, any thread. */
#include "avx512.h"
#include "slab.h"
#include "tile.h"

enum {
    BLOCK_TILES = 16, /* at most, */
    SUMS = 1024,      /* and so many vectors of float sums */
};

struct scratch {
    struct tile tiles[2];
    union {
        float fsum[BLOCK_TOKENS][SLAB / 16];
        int32_t start[BLOCK_TOKENS][SLAB / 16];
    };
    __m512 acc[BLOCK_TILES][BLOCK_TOKENS];
    __m512 macc[BLOCK_TILES][BLOCK_TOKENS];
};
_Static_assert(sizeof(struct scratch) <= AVX512_SCRATCH_BYTES, "AVX512_SCRATCH_BYTES is too small");

/* Tiles that begin at rows r0[] against tokens t0 .. t0+n_tokens, summed up in s->acc, s->macc. */
static void multiply_tiles(const struct weight *w, const int *r0, int n_tiles, const struct act *a, int t0,
                           int n_tokens, struct scratch *s)
{
    const struct format *f = &formats[w->type];
    multiply_fn *const(*multiply)[GROUP_TOKENS + 1] = f->sub == 16 ? avx512_multiply16 : avx512_multiply32;
    static const int32_t no_start[GROUP_TOKENS][SLAB / 16];
    int n_groups = (n_tokens + GROUP_TOKENS - 1) / GROUP_TOKENS;
    /* The tiles after these: the first half in four pieces, side by side, the other in one. */
    size_t half = (size_t)n_tiles * ROW_TILE / 2 * w->row_bytes;
    const unsigned char *next = (const unsigned char *)w->data + (size_t)(r0[0] + n_tiles * ROW_TILE) * w->row_bytes;
    const char *far = (const char *)next + half;
    for (int i = 0; i < n_tiles; i++) {
        memset(s->acc[i], 0, sizeof **s->acc * (size_t)n_tokens);
        memset(s->macc[i], 0, sizeof **s->macc * (size_t)n_tokens);
    }
    for (int k0 = 0; k0 < w->n_in; k0 += SLAB) {
        int n = w->n_in - k0 < SLAB ? w->n_in - k0 : SLAB;
        int n_sub = n / f->sub;
        size_t bytes = ROW_TILE / 2 * (size_t)(n / f->block * f->block_bytes); /* half a tile's of this slab */
        for (int t = 0; t < n_tokens; t++) prepare_sub_blocks(s->start[t], a, t0 + t, k0, n, f);
        for (int i = 0; i < n_tiles; i += 2) {
            int n_here = i + 1 < n_tiles ? 2 : 1;
            for (int j = 0; j < n_here; j++, next += bytes / PREFETCH_STREAMS) {
                struct rows rows = unpacked_rows(w, r0[i + j], k0, f, next, half);
                avx512_unpack[w->type](&s->tiles[j], &rows, n / f->block);
            }
            size_t step = (size_t)n_here * bytes / (size_t)(n_groups * n_sub * FAR_PREFETCHES) + 1;
            for (int t = 0; t < n_tokens; t += GROUP_TOKENS) {
                int n_t = n_tokens - t < GROUP_TOKENS ? n_tokens - t : GROUP_TOKENS;
                size_t at = (size_t)(t0 + t) * (size_t)a->n + (size_t)k0;
                struct act_slab acts = {
                    .q = a->q + at,
                    .ld_q = (size_t)a->n,
                    .scale = a->scale + at / ACT_BLOCK,
                    .ld_scale = (size_t)a->n / ACT_BLOCK,
                    .fsum = s->fsum + t,
                    .start = f->has_min ? no_start : (const int32_t(*)[SLAB / 16])(s->start + t),
                };
                multiply[n_here - 1][n_t](s->acc[i] + t, s->tiles, &acts, n_sub, far, step);
                far += step * (size_t)(n_sub * FAR_PREFETCHES);
                if (f->has_min) avx512_minima[n_here - 1][n_t](s->macc[i] + t, s->tiles, &acts, n_sub);
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
    if (a->n_rows <= STREAM_TOKENS && a->n_rows * (a->n / formats[w->type].sub) <= STREAM_SUB_BLOCKS) {
        avx512_matmul_few(w, row0, row1, a, y, ld_y, scratch);
        return;
    }
    bool has_min = formats[w->type].has_min;
    for (int t0 = 0; t0 < a->n_rows; t0 += BLOCK_TOKENS) {
        int n_tokens = a->n_rows - t0 < BLOCK_TOKENS ? a->n_rows - t0 : BLOCK_TOKENS;
        int most_tiles = SUMS / n_tokens < BLOCK_TILES ? SUMS / n_tokens & ~1 : BLOCK_TILES;
        for (int r = row0; r < row1; r += most_tiles * ROW_TILE) {
            int r0[BLOCK_TILES] = {0}, n_tiles = 0;
            for (int i = r; i < row1 && n_tiles < most_tiles; i += ROW_TILE)
                r0[n_tiles++] = i + ROW_TILE <= w->n_out ? i : w->n_out - ROW_TILE;
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
