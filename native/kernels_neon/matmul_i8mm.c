/* Quantized products with SMMLA: two rows of eight bytes times two rows of eight bytes give a 2 x 2 of sums. */
#include "neon.h"
#include "simd.h"

INLINE int8x16_t low_halves(int8x16_t a, int8x16_t b)
{
    return vreinterpretq_s8_s64(vtrn1q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}

INLINE int8x16_t high_halves(int8x16_t a, int8x16_t b)
{
    return vreinterpretq_s8_s64(vtrn2q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}

/* For sixteen columns: row 2p gets columns 0..7 of rows 2p and 2p+1, row 2p+1 columns 8..15 of both. */
INLINE void arrange(struct neon_tile *tile, int n)
{
    for (int pair = 0; pair < NEON_TILE; pair += 2)
        for (int c = 0; c < n; c += 16) {
            int8x16_t a = vld1q_s8(tile->q[pair] + c), b = vld1q_s8(tile->q[pair + 1] + c);
            vst1q_s8(tile->q[pair] + c, low_halves(a, b));
            vst1q_s8(tile->q[pair + 1] + c, high_halves(a, b));
        }
}

INLINE void dot(int32x4_t *isum, const struct neon_tile *tile, int column, const int8_t *q, size_t ld_q, const int n_t,
                const int sub)
{
    int8x16_t w[NEON_TILE][2];
#pragma GCC unroll 4
    for (int r = 0; r < NEON_TILE; r++)
#pragma GCC unroll 2
        for (int c = 0; c < sub / 16; c++) w[r][c] = vld1q_s8(tile->q[r] + column + 16 * c);
#pragma GCC unroll 2
    for (int t = 0; t < n_t; t += 2) {
        int other = t + 1 < n_t ? t + 1 : t; /* an odd row is paired with itself */
        /* lanes: row 0 token t, row 0 other, row 1 token t, row 1 other; rows 2 and 3 likewise */
        int32x4_t p01 = vdupq_n_s32(0), p23 = vdupq_n_s32(0);
#pragma GCC unroll 2
        for (int c = 0; c < sub / 16; c++) {
            int8x16_t x0 = vld1q_s8(q + (size_t)t * ld_q + 16 * c), x1 = vld1q_s8(q + (size_t)other * ld_q + 16 * c);
            int8x16_t low = low_halves(x0, x1), high = high_halves(x0, x1);
            p01 = vmmlaq_s32(vmmlaq_s32(p01, w[0][c], low), w[1][c], high);
            p23 = vmmlaq_s32(vmmlaq_s32(p23, w[2][c], low), w[3][c], high);
        }
        isum[t] = vuzp1q_s32(p01, p23);
        if (other != t) isum[other] = vuzp2q_s32(p01, p23);
    }
}

#define MATMUL neon_matmul_i8mm
#include "matmul_body.h"
