/* Decoding kernels by AVX-VNNI's byte products. Memory is the caller's; any thread. */
#include "product_vnni.h"

#include "matvec_body.h"

avx2_matmul_fn *const avx2_matvec_vnni[TYPE_COUNT] = MATVEC_TABLE;
