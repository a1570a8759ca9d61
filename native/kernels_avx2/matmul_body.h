/* Many activation rows times quantized weight rows: template.
 *
 * A tile of sixteen rows is packed slab by slab into L1 and each slab multiplied
 * with all activation rows, TOKENS at a time. Includes a product_*.h before this.
 *
 * Register blocking: for each 4 elements there are 2 loads of weights (16 rows), a broadcast for each token
 * and 2 products for each token, so that with 4 tokens there are 8 products to 6
 * loads, and the eight integer sums fill half of the registers. The float sums are updated once for
 * ACT_BLOCK elements and live in L1; minimums have a loop of their own, where they stay in registers. */
#include "avx2.h"
#include "correction.h"

enum {
    TOKENS = 4,            /* activation rows that the inner loop takes */
    CLAIMED = 8,           /* how many activation rows ahead the lines of results are fetched */
    PACK_TOKENS = 512,     /* most activation rows between two packings of the same weights */
    CORRECTIONS = AVX2_MATMUL_MAX / ACT_SUM_BLOCK, /* most of these rows' corrections: long rows are fewer rows */
};

struct matmul_scratch {
    struct avx2_packed packed;
    float acc[PACK_TOKENS][ROW_TILE], macc[PACK_TOKENS][ROW_TILE];
    int32_t offset[CORRECTIONS];  /* of the block's rows, by sub-block; formats with a zero */
    float fsum[CORRECTIONS / 2];  /* likewise; formats with minimums of 32 elements */
};

/* Bytes that will be packed next, still to be asked for. */
struct ahead {
    const uint8_t *p, *end;
};

/* acc, of n_t rows starting at activation row t, += the slab of n elements at k. offset: the first row's there, the
 * others follow a row apart. Meanwhile a share of the weights that come next is on its way: `lines` cache lines with each
 * ACT_BLOCK. */
INLINE void multiply(const struct avx2_packed *packed, float (*acc)[ROW_TILE], const struct act *a, int t, size_t k, int n,
                     const int32_t *offset, struct ahead *ahead, int lines, int n_t, int sub, int bits, bool has_zero)
{
    size_t row = (size_t)a->n, blocks = row / ACT_BLOCK, subs = row / (size_t)sub;
    const int parts = ACT_BLOCK / sub;
    const int8_t *q = a->q + (size_t)t * row + k;
    const float *scale = a->scale + (size_t)t * blocks + k / ACT_BLOCK;
    for (int block = 0; block < n / ACT_BLOCK; block++) {
        for (int i = 0; i < lines && ahead->p < ahead->end; i++, ahead->p += 64)
            _mm_prefetch((const char *)ahead->p, _MM_HINT_T1);
        int j = block * parts;
        __m256 sum[TOKENS][2];
        dot_tile(sum, offset + j, subs, has_zero, packed->q[block * ACT_BLOCK / 4][0], packed->factor + j, q + block * ACT_BLOCK, row,
                 n_t, sub, bits);
        __m256 d0 = _mm256_load_ps(packed->d[block]), d1 = _mm256_load_ps(packed->d[block] + 8);
#pragma GCC unroll 8
        for (int i = 0; i < n_t; i++) {
            __m256 ds = _mm256_set1_ps(scale[(size_t)i * blocks + (size_t)block]);
            __m256 a0 = _mm256_load_ps(acc[i]), a1 = _mm256_load_ps(acc[i] + 8);
            a0 = _mm256_fmadd_ps(sum[i][0], _mm256_mul_ps(d0, ds), a0);
            a1 = _mm256_fmadd_ps(sum[i][1], _mm256_mul_ps(d1, ds), a1);
            _mm256_store_ps(acc[i], a0);
            _mm256_store_ps(acc[i] + 8, a1);
        }
    }
}

/* Rows of sums start at zero. Inlined: a call of memset here costs 6 % of the product. */
INLINE void clear(float (*sum)[ROW_TILE], int n_t)
{
    for (int i = 0; i < n_t; i++) {
        _mm256_store_ps(sum[i], _mm256_setzero_ps());
        _mm256_store_ps(sum[i] + 8, _mm256_setzero_ps());
    }
}

/* Where the sums of minimums come from and go to. */
struct min_sums {
    float (*macc)[ROW_TILE];
    bool is_first;          /* they begin at zero */
    float (*acc)[ROW_TILE]; /* NULL, or this slab ends the row, and y = acc - sums is written, */
    float *y;
    size_t ld_y;            /* from row to row of y */
};

/* The sums of n_t rows += minimums of n_sub sub-blocks times fsum (rows ld apart). */
INLINE void multiply_min(const struct avx2_packed *packed, const struct min_sums *sums, const float *fsum, size_t ld, int n_sub, int n_t)
{
    __m256 sum[TOKENS][2];
#pragma GCC unroll 8
    for (int i = 0; i < n_t; i++) {
        sum[i][0] = sums->is_first ? _mm256_setzero_ps() : _mm256_load_ps(sums->macc[i]);
        sum[i][1] = sums->is_first ? _mm256_setzero_ps() : _mm256_load_ps(sums->macc[i] + 8);
    }
    for (int j = 0; j < n_sub; j++) {
        __m256 m0 = _mm256_load_ps(packed->m[j]), m1 = _mm256_load_ps(packed->m[j] + 8);
#pragma GCC unroll 8
        for (int i = 0; i < n_t; i++) {
            __m256 f = _mm256_set1_ps(fsum[(size_t)i * ld + (size_t)j]);
            sum[i][0] = _mm256_fmadd_ps(m0, f, sum[i][0]);
            sum[i][1] = _mm256_fmadd_ps(m1, f, sum[i][1]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < n_t; i++) {
        if (sums->acc) {
            float *y = sums->y + (size_t)i * sums->ld_y;
            _mm256_storeu_ps(y, _mm256_sub_ps(_mm256_load_ps(sums->acc[i]), sum[i][0]));
            _mm256_storeu_ps(y + 8, _mm256_sub_ps(_mm256_load_ps(sums->acc[i] + 8), sum[i][1]));
        } else {
            _mm256_store_ps(sums->macc[i], sum[i][0]);
            _mm256_store_ps(sums->macc[i] + 8, sum[i][1]);
        }
    }
}

/* One function for each shape of the inner loop, so that its counts are constants. */
typedef void multiply_fn(const struct avx2_packed *packed, float (*acc)[ROW_TILE], const struct act *a, int t, size_t k,
                         int n, const int32_t *offset, struct ahead *ahead, int lines);
typedef void multiply_min_fn(const struct avx2_packed *packed, const struct min_sums *sums, const float *fsum, size_t ld, int n_sub);

/* X(n_t, sub, bits, has_zero): what the formats need. */
#define FOR_EACH_SHAPE(X, n_t) \
    X(n_t, 32, 4, false) \
    X(n_t, 32, 4, true) \
    X(n_t, 32, 5, false) \
    X(n_t, 32, 5, true) \
    X(n_t, 32, 8, true) \
    X(n_t, 16, 4, false) \
    X(n_t, 16, 4, true) \
    X(n_t, 16, 6, true)

#define DEFINE_MULTIPLY(n_t, sub, bits, has_zero) \
    static void multiply_##n_t##_##sub##_##bits##_##has_zero( \
        const struct avx2_packed *packed, float (*acc)[ROW_TILE], const struct act *a, int t, size_t k, int n, \
        const int32_t *offset, struct ahead *ahead, int lines) \
    { \
        multiply(packed, acc, a, t, k, n, offset, ahead, lines, n_t, sub, bits, has_zero && (bits < 8 || PRODUCT_Q8_ZERO)); \
    }
#define DEFINE_MULTIPLY_SHAPES(n_t) \
    FOR_EACH_SHAPE(DEFINE_MULTIPLY, n_t) \
    static void multiply_min_##n_t(const struct avx2_packed *packed, const struct min_sums *sums, const float *fsum, size_t ld, int n_sub) \
    { \
        multiply_min(packed, sums, fsum, ld, n_sub, n_t); \
    }

DEFINE_MULTIPLY_SHAPES(1)
DEFINE_MULTIPLY_SHAPES(2)
DEFINE_MULTIPLY_SHAPES(3)
DEFINE_MULTIPLY_SHAPES(4)

struct shape {
    int sub, bits;
    bool has_zero;
    multiply_fn *multiply[TOKENS + 1]; /* by number of tokens */
};

#define SHAPE(n_t, sub, bits, has_zero) \
    {sub, bits, has_zero, {NULL, multiply_1_##sub##_##bits##_##has_zero, multiply_2_##sub##_##bits##_##has_zero, \
                           multiply_3_##sub##_##bits##_##has_zero, multiply_4_##sub##_##bits##_##has_zero}},

static const struct shape shapes[] = {FOR_EACH_SHAPE(SHAPE, )};
static multiply_min_fn *const multiply_mins[TOKENS + 1] = {NULL, multiply_min_1, multiply_min_2, multiply_min_3,
                                                           multiply_min_4};

static const struct shape *shape_of(const struct avx2_format *f)
{
    const struct shape *s = shapes;
    while (s->sub != f->sub || s->bits != f->bits || s->has_zero != (f->zero != 0)) s++;
    return s;
}

static int zero_of(const struct avx2_format *f) { return f->bits == 8 ? PRODUCT_Q8_ZERO : f->zero; }

/* Products that take nothing off of Q8_0 want it signed. */
static avx2_pack_fn *pack_of(const struct avx2_format *f) { return zero_of(f) == f->zero ? f->pack : avx2_pack_q8_0_signed; }

/* The corrections of activation rows t0 .. t0+n_t-1. */
static void correct(struct matmul_scratch *s, const struct avx2_format *f, const struct act *a, int t0, int n_t)
{
    int zero = zero_of(f);
    size_t n = (size_t)a->n, subs = n / (size_t)f->sub;
    for (int t = 0; t < n_t; t++) {
        const int32_t *sum = a->sum + (size_t)(t0 + t) * n / ACT_SUM_BLOCK;
        const float *scale = a->scale + (size_t)(t0 + t) * n / ACT_BLOCK;
        if (zero) correct_zero(s->offset + (size_t)t * subs, a->q + (size_t)(t0 + t) * n, sum, a->n, f->sub, zero);
        if (f->has_min && f->sub == 32) sum_blocks(s->fsum + (size_t)t * subs, scale, sum, a->n);
    }
}

/* Sixteen rows of a matrix. */
struct tile {
    const struct avx2_format *format;
    const struct shape *shape;
    int row0, row1; /* those that are wanted, fewer where the matrix or the range ends */
    int first[2];   /* which row lane 8*h is */
};

/* Whether all sixteen rows are wanted and follow each other. */
static bool is_whole(const struct tile *tile)
{
    return tile->first[1] == tile->row0 + 8 && tile->row0 + ROW_TILE <= tile->row1;
}

/* y, n_t rows ld_y apart, = the sums of a tile. */
INLINE void store_tile(float *y, size_t ld_y, float (*acc)[ROW_TILE], float (*macc)[ROW_TILE], int n_t, const struct tile *tile)
{
    int r = tile->row0;
    bool whole = is_whole(tile), has_min = tile->format->has_min;
    for (int t = 0; t < n_t; t++, y += ld_y) {
        float lane[ROW_TILE];
        for (int h = 0; h < 2; h++) {
            __m256 v = _mm256_load_ps(acc[t] + 8 * h);
            if (has_min) v = _mm256_sub_ps(v, _mm256_load_ps(macc[t] + 8 * h));
            _mm256_storeu_ps(whole ? y + r + 8 * h : lane + 8 * h, v);
        }
        for (int i = r; !whole && i < r + ROW_TILE && i < tile->row1; i++) {
            int half = (i - r) / 8;
            y[i] = lane[8 * half + i - tile->first[half]];
        }
    }
}

/* Fetches the lines of rows t0 .. t1-1 of results, to be written some time later. Stores that wait for their lines hold up all
 * that follow, those of the sums included. */
INLINE void claim(float *y, size_t ld_y, int t0, int t1)
{
    for (int t = t0; t < t1; t++) __asm__ volatile("prefetchw %0" : : "m"(y[(size_t)t * ld_y]));
}

/* The slab of n elements at k, packed already, times activation rows t0 .. t0+n_t-1. After the last slab of a row the sums go
 * to y; those of rows that are one slab long never leave the same few cache lines. */
static void multiply_slab(struct matmul_scratch *s, const struct tile *tile, const struct act *a, int t0, int n_t, int k, int n,
                          struct ahead *ahead, float *y, size_t ld_y)
{
    const struct avx2_format *f = tile->format;
    /* Spread over all blocks of all rows of activations. */
    int n_steps = (n_t + TOKENS - 1) / TOKENS * (n / ACT_BLOCK);
    int lines = (int)((ahead->end - ahead->p) / 64 / n_steps + 1);
    size_t subs = (size_t)(a->n / f->sub), at = (size_t)(k / f->sub);
    const float *fsum = f->sub == 32 ? s->fsum : a->fsum + (size_t)t0 * subs;
    bool is_first = k == 0, is_last = k + n == a->n, min_writes_y = is_last && f->has_min && is_whole(tile);
    for (int i = 0; i < n_t; i += TOKENS, y += TOKENS * ld_y) {
        int count = n_t - i < TOKENS ? n_t - i : TOKENS, row = is_first && is_last ? 0 : i;
        size_t first = (size_t)i * subs + at;
        float (*acc)[ROW_TILE] = s->acc + row, (*macc)[ROW_TILE] = s->macc + row;
        if (is_last) claim(y + tile->row0, ld_y, CLAIMED, n_t - i < CLAIMED + TOKENS ? n_t - i : CLAIMED + TOKENS);
        if (is_first) clear(acc, count);
        tile->shape->multiply[count](&s->packed, acc, a, t0 + i, (size_t)k, n, s->offset + first, ahead, lines);
        if (f->has_min) {
            struct min_sums sums = {macc, is_first, min_writes_y ? acc : NULL, y + tile->row0, ld_y};
            multiply_mins[count](&s->packed, &sums, fsum + first, subs, n / f->sub);
        }
        if (is_last && !min_writes_y) store_tile(y, ld_y, acc, macc, count, tile);
    }
}

/* A tile, rows r and up of w below row1, times activation rows t0 .. t0+n_t-1, whose corrections are there already. */
static void multiply_tile_of(struct matmul_scratch *s, const struct weight *w, int r, int row1, const struct act *a, int t0,
                             int n_t, float *y, size_t ld_y)
{
    const struct avx2_format *f = &avx2_formats[w->type];
    struct tile tile = {.format = f, .shape = shape_of(f), .row0 = r, .row1 = row1, .first = {r, r + 8}};
    const uint8_t *p[2];
    for (int h = 0; h < 2; h++) {
        /* Where the matrix ends within the tile, a half starts earlier, at the last eight rows. */
        if (tile.first[h] > w->n_out - 8) tile.first[h] = w->n_out - 8;
        p[h] = (const uint8_t *)w->data + (size_t)tile.first[h] * w->row_bytes;
    }
    int n_halves = row1 - r > 8 ? 2 : 1;
    const uint8_t *next_tile = p[0] + ROW_TILE * w->row_bytes; /* one contiguous piece */
    for (int k = 0; k < a->n; k += AVX2_SLAB) {
        int n = a->n - k < AVX2_SLAB ? a->n - k : AVX2_SLAB, n_blocks = n / f->block;
        size_t at = (size_t)(k / f->block) * f->block_bytes;
        for (int h = 0; h < n_halves; h++) pack_of(f)(&s->packed, h, p[h] + at, w->row_bytes, n_blocks);
        if (k + n == a->n) claim(y + (size_t)t0 * ld_y + r, ld_y, 0, n_t < CLAIMED ? n_t : CLAIMED);
        struct ahead ahead = {next_tile + ROW_TILE * at, next_tile + ROW_TILE * (at + (size_t)n_blocks * f->block_bytes)};
        multiply_slab(s, &tile, a, t0, n_t, k, n, &ahead, y + (size_t)t0 * ld_y, ld_y);
    }
}

static void matmul(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                   void *scratch)
{
    struct matmul_scratch *s = scratch;
    int block = CORRECTIONS / ((a->n + ACT_SUM_BLOCK - 1) / ACT_SUM_BLOCK);
    if (block > PACK_TOKENS) block = PACK_TOKENS;
    for (int t0 = 0; t0 < a->n_rows; t0 += block) {
        int n_t = a->n_rows - t0 < block ? a->n_rows - t0 : block;
        correct(s, &avx2_formats[w->type], a, t0, n_t);
        for (int r = row0; r < row1; r += ROW_TILE) multiply_tile_of(s, w, r, row1, a, t0, n_t, y, ld_y);
    }
}
