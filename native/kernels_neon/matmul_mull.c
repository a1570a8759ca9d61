/* Quantized products with the multiplications that every ARMv8 has: bytes to 16 bits, two of them
 * summed there. 2 * 128 * 127 still fits. */
#include "neon.h"
#include "simd.h"

INLINE int32x4_t dot16(int32x4_t acc, int8x16_t w, int8x16_t q)
{
    int16x8_t p = vmull_s8(vget_low_s8(w), vget_low_s8(q));
    return vpadalq_s16(acc, vmlal_high_s8(p, w, q));
}

#include "dot_rows.h"

#define MATMUL neon_matmul_mull
#include "matmul_body.h"

const size_t neon_matmul_scratch = sizeof(struct scratch);
