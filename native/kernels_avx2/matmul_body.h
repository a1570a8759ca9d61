/* Many activation rows times quantized weight rows: template.
 *
 * A tile of sixteen rows is packed slab by slab into L1 and each slab multiplied
 * with all activation rows, TOKENS at a time. Includes a product_*.h before this.
 *
 * Register blocking: for each 4 elements there are 2 loads of weights (16 rows), a broadcast for each token
 * and 2 products for each token, so that with 4 tokens there are 8 products to 6
 * loads, and the eight integer sums fill half of the registers. The float sums are updated once in a
 * sub-block and live in L1; minimums have a loop of their own, where they stay in registers. */
#include "avx2.h"
#include "correction.h"

enum {
    TOKENS = 4,         /* activation rows that the inner loop takes */
    TOKEN_BLOCK = 512,  /* activation rows between two packings of the same weights */
};

struct matmul_scratch {
    struct avx2_packed packed;
    float acc[TOKEN_BLOCK][ROW_TILE], macc[TOKEN_BLOCK][ROW_TILE];
    int32_t offset[TOKENS][AVX2_SLAB / 16];
    float fsum[TOKENS][AVX2_SLAB / 32];
};

/* Bytes that will be packed next, still to be asked for. */
struct ahead {
    const uint8_t *p, *end;
};

/* acc, of n_t rows starting at activation row t, += the slab of n elements at k. Meanwhile a share of the
 * weights that come next is on its way: `lines` cache lines with each sub-block. */
INLINE void multiply(struct matmul_scratch *s, float (*acc)[ROW_TILE], const struct act *a, int t, size_t k, int n,
                     struct ahead *ahead, int lines, int n_t, int sub, int bits)
{
    size_t row = (size_t)a->n, blocks = row / ACT_BLOCK;
    const int8_t *q = a->q + (size_t)t * row + k;
    const float *scale = a->scale + (size_t)t * blocks + k / ACT_BLOCK;
    for (int j = 0; j < n / sub; j++) {
        __m256i isum[TOKENS][2];
        const int32_t *start[TOKENS];
#pragma GCC unroll 8
        for (int i = 0; i < n_t; i++) start[i] = &s->offset[i][j];
        for (int i = 0; i < lines && ahead->p < ahead->end; i++, ahead->p += 64)
            _mm_prefetch((const char *)ahead->p, _MM_HINT_T1);
        dot_tile(isum, start, s->packed.q[j * sub / 4][0], q + j * sub, row, n_t, sub, bits);
        __m256 d0 = _mm256_load_ps(s->packed.d[j]), d1 = _mm256_load_ps(s->packed.d[j] + 8);
#pragma GCC unroll 8
        for (int i = 0; i < n_t; i++) {
            __m256 ds = _mm256_set1_ps(scale[(size_t)i * blocks + (size_t)(j * sub / ACT_BLOCK)]);
            __m256 a0 = _mm256_load_ps(acc[i]), a1 = _mm256_load_ps(acc[i] + 8);
            a0 = _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum[i][0]), _mm256_mul_ps(d0, ds), a0);
            a1 = _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum[i][1]), _mm256_mul_ps(d1, ds), a1);
            _mm256_store_ps(acc[i], a0);
            _mm256_store_ps(acc[i] + 8, a1);
        }
    }
}

/* macc, of n_t rows, += minimums of n_sub sub-blocks times fsum (rows ld apart). */
INLINE void multiply_min(const struct avx2_packed *packed, float (*macc)[ROW_TILE], const float *fsum, size_t ld,
                         int n_sub, int n_t)
{
    __m256 sum[TOKENS][2];
#pragma GCC unroll 8
    for (int i = 0; i < n_t; i++) {
        sum[i][0] = _mm256_load_ps(macc[i]);
        sum[i][1] = _mm256_load_ps(macc[i] + 8);
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
        _mm256_store_ps(macc[i], sum[i][0]);
        _mm256_store_ps(macc[i] + 8, sum[i][1]);
    }
}

/* One function for each shape of the inner loop, so that its counts are constants. */
typedef void multiply_fn(struct matmul_scratch *s, float (*acc)[ROW_TILE], const struct act *a, int t, size_t k,
                         int n, struct ahead *ahead, int lines);
typedef void multiply_min_fn(const struct avx2_packed *packed, float (*macc)[ROW_TILE], const float *fsum, size_t ld,
                             int n_sub);

#define DEFINE_MULTIPLY(n_t, sub, bits) \
    static void multiply_##n_t##_##sub##_##bits(struct matmul_scratch *s, float (*acc)[ROW_TILE], \
                                                const struct act *a, int t, size_t k, int n, \
                                                struct ahead *ahead, int lines) \
    { \
        multiply(s, acc, a, t, k, n, ahead, lines, n_t, sub, bits); \
    }
#define DEFINE_MULTIPLY_SHAPES(n_t) \
    DEFINE_MULTIPLY(n_t, 32, 4) \
    DEFINE_MULTIPLY(n_t, 32, 5) \
    DEFINE_MULTIPLY(n_t, 32, 8) \
    DEFINE_MULTIPLY(n_t, 16, 4) \
    DEFINE_MULTIPLY(n_t, 16, 6) \
    static void multiply_min_##n_t(const struct avx2_packed *packed, float (*macc)[ROW_TILE], const float *fsum, \
                                   size_t ld, int n_sub) \
    { \
        multiply_min(packed, macc, fsum, ld, n_sub, n_t); \
    }

DEFINE_MULTIPLY_SHAPES(1)
DEFINE_MULTIPLY_SHAPES(2)
DEFINE_MULTIPLY_SHAPES(3)
DEFINE_MULTIPLY_SHAPES(4)

enum shape { SHAPE_32_4, SHAPE_32_5, SHAPE_32_8, SHAPE_16_4, SHAPE_16_6, N_SHAPES };

#define SHAPES(n_t) \
    {multiply_##n_t##_32_4, multiply_##n_t##_32_5, multiply_##n_t##_32_8, multiply_##n_t##_16_4, \
     multiply_##n_t##_16_6}

static multiply_fn *const multiply_shapes[TOKENS + 1][N_SHAPES] = {{0}, SHAPES(1), SHAPES(2), SHAPES(3), SHAPES(4)};
static multiply_min_fn *const multiply_mins[TOKENS + 1] = {NULL, multiply_min_1, multiply_min_2, multiply_min_3,
                                                           multiply_min_4};

static enum shape shape_of(const struct avx2_format *f)
{
    if (f->sub == 16) return f->bits == 6 ? SHAPE_16_6 : SHAPE_16_4;
    return f->bits == 8 ? SHAPE_32_8 : f->bits == 5 ? SHAPE_32_5 : SHAPE_32_4;
}

/* The slab of n elements at k, packed already, times activation rows t0 .. t0+n_t-1. */
static void multiply_slab(struct matmul_scratch *s, const struct avx2_format *f, const struct act *a, int t0, int n_t,
                          int k, int n, struct ahead *ahead)
{
    /* Spread over all sub-blocks of all rows of activations. */
    int n_steps = (n_t + TOKENS - 1) / TOKENS * (n / f->sub);
    int lines = (int)((ahead->end - ahead->p) / 64 / n_steps + 1);
    int zero = f->bits == 8 ? PRODUCT_Q8_ZERO : f->zero;
    enum shape shape = shape_of(f);
    for (int i = 0; i < n_t; i += TOKENS) {
        int count = n_t - i < TOKENS ? n_t - i : TOKENS;
        for (int c = 0; c < count; c++) {
            size_t at = (size_t)(t0 + i + c) * (size_t)a->n + (size_t)k;
            correct_zero(s->offset[c], a->sum + at / ACT_SUM_BLOCK, n, f->sub, zero);
            if (f->has_min && f->sub == 32)
                sum_blocks(s->fsum[c], a->scale + at / ACT_BLOCK, a->sum + at / ACT_SUM_BLOCK, n);
        }
        multiply_shapes[count][shape](s, s->acc + i, a, t0 + i, (size_t)k, n, ahead, lines);
        if (!f->has_min) continue;
        if (f->sub == 32) {
            multiply_mins[count](&s->packed, s->macc + i, s->fsum[0], AVX2_SLAB / 32, n / 32);
        } else {
            size_t at = (size_t)(t0 + i) * (size_t)a->n + (size_t)k;
            multiply_mins[count](&s->packed, s->macc + i, a->fsum + at / 16, (size_t)a->n / 16, n / 16);
        }
    }
}

static void matmul(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                   void *scratch)
{
    struct matmul_scratch *s = scratch;
    const struct avx2_format *f = &avx2_formats[w->type];
    for (int r = row0; r < row1; r += ROW_TILE) {
        /* Rows of the tile: where the matrix ends within one, a half starts earlier, at the last eight rows. */
        int first[2] = {r, r + 8};
        const uint8_t *p[2];
        for (int h = 0; h < 2; h++) {
            if (first[h] > w->n_out - 8) first[h] = w->n_out - 8;
            p[h] = (const uint8_t *)w->data + (size_t)first[h] * w->row_bytes;
        }
        int n_halves = row1 - r > 8 ? 2 : 1;
        const uint8_t *next_tile = p[0] + ROW_TILE * w->row_bytes; /* one contiguous piece */
        for (int t0 = 0; t0 < a->n_rows; t0 += TOKEN_BLOCK) {
            int n_t = a->n_rows - t0 < TOKEN_BLOCK ? a->n_rows - t0 : TOKEN_BLOCK;
            memset(s->acc, 0, (size_t)n_t * sizeof *s->acc);
            memset(s->macc, 0, (size_t)n_t * sizeof *s->macc);
            for (int k = 0; k < a->n; k += AVX2_SLAB) {
                int n = a->n - k < AVX2_SLAB ? a->n - k : AVX2_SLAB, n_blocks = n / f->block;
                size_t at = (size_t)(k / f->block) * f->block_bytes;
                for (int h = 0; h < n_halves; h++) f->pack(&s->packed, h, p[h] + at, w->row_bytes, n_blocks);
                struct ahead ahead = {next_tile + ROW_TILE * at, next_tile + ROW_TILE * (at + (size_t)n_blocks * f->block_bytes)};
                multiply_slab(s, f, a, t0, n_t, k, n, &ahead);
            }
            for (int t = 0; t < n_t; t++) {
                float *out = y + (size_t)(t0 + t) * ld_y;
                const float *acc = s->acc[t], *macc = s->macc[t];
                for (int i = r; i < r + ROW_TILE && i < row1; i++) {
                    int half = (i - r) / 8, lane = 8 * half + i - first[half];
                    out[i] = f->has_min ? acc[lane] - macc[lane] : acc[lane];
                }
            }
        }
    }
}
