/* What the files of the NEON kernels share.
 *
 * Quantized types: four weight rows at a time are unpacked into a tile in L1, slab by slab, as signed bytes
 * with the format's zero taken off, and each slab is multiplied with all activation rows. Decoding a
 * single token goes the same way: to store and reload the bytes costs less than the
 * loads of the weights from memory. The three levels differ only in how they multiply bytes.
 * Memory is the caller's scratch, one thread's own. */
#ifndef INFER_NEON_H
#define INFER_NEON_H

#include "kernels.h"

enum {
    NEON_TILE = 4,    /* weight rows side by side: lane = row of a float register */
    NEON_SLAB = 1024, /* elements of a row that are unpacked at a time; a multiple of every format's block */
};

struct neon_tile {
    int8_t q[NEON_TILE][NEON_SLAB];
    float d[NEON_SLAB / ACT_BLOCK][NEON_TILE];    /* [32 columns][row] */
    int32_t factor[NEON_SLAB / 16][NEON_TILE];    /* [sub-block][row], formats with sub-blocks of 16 only: their integer scales */
    float m[NEON_SLAB / 16][NEON_TILE];           /* [sub-block][row], formats with a minimum only */
};

/* One row of a tile from some column on: [i][0] is the row's. */
struct neon_row {
    int8_t *q;
    float (*d)[NEON_TILE];
    int32_t (*factor)[NEON_TILE];
    float (*m)[NEON_TILE];
};

/* One block into a row of a tile. */
typedef void neon_unpack_fn(const struct neon_row *to, const void *block);
extern neon_unpack_fn *const neon_unpack[TYPE_COUNT]; /* NULL for types that are not quantized */

typedef void neon_matmul_fn(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                            void *scratch);
neon_matmul_fn neon_matmul_mull, neon_matmul_dot, neon_matmul_i8mm;
neon_matmul_fn neon_matmul_f32, neon_matmul_f16, neon_matmul_bf16;
extern const size_t neon_matmul_scratch;

void neon_quantize(struct act *a, int row);
void neon_rmsnorm(float *y, const float *x, const float *w, int n, float eps);
void neon_layernorm(float *y, const float *x, const float *w, const float *b, int n, float eps);
void neon_add(float *y, const float *x, int n);
void neon_silu_mul(float *y, const float *gate, const float *up, int n);
void neon_gelu(float *y, const float *x, int n);
void neon_rope(float *x, const float *cos, const float *sin, int n_rot, bool neox);
int neon_argmax(const float *x, int n);
float neon_narrow(int16_t *y, const float *x, int n, enum narrow_by by);
void neon_attend(const struct kv_query *queries, int n_q, int k_dim, int v_dim, const struct kv_head *pages, float *m,
                 float *l, float *acc, void *scratch);
void neon_attend_merge(float *m, float *l, float *acc, float m2, float l2, const float *acc2, int v_dim);

#endif
