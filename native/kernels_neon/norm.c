/* Normalization of one row. The caller's memory; any thread. */
#include <math.h>

#include "neon.h"
#include "simd.h"

void neon_rmsnorm(float *y, const float *x, const float *w, int n, float eps)
{
    float r = 1 / sqrtf(sum_of_squares(x, n) / (float)n + eps);
    int i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, vmulq_f32(vmulq_n_f32(vld1q_f32(x + i), r), vld1q_f32(w + i)));
    for (; i < n; i++) y[i] = (x[i] * r) * w[i];
}

void neon_layernorm(float *y, const float *x, const float *w, const float *b, int n, float eps)
{
    struct lanes16 s = lanes_zero();
    float lane[16];
    int i = 0;
    for (; i + 16 <= n; i += 16)
        for (int k = 0; k < 4; k++) s.v[k] = vaddq_f32(s.v[k], vld1q_f32(x + i + 4 * k));
    lanes_store(lane, &s);
    for (; i < n; i++) lane[i % 16] += x[i];
    float mean = lanes_fold(lanes_load(lane)) / (float)n;

    s = lanes_zero();
    for (i = 0; i + 16 <= n; i += 16)
        for (int k = 0; k < 4; k++) {
            float32x4_t v = vsubq_f32(vld1q_f32(x + i + 4 * k), vdupq_n_f32(mean));
            s.v[k] = vfmaq_f32(s.v[k], v, v);
        }
    lanes_store(lane, &s);
    for (; i < n; i++) lane[i % 16] = fmaf(x[i] - mean, x[i] - mean, lane[i % 16]);
    float r = 1 / sqrtf(lanes_fold(lanes_load(lane)) / (float)n + eps);
    for (i = 0; i + 4 <= n; i += 4) {
        float32x4_t v = vmulq_n_f32(vsubq_f32(vld1q_f32(x + i), vdupq_n_f32(mean)), r);
        vst1q_f32(y + i, vfmaq_f32(vld1q_f32(b + i), v, vld1q_f32(w + i)));
    }
    for (; i < n; i++) y[i] = fmaf((x[i] - mean) * r, w[i], b[i]);
}
