/* The integer sums of a sub-block where a product sums bytes of one row: four partial sums for each pair of a
 * weight row and an activation row, then a transposing addition. Before this comes
 * dot16(acc, w, q): acc plus sixteen products in any four lanes. */
#ifndef INFER_NEON_DOT_ROWS_H
#define INFER_NEON_DOT_ROWS_H

INLINE void arrange(struct neon_tile *tile, int n)
{
    (void)tile;
    (void)n;
}

INLINE void dot(int32x4_t *isum, const struct neon_tile *tile, int column, const int8_t *q, size_t ld_q, const int n_t,
                const int sub)
{
    int8x16_t w[NEON_TILE][2];
#pragma GCC unroll 4
    for (int r = 0; r < NEON_TILE; r++)
#pragma GCC unroll 2
        for (int c = 0; c < sub / 16; c++) w[r][c] = vld1q_s8(tile->q[r] + column + 16 * c);
#pragma GCC unroll 4
    for (int t = 0; t < n_t; t++) {
        int32x4_t p[NEON_TILE] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
#pragma GCC unroll 2
        for (int c = 0; c < sub / 16; c++) {
            int8x16_t x = vld1q_s8(q + (size_t)t * ld_q + 16 * c);
#pragma GCC unroll 4
            for (int r = 0; r < NEON_TILE; r++) p[r] = dot16(p[r], w[r][c], x);
        }
        isum[t] = vpaddq_s32(vpaddq_s32(p[0], p[1]), vpaddq_s32(p[2], p[3]));
    }
}

#endif
