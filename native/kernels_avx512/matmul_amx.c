/* Matrix products of many activation rows with AMX: as matmul_quantized.c does them, with groups of 16 tokens.
 *
 * A tile (12 KB) and a group (11 KB) are in L1 while they are multiplied; all groups of a slab, and the float sums,
 * wait in L2. Minima are taken in before a tile's products, while float operations have both ports.
 *
 * Scratch is the caller's, one thread's own; pure otherwise, any thread. */
#include "amx.h"
#include "avx512.h"
#include "slab.h"

enum {
    GROUPS = 16,       /* at most, that one unpacking of the weights serves */
    BLOCK_TILES = 32,  /* at most, that one gathering of activations serves */
    SUMS = 256,        /* groups times tiles at most */
    LEAST_ROWS = 12,   /* activation rows that pay for AMX */
};

struct scratch {
    struct tile tile;
    struct amx_group acts[GROUPS];
    struct amx_sums sums[SUMS], minima[SUMS]; /* [tile][group]; minima: of formats that have them */
};
_Static_assert(sizeof(struct scratch) <= AVX512_SCRATCH_BYTES, "AVX512_SCRATCH_BYTES is too small");

/* out[j] = lane j of all 16. */
static void transpose(float (*out)[AMX_TOKENS], const __m512 in[AMX_TOKENS])
{
    __m512i quarters[4][4], v[16];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) { /* rows i, i+4, i+8, i+12 in the quarters of quarters[j][i], of columns 4j..4j+3 */
        __m512 a = _mm512_shuffle_f32x4(in[i], in[i + 4], 0x44), b = _mm512_shuffle_f32x4(in[i], in[i + 4], 0xee);
        __m512 c = _mm512_shuffle_f32x4(in[i + 8], in[i + 12], 0x44), d = _mm512_shuffle_f32x4(in[i + 8], in[i + 12], 0xee);
        quarters[0][i] = _mm512_castps_si512(_mm512_shuffle_f32x4(a, c, 0x88));
        quarters[1][i] = _mm512_castps_si512(_mm512_shuffle_f32x4(a, c, 0xdd));
        quarters[2][i] = _mm512_castps_si512(_mm512_shuffle_f32x4(b, d, 0x88));
        quarters[3][i] = _mm512_castps_si512(_mm512_shuffle_f32x4(b, d, 0xdd));
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) transpose_quarters(v + 4 * j, quarters[j]);
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) _mm512_storeu_si512(out[j], v[j]);
}

/* Columns k0 .. k0+n of tokens t0 .. t0+n_tokens, at most a group; what is missing of it is zeros. Those `ahead` bytes from them are
 * fetched: another thread may have written them, and rows are too short for the processor to see a pattern. */
INLINE void gather_columns(struct amx_group *g, const struct act *a, int t0, int n_tokens, int k0, const int n,
                           const struct format *f, size_t ahead)
{
    const int n_blocks = n / ACT_BLOCK, n_sub = n / f->sub;
    float fsum[AMX_TOKENS][SLAB / 16];
    __m512 v[AMX_TOKENS];
    for (int t = 0; t < n_tokens; t++) {
        size_t at = (size_t)(t0 + t) * (size_t)a->n + (size_t)k0;
        const int8_t *q = a->q + at;
        const int8_t *next = q + ahead;
#pragma GCC unroll 8
        for (int i = 0; i < n; i += 64) {
            _mm_prefetch((const char *)next + i, _MM_HINT_T0);
            _mm512_store_si512(g->q[i / 64][t], _mm512_maskz_loadu_epi32(lanes_left((n - i) / 4), q + i));
        }
        v[t] = _mm512_maskz_loadu_ps(lanes_left(n_blocks), a->scale + at / ACT_BLOCK);
        if (f->has_min) prepare_sub_blocks(fsum[t], a, t0 + t, k0, n, f);
    }
    for (int t = n_tokens; t < AMX_TOKENS; t++) {
        for (int i = 0; i < n; i += 64) _mm512_store_si512(g->q[i / 64][t], _mm512_setzero_si512());
        v[t] = _mm512_setzero_ps();
    }
    transpose(g->scale, v);
    for (int s = 0; f->has_min && s < n_sub; s += 16) {
        for (int t = 0; t < AMX_TOKENS; t++) v[t] = _mm512_maskz_loadu_ps(t < n_tokens ? lanes_left(n_sub - s) : 0, fsum[t] + s);
        transpose(g->fsum + s, v);
    }
}

/* The same, faster for the columns and formats that most matrices have. */
static void gather_group(struct amx_group *g, const struct act *a, int t0, int n_tokens, int k0, int n, const struct format *f,
                         size_t ahead)
{
    if (n != SLAB || (f->has_min && f->sub != 32)) gather_columns(g, a, t0, n_tokens, k0, n, f, ahead);
    else if (f->has_min) gather_columns(g, a, t0, n_tokens, k0, SLAB, &(const struct format){.sub = 32, .has_min = true}, ahead);
    else gather_columns(g, a, t0, n_tokens, k0, SLAB, &(const struct format){.sub = 32}, ahead);
}

static void add_minima(struct amx_sums *c, const struct tile *w, const struct amx_group *a, int n_sub)
{
    __m512 macc[AMX_TOKENS];
#pragma GCC unroll 16
    for (int t = 0; t < AMX_TOKENS; t++) macc[t] = c->acc[t];
    for (int s = 0; s < n_sub; s++) {
#pragma GCC unroll 16
        for (int t = 0; t < AMX_TOKENS; t++) macc[t] = _mm512_fmadd_ps(w->m[s], _mm512_set1_ps(a->fsum[s][t]), macc[t]);
    }
#pragma GCC unroll 16
    for (int t = 0; t < AMX_TOKENS; t++) c->acc[t] = macc[t];
}

/* Slabs of nearly equal size, of whole super-blocks or, where rows are not, of whole pairs of blocks. */
static int slab_columns(int n_in)
{
    int unit = n_in % 256 == 0 ? 256 : 64, n_slabs = (n_in + SLAB - 1) / SLAB;
    return (n_in + n_slabs * unit - 1) / (n_slabs * unit) * unit;
}

/* Tiles that begin at rows r0[] against tokens t0 .. t0+n_tokens, summed up in s->sums and s->minima. */
static void multiply_tiles(const struct weight *w, const int *r0, int n_tiles, const struct act *a, int t0,
                           int n_tokens, struct scratch *s)
{
    const struct format *f = &formats[w->type];
    int n_groups = (n_tokens + AMX_TOKENS - 1) / AMX_TOKENS;
    amx_multiply_fn *multiply = avx512_amx_multiply[f->has_min][f->sub / 16 - 1];
    /* The tiles after these: the first half in four pieces, side by side, while weights are unpacked, the other in two while
     * they are multiplied; each from its beginning to its end. */
    const char *far = (const char *)w->data + (size_t)(r0[0] + n_tiles * ROW_TILE) * w->row_bytes;
    size_t half = (size_t)n_tiles * ROW_TILE / 2 * w->row_bytes;
    const char *other = far + half;
    if (f->has_min) memset(s->minima, 0, sizeof *s->minima * (size_t)(n_tiles * n_groups));
    int slab = slab_columns(w->n_in);
    for (int k0 = 0; k0 < w->n_in; k0 += slab) {
        int n = w->n_in - k0 < slab ? w->n_in - k0 : slab, n_sub = n / f->sub;
        for (int g = 0; g < n_groups; g++) {
            int left = n_tokens - g * AMX_TOKENS;
            size_t ahead = left > AMX_TOKENS ? (size_t)AMX_TOKENS * (size_t)a->n : (size_t)n; /* the next group, or columns */
            gather_group(&s->acts[g], a, t0 + g * AMX_TOKENS, left < AMX_TOKENS ? left : AMX_TOKENS, k0, n, f, ahead);
        }
        for (int i = 0; i < n_tiles; i++) {
            struct rows rows = unpacked_rows(w, r0[i], k0, f, far, half);
            size_t row_bytes = (size_t)(n / f->block * f->block_bytes);
            far += ROW_TILE / 2 / PREFETCH_STREAMS * row_bytes;
            avx512_unpack_signed[w->type](&s->tile, &rows, n / f->block);
            int at = i * n_groups;
            for (int g = 0; f->has_min && g < n_groups; g++) add_minima(&s->minima[at + g], &s->tile, &s->acts[g], n_sub);
            struct amx_ahead ahead = {
                .far = other,
                .piece = half / 2,
                .bytes = ROW_TILE / 4 * row_bytes,
                .near = i + 1 < n_tiles ? (const char *)tile_rows(w, r0[i + 1], k0, f).half[0]
                                        : (const char *)tile_rows(w, r0[0], k0, f).half[0] + row_bytes,
                .stride = w->row_bytes,
                .near_bytes = row_bytes,
            };
            other += ahead.bytes;
            multiply(s->sums + at, &s->tile, s->acts, n_groups, n_sub, k0 == 0, &ahead);
        }
    }
}

/* Rows `some` of a tile and of a group of tokens; macc NULL: there are no minima. */
INLINE void store_tile(float *y, size_t ld_y, __mmask16 some, const __m512 *acc, const __m512 *macc, const int n_tokens)
{
#pragma GCC unroll 16
    for (int t = 0; t < n_tokens; t++, y += ld_y)
        _mm512_mask_storeu_ps(y, some, macc ? _mm512_sub_ps(acc[t], macc[t]) : acc[t]);
}

/* y = the sums of rows r .. row1-1, in tiles that begin at r0[], of n_tokens tokens; a group's tokens one after the other, so
 * that a token's results are written while they are near. */
static void store_tiles(float *y, size_t ld_y, int r, const int *r0, int row1, int n_tiles, int n_tokens, bool has_min,
                        const struct scratch *s)
{
    int n_groups = (n_tokens + AMX_TOKENS - 1) / AMX_TOKENS;
    for (int g = 0; g < n_groups; g++, y += AMX_TOKENS * ld_y) {
        int n = n_tokens - g * AMX_TOKENS;
        for (int i = 0; i < n_tiles; i++) {
            __mmask16 some = rows_of_tile(r + i * ROW_TILE, r0[i], row1);
            const __m512 *acc = s->sums[i * n_groups + g].acc, *macc = s->minima[i * n_groups + g].acc;
            float *to = y + r0[i];
            if (n < AMX_TOKENS) store_tile(to, ld_y, some, acc, has_min ? macc : NULL, n);
            else if (has_min) store_tile(to, ld_y, some, acc, macc, AMX_TOKENS);
            else store_tile(to, ld_y, some, acc, NULL, AMX_TOKENS);
        }
    }
}

void avx512_matmul_amx(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y, void *scratch)
{
    struct scratch *s = scratch;
    if (w->n_out < ROW_TILE || a->n_rows < LEAST_ROWS) { /* fewer are faster with VPDPBUSD */
        avx512_matmul_quantized(w, row0, row1, a, y, ld_y, scratch);
        return;
    }
    const struct format *f = &formats[w->type];
    avx512_amx_begin(f->sub);
    for (int t0 = 0; t0 < a->n_rows; t0 += GROUPS * AMX_TOKENS) {
        int n_tokens = a->n_rows - t0 < GROUPS * AMX_TOKENS ? a->n_rows - t0 : GROUPS * AMX_TOKENS;
        int n_groups = (n_tokens + AMX_TOKENS - 1) / AMX_TOKENS;
        int most_tiles = SUMS / n_groups < BLOCK_TILES ? SUMS / n_groups : BLOCK_TILES;
        for (int r = row0; r < row1; r += most_tiles * ROW_TILE) {
            int r0[BLOCK_TILES], n_tiles = 0;
            for (int i = r; i < row1 && n_tiles < most_tiles; i += ROW_TILE)
                r0[n_tiles++] = i + ROW_TILE <= w->n_out ? i : w->n_out - ROW_TILE;
            multiply_tiles(w, r0, n_tiles, a, t0, n_tokens, s);
            store_tiles(y + (size_t)t0 * ld_y, ld_y, r, r0, row1, n_tiles, n_tokens, f->has_min, s);
        }
    }
    avx512_amx_end();
}
