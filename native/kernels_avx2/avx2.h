/* What the files of the AVX2 kernels share: declarations only, so that the
 * table, which includes this, can be compiled for any x86-64. */
#ifndef INFER_AVX2_H
#define INFER_AVX2_H

#include "kernels.h"

/* ---- quantized types ----
 *
 * A tile is ROW_TILE weight rows side by side, lane = row (two registers of eight).
 * One or two rows of activations, by AVX-VNNI and of some formats four, are multiplied while half a tile unpacks, in
 * registers (matvec); more share a tile that was packed into L1 first, some hundred elements at a time (matmul_few) or in
 * long slabs (pack, matmul). All give the same bits, so where one takes over from the other is a matter of speed alone. */

enum { AVX2_SLAB = 1024 }; /* elements of a row that are packed at a time: 26 KB in all */

/* A slab of a tile as the multiplication reads it. */
struct avx2_packed {
    uint8_t q[AVX2_SLAB / 4][ROW_TILE][4];      /* unsigned, the format's zero not taken off; or nibbles (matmul_few), or signed */
    float d[AVX2_SLAB / ACT_BLOCK][ROW_TILE];   /* by 32 elements */
    float m[AVX2_SLAB / 16][ROW_TILE];           /* by sub-block */
    /* By sub-block of 16: the integer scale, twice. Signed bytes, by 32: an int32_t, minus the sum of the negative ones. */
    int16_t factor[AVX2_SLAB / 16][ROW_TILE][2];
};

/* Packs n_blocks blocks of the eight rows p, p+stride, ... into rows 8*half .. of the tile. */
typedef void avx2_pack_fn(struct avx2_packed *dst, int half, const uint8_t *p, size_t stride, int n_blocks);

struct avx2_format {
    int block, sub;     /* elements */
    int bits;           /* of an unsigned integer: 4 (or fewer), 5, 6 or 8 */
    int zero;           /* what is to be taken off; 128 for Q8_0, whose integers pack does offset */
    bool has_min;
    size_t block_bytes;
    avx2_pack_fn *pack;
};

extern const struct avx2_format avx2_formats[TYPE_COUNT];

/* Q8_0 as it is, signed. */
avx2_pack_fn avx2_pack_q8_0_signed;

typedef void avx2_matmul_fn(const struct weight *w, int row0, int row1, const struct act *a, float *y,
                            size_t ld_y, void *scratch);

enum {
    AVX2_MATVEC_TOKENS = 4,    /* most activation rows of matvec, */
    AVX2_FEW_TOKENS = 6,       /* of matmul_few, */
    AVX2_FEW_TOKENS_Q5_K = 4,  /* of matmul_few with Q5_K, whose sums fill the registers with two */
    AVX2_FEW_MAX = 1 << 16,    /* longest activation row that the scratch of both has room for */
    AVX2_MATMUL_MAX = 1 << 22, /* longest activation row that matmul's scratch has room for */
};

/* Any number of activation rows up to AVX2_MATMUL_MAX long, by AVX2's own byte products or by AVX-VNNI's. */
avx2_matmul_fn avx2_matmul_maddubs, avx2_matmul_vnni;
/* The same of few rows up to AVX2_FEW_MAX long, by type or NULL: one or two rows, */
extern avx2_matmul_fn *const avx2_matvec_maddubs[TYPE_COUNT], *const avx2_matvec_vnni[TYPE_COUNT];
/* three or four, */
extern avx2_matmul_fn *const avx2_matvec_few_maddubs[TYPE_COUNT], *const avx2_matvec_few_vnni[TYPE_COUNT];
/* and three to AVX2_FEW_TOKENS by AVX2's own products, of the types that avx2_matvec_few_maddubs lacks. */
extern avx2_matmul_fn *const avx2_matmul_few[TYPE_COUNT];
uint64_t avx2_peak_maddubs(int rounds), avx2_peak_vnni(int rounds);
extern const size_t avx2_matmul_scratch, avx2_matvec_scratch, avx2_few_scratch, avx2_attend_scratch;

/* ---- the rest ---- */

avx2_matmul_fn avx2_matmul_f32, avx2_matmul_f16, avx2_matmul_bf16;

void avx2_quantize(struct act *a, int row);
void avx2_rmsnorm(float *y, const float *x, const float *w, int n, float eps);
void avx2_layernorm(float *y, const float *x, const float *w, const float *b, int n, float eps);
void avx2_add(float *y, const float *x, int n);
void avx2_silu_mul(float *y, const float *gate, const float *up, int n);
void avx2_gelu(float *y, const float *x, int n);
void avx2_rope(float *x, const float *cos, const float *sin, int n_rot, bool neox);
int avx2_argmax(const float *x, int n);
float avx2_narrow(int16_t *y, const float *x, int n, enum narrow_by by);
void avx2_attend(const struct kv_query *queries, int n_q, int k_dim, int v_dim, const struct kv_head *pages, float *m,
                 float *l, float *acc, void *scratch);
void avx2_attend_merge(float *m, float *l, float *acc, float m2, float l2, const float *acc2, int v_dim);

#endif
