/* Matrix products with F32, F16 and BF16 weights, in float32.
 *
 * Each output is one vector of sixteen partial sums (lanes16), so a block of ROWS weight
 * rows by TOKENS activation rows is as many independent chains of fma: 16, twice what
 * hides the latency of 4 cycles on two ports, with 8 loads (or conversions) for 16 fma.
 *
 * Memory is the caller's; any thread. */
#include "avx512.h"
#include "vector.h"

enum { ROWS = 4, TOKENS = 4 };

INLINE __m512 load_f32(const unsigned char *row, int i, __mmask16 some)
{
    return _mm512_maskz_loadu_ps(some, row + 4 * (size_t)i);
}

INLINE __m512 load_f16(const unsigned char *row, int i, __mmask16 some)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(some, row + 2 * (size_t)i));
}

INLINE __m512 load_bf16(const unsigned char *row, int i, __mmask16 some)
{
    __m512i v = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, row + 2 * (size_t)i));
    return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
}

typedef __m512 load_fn(const unsigned char *row, int i, __mmask16 some);

/* Columns i..i+15 (those of `some`) of ROWS rows against T tokens. */
INLINE void multiply_16(__m512 acc[ROWS][TOKENS], const unsigned char *const row[ROWS], const float *const x[TOKENS],
                        int i, __mmask16 some, const int T, load_fn *load)
{
    __m512 v[TOKENS];
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) v[t] = _mm512_maskz_loadu_ps(some, x[t] + i);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
        __m512 w = load(row[r], i, some);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) acc[r][t] = _mm512_mask3_fmadd_ps(w, v[t], acc[r][t], some);
    }
}

/* n_rows (1..ROWS) weight rows from r against T tokens from t0. */
INLINE void block(const struct weight *w, int r, int n_rows, const struct act *a, int t0, float *y, size_t ld_y,
                  const int T, load_fn *load)
{
    const unsigned char *row[ROWS];
    const float *x[TOKENS];
    __m512 acc[ROWS][TOKENS];
    for (int i = 0; i < ROWS; i++)
        row[i] = (const unsigned char *)w->data + (size_t)(r + (i < n_rows ? i : n_rows - 1)) * w->row_bytes;
    for (int t = 0; t < T; t++) x[t] = a->x + (size_t)(t0 + t) * a->ld_x;
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) acc[i][t] = _mm512_setzero_ps();
    int whole = w->n_in & ~15;
    for (int i = 0; i < whole; i += 16) multiply_16(acc, row, x, i, 0xffff, T, load);
    if (whole < w->n_in) multiply_16(acc, row, x, whole, lanes_left(w->n_in - whole), T, load);
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int t = 0; t < T; t++)
            if (i < n_rows) y[(size_t)(t0 + t) * ld_y + (size_t)(r + i)] = fold16(acc[i][t]);
}

/* Many activation rows: ROW_TILE weight rows are widened once, into scratch, and multiplied with TOKENS of them at a
 * time, whose floats stay in L1 meanwhile. */
enum { MANY_TOKENS = 8, TILE_FLOATS = AVX512_SCRATCH_BYTES / (int)sizeof(float) };

/* The halves, quarters, ... of two vectors, added: the first step of fold16 for both at once. */
INLINE __m512 fold_halves(__m512 a, __m512 b)
{
    __m512 outer = _mm512_mask_blend_ps(0xff00, a, b), inner = _mm512_shuffle_f32x4(a, b, 0x4e);
    return _mm512_add_ps(outer, inner);
}

INLINE __m512 fold_quarters(__m512 a, __m512 b)
{
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

INLINE __m512 fold_pairs(__m512 a, __m512 b)
{
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}

INLINE __m512 fold_last(__m512 a, __m512 b)
{
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}

/* fold16 of sixteen vectors: element 4t + r of the result is that of acc[r][t]. */
INLINE __m512 fold_tile(__m512 acc[ROWS][TOKENS])
{
    __m512 row[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
        row[r] = fold_quarters(fold_halves(acc[r][0], acc[r][1]), fold_halves(acc[r][2], acc[r][3]));
    return fold_last(fold_pairs(row[0], row[1]), fold_pairs(row[2], row[3]));
}

/* ROWS widened weight rows, ld apart, against TOKENS activation rows. */
INLINE void widened_block(const float *w, size_t ld, const struct act *a, int t0, float *y, size_t ld_y)
{
    __m512 acc[ROWS][TOKENS];
    const float *x[TOKENS];
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; t++) x[t] = a->x + (size_t)(t0 + t) * a->ld_x;
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int t = 0; t < TOKENS; t++) acc[r][t] = _mm512_setzero_ps();
    int whole = a->n & ~15;
    for (int i = 0; i < whole; i += 16) {
        __m512 v[TOKENS];
#pragma GCC unroll 4
        for (int t = 0; t < TOKENS; t++) v[t] = _mm512_loadu_ps(x[t] + i);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            __m512 u = _mm512_load_ps(w + (size_t)r * ld + i);
#pragma GCC unroll 4
            for (int t = 0; t < TOKENS; t++) acc[r][t] = _mm512_fmadd_ps(u, v[t], acc[r][t]);
        }
    }
    if (whole < a->n) {
        __mmask16 some = lanes_left(a->n - whole);
        for (int r = 0; r < ROWS; r++)
            for (int t = 0; t < TOKENS; t++)
                acc[r][t] = _mm512_mask3_fmadd_ps(_mm512_load_ps(w + (size_t)r * ld + whole),
                                                  _mm512_maskz_loadu_ps(some, x[t] + whole), acc[r][t], some);
    }
    __m512 sums = fold_tile(acc);
    y += (size_t)t0 * ld_y;
    _mm_storeu_ps(y, _mm512_castps512_ps128(sums));
    _mm_storeu_ps(y + ld_y, _mm512_extractf32x4_ps(sums, 1));
    _mm_storeu_ps(y + 2 * ld_y, _mm512_extractf32x4_ps(sums, 2));
    _mm_storeu_ps(y + 3 * ld_y, _mm512_extractf32x4_ps(sums, 3));
}

/* The rows and tokens that make whole blocks; returns after which row it stopped. */
INLINE int matmul_widened(const struct weight *w, int row0, int row1, const struct act *a, int n_tokens, float *y,
                          size_t ld_y, float *tile, load_fn *load)
{
    size_t ld = ((size_t)w->n_in + 15) & ~(size_t)15;
    int most = ld * ROW_TILE <= TILE_FLOATS ? ROW_TILE : (int)(TILE_FLOATS / ld) / ROWS * ROWS, r = row0;
    for (int n; most > 0 && row1 - r >= ROWS; r += n) {
        n = row1 - r < most ? (row1 - r) / ROWS * ROWS : most;
        for (int k = 0; k < n; k++) {
            const unsigned char *row = (const unsigned char *)w->data + (size_t)(r + k) * w->row_bytes;
            for (int i = 0; i < w->n_in; i += 16)
                _mm512_store_ps(tile + (size_t)k * ld + i, load(row, i, lanes_left(w->n_in - i)));
        }
        for (int t = 0; t < n_tokens; t += TOKENS)
            for (int k = 0; k < n; k += ROWS) widened_block(tile + (size_t)k * ld, ld, a, t, y + r + k, ld_y);
    }
    return r;
}

INLINE void matmul(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                   void *scratch, load_fn *load)
{
    int tokens = 0, rest = row0; /* what the widened blocks leave: tokens from here on, and rows from there on */
    if (a->n_rows >= MANY_TOKENS) {
        tokens = a->n_rows / TOKENS * TOKENS;
        rest = matmul_widened(w, row0, row1, a, tokens, y, ld_y, scratch, load);
    }
    for (int r = row0; r < row1; r += ROWS) {
        int n_rows = row1 - r < ROWS ? row1 - r : ROWS;
        int t = r < rest ? tokens : 0;
        for (; t + 4 <= a->n_rows; t += 4) block(w, r, n_rows, a, t, y, ld_y, 4, load);
        if (a->n_rows - t == 3) block(w, r, n_rows, a, t, y, ld_y, 3, load);
        if (a->n_rows - t == 2) block(w, r, n_rows, a, t, y, ld_y, 2, load);
        if (a->n_rows - t == 1) block(w, r, n_rows, a, t, y, ld_y, 1, load);
    }
}

void avx512_matmul_f32(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                       void *scratch)
{
    matmul(w, row0, row1, a, y, ld_y, scratch, load_f32);
}

void avx512_matmul_f16(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                       void *scratch)
{
    matmul(w, row0, row1, a, y, ld_y, scratch, load_f16);
}

void avx512_matmul_bf16(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                        void *scratch)
{
    matmul(w, row0, row1, a, y, ld_y, scratch, load_bf16);
}
