/* Float weights (F32, F16, BF16) times activation rows. Memory is the caller's; any thread.
 *
 * Each output has two registers of partial sums (lanes16 of kernels.h). Several weight rows and
 * activation rows are taken together, so that each load serves two or three
 * products: 2 rows x 3 tokens fill twelve registers; one token alone takes 4 rows. */
#include "avx2.h"
#include "simd.h"

#include <string.h>

/* Eight weights at element i of a row, and the last n < 8 of a row, zeros behind. */
INLINE __m256 weights(enum tensor_type type, const uint8_t *row, int i)
{
    if (type == TYPE_F32) return _mm256_loadu_ps((const float *)(const void *)row + i);
    __m128i half = _mm_loadu_si128((const __m128i *)(row + 2 * (size_t)i));
    if (type == TYPE_F16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

INLINE __m256 last_weights(enum tensor_type type, const uint8_t *row, int i, int n)
{
    uint8_t copy[32] = {0};
    size_t bytes = type == TYPE_F32 ? 4 : 2;
    if (n > 0) memcpy(copy, row + bytes * (size_t)i, bytes * (size_t)(n < 8 ? n : 8));
    return weights(type, copy, 0);
}

/* acc = fma(v, x, acc) in the lanes of the mask; the others stay as they are, to the sign of a zero. */
INLINE __m256 fma_masked(__m256 v, __m256 x, __m256 acc, __m256i mask)
{
    return _mm256_blendv_ps(acc, _mm256_fmadd_ps(v, x, acc), _mm256_castsi256_ps(mask));
}

INLINE void multiply(enum tensor_type type, int n_r, int n_t, const struct weight *w, int r, const struct act *a,
                     int t, float *y, size_t ld_y)
{
    __m256 acc[4][3][2];
    const uint8_t *row[4];
    const float *x[3];
#pragma GCC unroll 4
    for (int i = 0; i < n_r; i++) {
        row[i] = (const uint8_t *)w->data + (size_t)(r + i) * w->row_bytes;
#pragma GCC unroll 4
        for (int j = 0; j < n_t; j++) acc[i][j][0] = acc[i][j][1] = _mm256_setzero_ps();
    }
#pragma GCC unroll 4
    for (int j = 0; j < n_t; j++) x[j] = a->x + (size_t)(t + j) * a->ld_x;
    int k = 0;
    for (; k + 16 <= w->n_in; k += 16) {
#pragma GCC unroll 4
        for (int i = 0; i < n_r; i++) {
            __m256 lo = weights(type, row[i], k), hi = weights(type, row[i], k + 8);
#pragma GCC unroll 4
            for (int j = 0; j < n_t; j++) {
                acc[i][j][0] = _mm256_fmadd_ps(lo, _mm256_loadu_ps(x[j] + k), acc[i][j][0]);
                acc[i][j][1] = _mm256_fmadd_ps(hi, _mm256_loadu_ps(x[j] + k + 8), acc[i][j][1]);
            }
        }
    }
    int rest = w->n_in - k;
    __m256i in_lo = lanes_below(rest), in_hi = lanes_below(rest - 8);
#pragma GCC unroll 4
    for (int i = 0; i < n_r; i++) {
        if (rest > 0) {
            __m256 lo = last_weights(type, row[i], k, rest), hi = last_weights(type, row[i], k + 8, rest - 8);
#pragma GCC unroll 4
            for (int j = 0; j < n_t; j++) {
                __m256 x_lo = _mm256_maskload_ps(x[j] + k, in_lo), x_hi = _mm256_maskload_ps(x[j] + k + 8, in_hi);
                acc[i][j][0] = fma_masked(lo, x_lo, acc[i][j][0], in_lo);
                acc[i][j][1] = fma_masked(hi, x_hi, acc[i][j][1], in_hi);
            }
        }
#pragma GCC unroll 4
        for (int j = 0; j < n_t; j++) y[(size_t)(t + j) * ld_y + (size_t)(r + i)] = fold16(acc[i][j][0], acc[i][j][1]);
    }
}

/* n_r rows times all of n_t activation rows. */
INLINE void multiply_rows(enum tensor_type type, int n_r, const struct weight *w, int r, const struct act *a, int t,
                          int n_t, float *y, size_t ld_y)
{
    int end = t + n_t;
    for (; t + 3 <= end; t += 3) multiply(type, n_r, 3, w, r, a, t, y, ld_y);
    if (end - t == 2) multiply(type, n_r, 2, w, r, a, t, y, ld_y);
    if (end - t == 1) multiply(type, n_r, 1, w, r, a, t, y, ld_y);
}

INLINE void matmul(enum tensor_type type, const struct weight *w, int row0, int row1, const struct act *a, float *y,
                   size_t ld_y)
{
    int r = row0;
    if (a->n_rows == 1) {
        for (; r + 4 <= row1; r += 4) multiply(type, 4, 1, w, r, a, 0, y, ld_y);
        for (; r < row1; r++) multiply(type, 1, 1, w, r, a, 0, y, ld_y);
        return;
    }
    /* As many activation rows as stay in L2 while the weights pass by, a multiple of 3. */
    int chunk = (256 << 10) / (4 * w->n_in) / 3 * 3;
    if (chunk < 12) chunk = 12;
    for (int t = 0; t < a->n_rows; t += chunk) {
        int n_t = a->n_rows - t < chunk ? a->n_rows - t : chunk;
        for (r = row0; r + 2 <= row1; r += 2) multiply_rows(type, 2, w, r, a, t, n_t, y, ld_y);
        if (r < row1) multiply_rows(type, 1, w, r, a, t, n_t, y, ld_y);
    }
}

void avx2_matmul_f32(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                     void *scratch)
{
    (void)scratch;
    matmul(TYPE_F32, w, row0, row1, a, y, ld_y);
}

void avx2_matmul_f16(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                     void *scratch)
{
    (void)scratch;
    matmul(TYPE_F16, w, row0, row1, a, y, ld_y);
}

void avx2_matmul_bf16(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                      void *scratch)
{
    (void)scratch;
    matmul(TYPE_BF16, w, row0, row1, a, y, ld_y);
}
