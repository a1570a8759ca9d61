/* Decoding kernels by AVX2's own byte products. Memory is the caller's; any thread. */
#include "product_maddubs.h"

#include "matvec_body.h"

avx2_matmul_fn *const avx2_matvec_maddubs[TYPE_COUNT] = MATVEC_TABLE;
const size_t avx2_matvec_scratch = sizeof(struct matvec_scratch);
