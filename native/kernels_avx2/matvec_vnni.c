/* Decoding kernels by AVX-VNNI's byte products. Memory is the caller's; any thread. */
#include "product_vnni.h"

#include "matvec_body.h"

EXPAND_FORMAT(DEFINE_MATVEC_FEW, Q4_0_FORMAT)
EXPAND_FORMAT(DEFINE_MATVEC_FEW, Q4_1_FORMAT)
EXPAND_FORMAT(DEFINE_MATVEC_FEW, Q5_0_FORMAT)
EXPAND_FORMAT(DEFINE_MATVEC_FEW, Q5_1_FORMAT)
EXPAND_FORMAT(DEFINE_MATVEC_FEW, Q8_0_FORMAT(PRODUCT_Q8_ZERO))
EXPAND_FORMAT(DEFINE_MATVEC_FEW, Q2_K_FORMAT)
EXPAND_FORMAT(DEFINE_MATVEC_FEW, Q3_K_FORMAT)
EXPAND_FORMAT(DEFINE_MATVEC_FEW, Q4_K_FORMAT)
EXPAND_FORMAT(DEFINE_MATVEC_FEW, Q5_K_FORMAT)
EXPAND_FORMAT(DEFINE_MATVEC_FEW, Q6_K_FORMAT)

avx2_matmul_fn *const avx2_matvec_vnni[TYPE_COUNT] = MATVEC_TABLE;
avx2_matmul_fn *const avx2_matvec_few_vnni[TYPE_COUNT] = {
    [TYPE_Q4_0] = matvec_few_q4_0, [TYPE_Q4_1] = matvec_few_q4_1, [TYPE_Q5_0] = matvec_few_q5_0, [TYPE_Q5_1] = matvec_few_q5_1,
    [TYPE_Q8_0] = matvec_few_q8_0, [TYPE_Q2_K] = matvec_few_q2_K, [TYPE_Q3_K] = matvec_few_q3_K, [TYPE_Q4_K] = matvec_few_q4_K,
    [TYPE_Q5_K] = matvec_few_q5_K, [TYPE_Q6_K] = matvec_few_q6_K,
};
