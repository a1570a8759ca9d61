/* Scalar recipes for the transcendental functions that kernels use.
 *
 * Vector versions repeat these operations lane by lane, so that every table
 * gives the same bits. fmaf() is exact on every platform (in hardware or not). */
#ifndef INFER_KERNELS_MATH_H
#define INFER_KERNELS_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* exp(x): x is clamped to [KEXP_MIN, KEXP_MAX] (below it the result is 0).
 * n = round half to even(x * log2 e); r = x - n*ln2 in two fma steps;
 * polynomial of degree 6 in r by Horner with fma; then scaled by 2^n through
 * the exponent bits. Largest error about 1 ulp. NaN gives NaN. */
#define KEXP_MIN (-87.0f)
#define KEXP_MAX (88.0f)
#define KEXP_LOG2E 1.44269504088896341f
#define KEXP_LN2_HI 0.693145751953125f       /* the upper bits of ln 2: n*hi is exact */
#define KEXP_LN2_LO 1.42860682030941723e-6f  /* ln 2 - hi */
#define KEXP_C0 1.0f
#define KEXP_C1 1.0f
#define KEXP_C2 0.5f
#define KEXP_C3 0.166666671f
#define KEXP_C4 0.0416664568f
#define KEXP_C5 0.00833345205f
#define KEXP_C6 0.00139310146f

static inline float kexp(float x)
{
    if (x != x) return x;
    if (x < KEXP_MIN) return 0.0f;
    if (x > KEXP_MAX) x = KEXP_MAX;
    float n = nearbyintf(x * KEXP_LOG2E);
    float r = fmaf(n, -KEXP_LN2_HI, x);
    r = fmaf(n, -KEXP_LN2_LO, r);
    float p = KEXP_C6;
    p = fmaf(p, r, KEXP_C5);
    p = fmaf(p, r, KEXP_C4);
    p = fmaf(p, r, KEXP_C3);
    p = fmaf(p, r, KEXP_C2);
    p = fmaf(p, r, KEXP_C1);
    p = fmaf(p, r, KEXP_C0);
    int32_t bits = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

#endif
