/* NEON forms of what kernels.h and kernels_math.h define: the same operations, lane by lane.
 * Pure functions, any thread. */
#ifndef INFER_NEON_SIMD_H
#define INFER_NEON_SIMD_H

#include <arm_neon.h>

#include "kernels_math.h"

#define INLINE static inline __attribute__((always_inline))

/* lanes16 of kernels.h: sixteen partial sums, element i in lane i%16. */
struct lanes16 {
    float32x4_t v[4];
};

INLINE struct lanes16 lanes_zero(void)
{
    return (struct lanes16){{vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)}};
}

INLINE float lanes_fold(struct lanes16 s)
{
    float32x4_t a = vaddq_f32(vaddq_f32(s.v[0], s.v[2]), vaddq_f32(s.v[1], s.v[3]));
    float32x2_t b = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return vget_lane_f32(b, 0) + vget_lane_f32(b, 1);
}

INLINE void lanes_store(float lane[16], const struct lanes16 *s)
{
    for (int i = 0; i < 4; i++) vst1q_f32(lane + 4 * i, s->v[i]);
}

INLINE struct lanes16 lanes_load(const float lane[16])
{
    return (struct lanes16){{vld1q_f32(lane), vld1q_f32(lane + 4), vld1q_f32(lane + 8), vld1q_f32(lane + 12)}};
}

/* lanes16 fma(x,x,lane) */
INLINE float sum_of_squares(const float *x, int n)
{
    struct lanes16 s = lanes_zero();
    float lane[16];
    int i = 0;
    for (; i + 16 <= n; i += 16)
        for (int c = 0; c < 4; c++) {
            float32x4_t v = vld1q_f32(x + i + 4 * c);
            s.v[c] = vfmaq_f32(s.v[c], v, v);
        }
    lanes_store(lane, &s);
    for (; i < n; i++) lane[i % 16] = fmaf(x[i], x[i], lane[i % 16]);
    return lanes_fold(lanes_load(lane));
}

/* kmax: x where it is larger, so that a NaN in x is passed over. */
INLINE float32x4_t max_f32(float32x4_t top, float32x4_t x) { return vbslq_f32(vcgtq_f32(x, top), x, top); }

/* kexp */
INLINE float32x4_t exp_f32(float32x4_t x0)
{
    float32x4_t x = vbslq_f32(vcgtq_f32(x0, vdupq_n_f32(KEXP_MAX)), vdupq_n_f32(KEXP_MAX), x0);
    float32x4_t n = vrndnq_f32(vmulq_n_f32(x, KEXP_LOG2E));
    float32x4_t r = vfmaq_n_f32(x, n, -KEXP_LN2_HI);
    r = vfmaq_n_f32(r, n, -KEXP_LN2_LO);
    float32x4_t p = vdupq_n_f32(KEXP_C6);
    p = vfmaq_f32(vdupq_n_f32(KEXP_C5), p, r);
    p = vfmaq_f32(vdupq_n_f32(KEXP_C4), p, r);
    p = vfmaq_f32(vdupq_n_f32(KEXP_C3), p, r);
    p = vfmaq_f32(vdupq_n_f32(KEXP_C2), p, r);
    p = vfmaq_f32(vdupq_n_f32(KEXP_C1), p, r);
    p = vfmaq_f32(vdupq_n_f32(KEXP_C0), p, r);
    int32x4_t bits = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    float32x4_t y = vmulq_f32(p, vreinterpretq_f32_s32(bits));
    y = vbslq_f32(vcltq_f32(x0, vdupq_n_f32(KEXP_MIN)), vdupq_n_f32(0), y);
    return vbslq_f32(vceqq_f32(x0, x0), y, x0); /* NaN as it came */
}

/* kgelu */
INLINE float32x4_t gelu_f32(float32x4_t x)
{
    float32x4_t one = vdupq_n_f32(1), a = vabsq_f32(x);
    float32x4_t t = vdivq_f32(one, vfmaq_n_f32(one, a, 0.25f));
    float32x4_t p = vdupq_n_f32(KGELU_C9);
    p = vfmaq_f32(vdupq_n_f32(KGELU_C8), p, t);
    p = vfmaq_f32(vdupq_n_f32(KGELU_C7), p, t);
    p = vfmaq_f32(vdupq_n_f32(KGELU_C6), p, t);
    p = vfmaq_f32(vdupq_n_f32(KGELU_C5), p, t);
    p = vfmaq_f32(vdupq_n_f32(KGELU_C4), p, t);
    p = vfmaq_f32(vdupq_n_f32(KGELU_C3), p, t);
    p = vfmaq_f32(vdupq_n_f32(KGELU_C2), p, t);
    p = vfmaq_f32(vdupq_n_f32(KGELU_C1), p, t);
    p = vfmaq_f32(vdupq_n_f32(KGELU_C0), p, t);
    float32x4_t tail = vmulq_f32(t, exp_f32(vfmaq_f32(p, vmulq_n_f32(a, -0.5f), a)));
    return vmulq_f32(x, vbslq_f32(vcltzq_f32(x), tail, vsubq_f32(one, tail)));
}

/* Four half-precision floats, widened exactly. */
INLINE float32x4_t widen_f16(uint16x4_t h) { return vcvt_f32_f16(vreinterpret_f16_u16(h)); }

#endif
