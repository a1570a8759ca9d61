/* Quantized products with SDOT: four bytes times four bytes, summed to 32 bits. */
#include "neon.h"
#include "simd.h"

INLINE int32x4_t dot16(int32x4_t acc, int8x16_t w, int8x16_t q) { return vdotq_s32(acc, w, q); }

#include "dot_rows.h"

#define MATMUL neon_matmul_dot
#include "matmul_body.h"
