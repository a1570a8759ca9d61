/* Activation rows times quantized weight rows: template. Before this come
 *   arrange(tile, n)   what the product wants done to n unpacked columns
 *   dot(isum, ...)     the integer sums of a sub-block
 * and MATMUL, the function's name. The order of kernels.h: per output one chain of fma over sub-blocks, which
 * is one lane here. Everything lies in the caller's scratch, one thread's own. */
#include <string.h>

#include "unpack.h"

enum {
    TOKENS = 4,        /* activation rows that the inner loop takes */
    TOKEN_BLOCK = 256, /* activation rows between two unpackings of the same weights */
};

struct scratch {
    struct neon_tile tile;
    float acc[TOKEN_BLOCK][NEON_TILE], macc[TOKEN_BLOCK][NEON_TILE];
    float fsum[TOKENS][NEON_SLAB / 32];
};

/* acc, of n_t rows from activation row t, += the slab of n columns at k. */
INLINE void multiply(float (*acc)[NEON_TILE], const struct neon_tile *tile, const struct act *a, int t, int k, int n,
                     const int n_t, const int sub)
{
    size_t row = (size_t)a->n, blocks = row / ACT_BLOCK;
    const int8_t *q = a->q + (size_t)t * row + (size_t)k;
    const float *scale = a->scale + (size_t)t * blocks + (size_t)(k / ACT_BLOCK);
    float32x4_t sum[TOKENS];
    for (int i = 0; i < n_t; i++) sum[i] = vld1q_f32(acc[i]);
    const int parts = ACT_BLOCK / sub;
    for (int b = 0; b < n / ACT_BLOCK; b++) {
        int32x4_t isum[TOKENS]; /* lane = weight row */
        dot(isum, tile, b * ACT_BLOCK, q + b * ACT_BLOCK, row, n_t, sub);
        if (parts == 2) {
            int32x4_t half[TOKENS], first = vld1q_s32(tile->factor[2 * b]), second = vld1q_s32(tile->factor[2 * b + 1]);
            dot(half, tile, b * ACT_BLOCK + sub, q + b * ACT_BLOCK + sub, row, n_t, sub);
#pragma GCC unroll 4
            for (int i = 0; i < n_t; i++) isum[i] = vmlaq_s32(vmulq_s32(isum[i], first), half[i], second);
        }
        float32x4_t d = vld1q_f32(tile->d[b]);
#pragma GCC unroll 4
        for (int i = 0; i < n_t; i++) {
            float32x4_t ds = vmulq_n_f32(d, scale[(size_t)i * blocks + (size_t)b]);
            sum[i] = vfmaq_f32(sum[i], vcvtq_f32_s32(isum[i]), ds);
        }
    }
    for (int i = 0; i < n_t; i++) vst1q_f32(acc[i], sum[i]);
}

/* macc += n_sub minimums times fsum, whose rows are ld apart. */
INLINE void multiply_min(float (*macc)[NEON_TILE], const struct neon_tile *tile, const float *fsum, size_t ld,
                         int n_sub, const int n_t)
{
    float32x4_t sum[TOKENS];
    for (int i = 0; i < n_t; i++) sum[i] = vld1q_f32(macc[i]);
    for (int j = 0; j < n_sub; j++) {
        float32x4_t m = vld1q_f32(tile->m[j]);
#pragma GCC unroll 4
        for (int i = 0; i < n_t; i++) sum[i] = vfmaq_n_f32(sum[i], m, fsum[(size_t)i * ld + (size_t)j]);
    }
    for (int i = 0; i < n_t; i++) vst1q_f32(macc[i], sum[i]);
}

/* fsum of sub-blocks of 32: scale times the sum of both halves. */
INLINE void sum_blocks(float *fsum, const float *scale, const int32_t *sum, int n)
{
    int n_blocks = n / ACT_BLOCK, b = 0;
    for (; b + 4 <= n_blocks; b += 4) {
        int32x4_t s = vpaddq_s32(vld1q_s32(sum + 2 * b), vld1q_s32(sum + 2 * b + 4));
        vst1q_f32(fsum + b, vmulq_f32(vld1q_f32(scale + b), vcvtq_f32_s32(s)));
    }
    for (; b < n_blocks; b++) fsum[b] = scale[b] * (float)(sum[2 * b] + sum[2 * b + 1]);
}

#define DEFINE_MULTIPLY(n_t) \
    static void multiply_##n_t(struct scratch *s, const struct quant_format *f, const struct act *a, int t0, int i, \
                               int k, int n) \
    { \
        if (f->sub == 32) multiply(s->acc + i, &s->tile, a, t0 + i, k, n, n_t, 32); \
        else multiply(s->acc + i, &s->tile, a, t0 + i, k, n, n_t, 16); \
        if (!f->has_min) return; \
        size_t row = (size_t)a->n, at = (size_t)(t0 + i) * row + (size_t)k; \
        if (f->sub == 16) { \
            multiply_min(s->macc + i, &s->tile, a->fsum + at / 16, row / 16, n / 16, n_t); \
            return; \
        } \
        for (int c = 0; c < n_t; c++, at += row) sum_blocks(s->fsum[c], a->scale + at / 32, a->sum + at / 16, n); \
        multiply_min(s->macc + i, &s->tile, s->fsum[0], NEON_SLAB / 32, n / 32, n_t); \
    }
DEFINE_MULTIPLY(1)
DEFINE_MULTIPLY(2)
DEFINE_MULTIPLY(3)
DEFINE_MULTIPLY(4)

static void (*const multiply_tokens[TOKENS + 1])(struct scratch *s, const struct quant_format *f, const struct act *a,
                                                 int t0, int i, int k, int n) = {
    NULL, multiply_1, multiply_2, multiply_3, multiply_4};

/* Unpacks columns k .. k+n of four rows from r; where fewer are left, the last one is repeated. Asks for
 * what lies four rows further meanwhile. */
static void fill_tile(struct neon_tile *tile, const struct quant_format *f, const struct weight *w, int r, int row1,
                      int k, int n)
{
    neon_unpack_fn *unpack = neon_unpack[w->type];
    size_t at = (size_t)(k / f->block) * f->block_bytes;
    int per_block = f->block / f->sub;
    for (int i = 0; i < NEON_TILE; i++) {
        int row = r + i < row1 ? r + i : row1 - 1;
        const uint8_t *p = (const uint8_t *)w->data + (size_t)row * w->row_bytes + at;
        const uint8_t *ahead = p + NEON_TILE * w->row_bytes;
        struct neon_row to = {tile->q[i], (float (*)[NEON_TILE])&tile->d[0][i], (int32_t (*)[NEON_TILE])&tile->factor[0][i],
                              (float (*)[NEON_TILE])&tile->m[0][i]};
        for (int c = 0; c < n; c += f->block, p += f->block_bytes, ahead += f->block_bytes) {
            __builtin_prefetch(ahead);
            if (f->block_bytes > 64) {
                __builtin_prefetch(ahead + 64);
                __builtin_prefetch(ahead + 128);
            }
            unpack(&to, p);
            to.q += f->block;
            to.d += f->block / ACT_BLOCK;
            to.factor += per_block;
            to.m += per_block;
        }
    }
    arrange(tile, n);
}

void MATMUL(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y, void *scratch)
{
    struct scratch *s = scratch;
    const struct quant_format *f = quant_format(w->type);
    for (int t0 = 0; t0 < a->n_rows; t0 += TOKEN_BLOCK) {
        int n_t = a->n_rows - t0 < TOKEN_BLOCK ? a->n_rows - t0 : TOKEN_BLOCK;
        for (int r = row0; r < row1; r += NEON_TILE) {
            memset(s->acc, 0, (size_t)n_t * sizeof *s->acc);
            memset(s->macc, 0, (size_t)n_t * sizeof *s->macc);
            for (int k = 0; k < a->n; k += NEON_SLAB) {
                int n = a->n - k < NEON_SLAB ? a->n - k : NEON_SLAB;
                fill_tile(&s->tile, f, w, r, row1, k, n);
                for (int i = 0; i < n_t; i += TOKENS)
                    multiply_tokens[n_t - i < TOKENS ? n_t - i : TOKENS](s, f, a, t0, i, k, n);
            }
            for (int t = 0; t < n_t; t++) {
                float *out = y + (size_t)(t0 + t) * ld_y;
                for (int i = 0; i < NEON_TILE && r + i < row1; i++)
                    out[r + i] = f->has_min ? s->acc[t][i] - s->macc[t][i] : s->acc[t][i];
            }
        }
    }
}
