/* Operations on one row, element by element. The caller's memory; any thread. */
#include "neon.h"
#include "simd.h"

void neon_add(float *y, const float *x, int n)
{
    int i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, vaddq_f32(vld1q_f32(y + i), vld1q_f32(x + i)));
    for (; i < n; i++) y[i] += x[i];
}

void neon_silu_mul(float *y, const float *gate, const float *up, int n)
{
    int i = 0;
    for (; i + 4 <= n; i += 4) {
        float32x4_t g = vld1q_f32(gate + i);
        float32x4_t s = vdivq_f32(g, vaddq_f32(vdupq_n_f32(1), exp_f32(vnegq_f32(g))));
        vst1q_f32(y + i, vmulq_f32(s, vld1q_f32(up + i)));
    }
    for (; i < n; i++) y[i] = gate[i] / (1 + kexp(-gate[i])) * up[i];
}

void neon_gelu(float *y, const float *x, int n)
{
    int i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, gelu_f32(vld1q_f32(x + i)));
    for (; i < n; i++) y[i] = kgelu(x[i]);
}

INLINE void rotate(float32x4_t *x0, float32x4_t *x1, float32x4_t c, float32x4_t s)
{
    float32x4_t a = *x0, b = *x1;
    *x0 = vsubq_f32(vmulq_f32(a, c), vmulq_f32(b, s));
    *x1 = vaddq_f32(vmulq_f32(a, s), vmulq_f32(b, c));
}

void neon_rope(float *x, const float *cos, const float *sin, int n_rot, bool neox)
{
    int half = n_rot / 2, i = 0;
    for (; i + 4 <= half; i += 4) {
        float32x4_t c = vld1q_f32(cos + i), s = vld1q_f32(sin + i);
        if (neox) {
            float32x4_t x0 = vld1q_f32(x + i), x1 = vld1q_f32(x + i + half);
            rotate(&x0, &x1, c, s);
            vst1q_f32(x + i, x0);
            vst1q_f32(x + i + half, x1);
        } else {
            float32x4x2_t p = vld2q_f32(x + 2 * i);
            rotate(&p.val[0], &p.val[1], c, s);
            vst2q_f32(x + 2 * i, p);
        }
    }
    for (; i < half; i++) {
        float *p0 = neox ? x + i : x + 2 * i;
        float *p1 = neox ? x + i + half : x + 2 * i + 1;
        float x0 = *p0, x1 = *p1;
        *p0 = x0 * cos[i] - x1 * sin[i];
        *p1 = x0 * sin[i] + x1 * cos[i];
    }
}

int neon_argmax(const float *x, int n)
{
    float32x4_t tops = vdupq_n_f32(-INFINITY);
    int i = 0;
    for (; i + 4 <= n; i += 4) tops = max_f32(tops, vld1q_f32(x + i));
    float top = vmaxvq_f32(tops); /* no NaN among them */
    for (; i < n; i++) top = kmax(top, x[i]);
    for (i = 0; i < n; i++)
        if (x[i] == top) return i;
    return 0; /* all NaN */
}
