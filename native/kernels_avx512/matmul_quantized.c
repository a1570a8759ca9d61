/* Matrix products of all quantized formats: unpack a tile of weights, multiply it with all
 * activation rows.
 *
 * There is one path for one token and for many. A slab of 16 weight rows is read as
 * dwords, transposed so that lane = row (transpose_rows), unpacked (unpack.c), and
 * multiplied (multiply.c) by 12 tokens at a time. Per 1024 bytes of weights in the file that is about 64
 * shuffles, 16 inserts and 2 to 4 operations per unpacked vector: with two vector ports,
 * 12 bytes or more per cycle, which is above what a core reads from memory. So one
 * token runs at memory speed, and the next few cost little.
 *
 * Blocking. BLOCK_TILES tiles (4 * 12 KB) stay in L2, streamed through L1 once per group of
 * tokens at one vector per 12 VPDPBUSD; the group's activations (12 * 512 bytes) stay in
 * L1. Float sums of BLOCK_TOKENS tokens wait in L2 from slab to slab, so that each weight is unpacked once for
 * as many tokens. With one group of tokens only, tiles are taken one by one: their bytes then
 * are one contiguous run through the file, and the next tile's are prefetched while this one is computed.
 *
 * Scratch is the caller's, one thread's own; pure otherwise, any thread. */
#include "avx512.h"
#include "tile.h"
#include "vector.h"

enum { BLOCK_TILES = 4, BLOCK_TOKENS = 256 };

struct scratch {
    __m512i columns[SLAB_COLUMNS];
    struct tile tiles[BLOCK_TILES];
    struct act_slab acts;
    __m512 acc[BLOCK_TILES][BLOCK_TOKENS];
    __m512 macc[BLOCK_TILES][BLOCK_TOKENS];
};
_Static_assert(sizeof(struct scratch) <= AVX512_SCRATCH_BYTES, "AVX512_SCRATCH_BYTES is too small");

/* 32 bytes, or the first ones of them, of one row above those of another. */
INLINE __m512i two_rows(const unsigned char *low, const unsigned char *high, __mmask32 bytes, const bool all)
{
    __m256i l = all ? _mm256_loadu_si256((const void *)low) : _mm256_maskz_loadu_epi8(bytes, low);
    __m256i h = all ? _mm256_loadu_si256((const void *)high) : _mm256_maskz_loadu_epi8(bytes, high);
    return _mm512_inserti64x4(_mm512_castsi256_si512(l), h, 1);
}

/* out[j] = dword j of row[0..15], j < 8, reading the first bytes of 32 at offset `at`. */
INLINE void transpose_8(__m512i out[8], const unsigned char *const row[ROW_TILE], size_t at, __mmask32 bytes,
                        const bool all)
{
    __m512i a[4], b[4]; /* rows r, r+4, r+8, r+12 in the four quarters: dwords 0..3 and 4..7 */
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
        __m512i x = two_rows(row[r] + at, row[r + 4] + at, bytes, all);
        __m512i y = two_rows(row[r + 8] + at, row[r + 12] + at, bytes, all);
        a[r] = _mm512_shuffle_i64x2(x, y, 0x88);
        b[r] = _mm512_shuffle_i64x2(x, y, 0xdd);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) { /* 4 x 4 in each quarter */
        __m512i *v = i ? b : a;
        __m512i t0 = _mm512_unpacklo_epi32(v[0], v[1]), t1 = _mm512_unpackhi_epi32(v[0], v[1]);
        __m512i t2 = _mm512_unpacklo_epi32(v[2], v[3]), t3 = _mm512_unpackhi_epi32(v[2], v[3]);
        out[4 * i + 0] = _mm512_unpacklo_epi64(t0, t2);
        out[4 * i + 1] = _mm512_unpackhi_epi64(t0, t2);
        out[4 * i + 2] = _mm512_unpacklo_epi64(t1, t3);
        out[4 * i + 3] = _mm512_unpackhi_epi64(t1, t3);
    }
}

/* columns[j] = dword j of the 16 rows, for n_bytes of each. Never reads past them. Fetches
 * 16 * n_bytes at `ahead` into L2 on the way. */
static void transpose_rows(__m512i *columns, const unsigned char *const row[ROW_TILE], size_t n_bytes,
                           const unsigned char *ahead)
{
    size_t at = 0;
    for (; at + 32 <= n_bytes; at += 32, columns += 8, ahead += 512) {
        for (int i = 0; i < 8; i++) _mm_prefetch((const char *)ahead + 64 * i, _MM_HINT_T1);
        transpose_8(columns, row, at, 0, true);
    }
    if (at < n_bytes) transpose_8(columns, row, at, (__mmask32)((1u << (n_bytes - at)) - 1), false);
}

/* Columns k0 .. k0+n of rows t0 .. t0+n_tokens of a. */
static void copy_acts(struct act_slab *out, const struct act *a, int t0, int n_tokens, int k0, int n,
                      const struct tile_format *f)
{
    for (int t = 0; t < n_tokens; t++) {
        size_t k = (size_t)(t0 + t) * (size_t)a->n + (size_t)k0;
        const int8_t *q = a->q + k;
        for (int i = 0; i < n; i += 32)
            _mm256_storeu_si256((void *)(out->q[t] + i), _mm256_loadu_si256((const void *)(q + i)));
        const float *scale = a->scale + k / ACT_BLOCK;
        const int32_t *sum = a->sum + k / ACT_SUM_BLOCK;
        for (int s = 0; s < n / f->sub; s++) {
            float sc = f->sub == 16 ? scale[s / 2] : scale[s];
            int32_t total = f->sub == 16 ? sum[s] : sum[2 * s] + sum[2 * s + 1];
            out->scale[t][s] = sc;
            out->start[t][s] = -f->zero * total;
            out->fsum[t][s] = sc * (float)total;
        }
    }
}

/* The weight rows r0.. of one block of tiles; rows past the end repeat the last one. */
struct tile_rows {
    const unsigned char *row[ROW_TILE];
};

static void point_to_rows(struct tile_rows *out, const struct weight *w, int r0, int row1)
{
    for (int i = 0; i < ROW_TILE; i++) {
        int r = r0 + i < row1 ? r0 + i : row1 - 1;
        out->row[i] = (const unsigned char *)w->data + (size_t)r * w->row_bytes;
    }
}

/* Tiles of rows r0.. against tokens t0 .. t0+n_tokens. */
static void multiply_tiles(const struct weight *w, int r0, int row1, int n_tiles, const struct act *a, int t0,
                           int n_tokens, struct scratch *s)
{
    const struct tile_format *f = &avx512_formats[w->type];
    multiply_fn *const *multiply = f->sub == 16 ? avx512_multiply16 : avx512_multiply32;
    int n_groups = (n_tokens + GROUP_TOKENS - 1) / GROUP_TOKENS;
    struct tile_rows rows[BLOCK_TILES];
    for (int i = 0; i < n_tiles; i++) {
        point_to_rows(&rows[i], w, r0 + i * ROW_TILE, row1);
        memset(s->acc[i], 0, sizeof **s->acc * (size_t)n_tokens);
        memset(s->macc[i], 0, sizeof **s->macc * (size_t)n_tokens);
    }
    size_t ahead = w->row_bytes * ROW_TILE * (size_t)n_tiles;
    for (int k0 = 0; k0 < w->n_in; k0 += SLAB) {
        int n = w->n_in - k0 < SLAB ? w->n_in - k0 : SLAB;
        int n_blocks = n / f->block, n_sub = n / f->sub;
        size_t slab_bytes = (size_t)(n_blocks * f->block_bytes);
        size_t at = (size_t)(k0 / f->block * f->block_bytes);
        for (int i = 0; i < n_tiles; i++) {
            const unsigned char *row[ROW_TILE];
            for (int r = 0; r < ROW_TILE; r++) row[r] = rows[i].row[r] + at;
            transpose_rows(s->columns, row, slab_bytes, rows[i].row[0] + ahead + at * ROW_TILE);
            f->unpack(&s->tiles[i], s->columns, n_blocks);
        }
        for (int g = 0; g < n_groups; g++) {
            int t = n_tokens * g / n_groups, n_t = n_tokens * (g + 1) / n_groups - t;
            copy_acts(&s->acts, a, t0 + t, n_t, k0, n, f);
            for (int i = 0; i < n_tiles; i++) {
                multiply[n_t](s->acc[i] + t, &s->tiles[i], &s->acts, n_sub);
                if (f->has_min) avx512_minima[n_t](s->macc[i] + t, &s->tiles[i], &s->acts, n_sub);
            }
        }
    }
}

void avx512_matmul_quantized(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                             void *scratch)
{
    struct scratch *s = scratch;
    bool has_min = avx512_formats[w->type].has_min;
    int most_tiles = a->n_rows <= GROUP_TOKENS ? 1 : BLOCK_TILES;
    for (int t0 = 0; t0 < a->n_rows; t0 += BLOCK_TOKENS) {
        int n_tokens = a->n_rows - t0 < BLOCK_TOKENS ? a->n_rows - t0 : BLOCK_TOKENS;
        for (int r0 = row0; r0 < row1; r0 += most_tiles * ROW_TILE) {
            int n_tiles = (row1 - r0 + ROW_TILE - 1) / ROW_TILE;
            if (n_tiles > most_tiles) n_tiles = most_tiles;
            multiply_tiles(w, r0, row1, n_tiles, a, t0, n_tokens, s);
            for (int i = 0; i < n_tiles; i++) {
                int r = r0 + i * ROW_TILE;
                __mmask16 some = lanes_left(row1 - r);
                for (int t = 0; t < n_tokens; t++) {
                    __m512 v = s->acc[i][t];
                    if (has_min) v = _mm512_sub_ps(v, s->macc[i][t]);
                    _mm512_mask_storeu_ps(y + (size_t)(t0 + t) * ld_y + (size_t)r, some, v);
                }
            }
        }
    }
}
