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

INLINE void matmul(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                   load_fn *load)
{
    for (int r = row0; r < row1; r += ROWS) {
        int n_rows = row1 - r < ROWS ? row1 - r : ROWS;
        int t = 0;
        for (; t + 4 <= a->n_rows; t += 4) block(w, r, n_rows, a, t, y, ld_y, 4, load);
        if (a->n_rows - t == 3) block(w, r, n_rows, a, t, y, ld_y, 3, load);
        if (a->n_rows - t == 2) block(w, r, n_rows, a, t, y, ld_y, 2, load);
        if (a->n_rows - t == 1) block(w, r, n_rows, a, t, y, ld_y, 1, load);
    }
}

void avx512_matmul_f32(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                       void *scratch)
{
    (void)scratch;
    matmul(w, row0, row1, a, y, ld_y, load_f32);
}

void avx512_matmul_f16(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                       void *scratch)
{
    (void)scratch;
    matmul(w, row0, row1, a, y, ld_y, load_f16);
}

void avx512_matmul_bf16(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                        void *scratch)
{
    (void)scratch;
    matmul(w, row0, row1, a, y, ld_y, load_bf16);
}
