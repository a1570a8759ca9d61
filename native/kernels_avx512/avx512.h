/* The operations of the AVX-512 table, by the file that holds them; contracts in kernels.h. */
#ifndef INFER_AVX512_H
#define INFER_AVX512_H

#include "kernels.h"

/* kernels.scratch_bytes: what the greediest of these needs, as they assert. */
enum { AVX512_SCRATCH_BYTES = 1024 * 1024 };

/* quantize.c */
void avx512_quantize(struct act *a, int row);

/* matmul_quantized.c, matmul_float.c */
void avx512_matmul_quantized(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                             void *scratch);
void avx512_matmul_f32(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                       void *scratch);
void avx512_matmul_f16(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                       void *scratch);
void avx512_matmul_bf16(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                        void *scratch);

/* matmul_amx.c; a thread may call it once the process has leave to use AMX (avx512_table.c) */
void avx512_matmul_amx(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                       void *scratch);

/* matmul_few.c; up to STREAM_TOKENS activation rows (tile.h) of together STREAM_SUB_BLOCKS sub-blocks, 16 and more rows of weights */
void avx512_matmul_few(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y, void *scratch);

/* norm.c */
void avx512_rmsnorm(float *y, const float *x, const float *w, int n, float eps);
void avx512_layernorm(float *y, const float *x, const float *w, const float *b, int n, float eps);

/* elementwise.c */
void avx512_add(float *y, const float *x, int n);
void avx512_silu_mul(float *y, const float *gate, const float *up, int n);
void avx512_gelu(float *y, const float *x, int n);
void avx512_rope(float *x, const float *cos, const float *sin, int n_rot, bool neox);
int avx512_argmax(const float *x, int n);

/* attend.c */
float avx512_narrow(int16_t *y, const float *x, int n, enum narrow_by by);
void avx512_attend(const struct kv_query *queries, int n_q, int k_dim, int v_dim, const struct kv_head *pages, float *m,
                   float *l, float *acc, void *scratch);
void avx512_attend_merge(float *m, float *l, float *acc, float m2, float l2, const float *acc2, int v_dim);

/* peak.c */
uint64_t avx512_peak(int rounds);

#endif
