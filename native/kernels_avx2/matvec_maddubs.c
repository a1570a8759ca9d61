/* Decoding kernels by AVX2's own byte products. Memory is the caller's; any thread. */
#include "product_maddubs.h"

#include "matvec_body.h"

/* Those with which matmul_few is slower, as measured. */
EXPAND_FORMAT(DEFINE_MATVEC_FEW, Q5_0_FORMAT)
EXPAND_FORMAT(DEFINE_MATVEC_FEW, Q5_1_FORMAT)
EXPAND_FORMAT(DEFINE_MATVEC_FEW, Q8_0_FORMAT(PRODUCT_Q8_ZERO))

avx2_matmul_fn *const avx2_matvec_maddubs[TYPE_COUNT] = MATVEC_TABLE;
avx2_matmul_fn *const avx2_matvec_few_maddubs[TYPE_COUNT] = {
    [TYPE_Q5_0] = matvec_few_q5_0, [TYPE_Q5_1] = matvec_few_q5_1, [TYPE_Q8_0] = matvec_few_q8_0,
};
const size_t avx2_matvec_scratch = sizeof(struct side_by_side_scratch);
