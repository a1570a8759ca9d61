/* Activation rows to int8. The caller's memory; any thread. */
#include "neon.h"
#include "simd.h"

void neon_quantize(struct act *a, int row)
{
    const float *x = a->x + (size_t)row * a->ld_x;
    size_t n_blocks = (size_t)a->n / ACT_BLOCK;
    for (size_t b = 0; b < n_blocks; b++, x += ACT_BLOCK) {
        size_t at = (size_t)row * n_blocks + b;
        float32x4_t v[8];
        uint32x4_t top = vdupq_n_u32(0);
        for (int i = 0; i < 8; i++) {
            v[i] = vld1q_f32(x + 4 * i);
            top = vmaxq_u32(top, vandq_u32(vreinterpretq_u32_f32(v[i]), vdupq_n_u32(0x7fffffff)));
        }
        float inv, scale = kquant_scale(vmaxvq_u32(top), 127, &inv);
        a->scale[at] = scale;
        for (int half = 0; half < 2; half++) {
            int16x4_t s[4];
            for (int i = 0; i < 4; i++) /* to nearest even; NaN, which is 0 times infinity here, gives 0 */
                s[i] = vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(v[4 * half + i], inv)));
            int8x16_t q = vcombine_s8(vmovn_s16(vcombine_s16(s[0], s[1])), vmovn_s16(vcombine_s16(s[2], s[3])));
            vst1q_s8(a->q + at * ACT_BLOCK + (size_t)(half * ACT_SUM_BLOCK), q);
            int32_t sum = vaddlvq_s8(q);
            a->sum[2 * at + (size_t)half] = sum;
            a->fsum[2 * at + (size_t)half] = scale * (float)sum;
        }
    }
}
