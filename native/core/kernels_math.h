/* Scalar recipes that kernels share: exponential, GELU, and the edge cases of quantization.
 *
 * Vector versions repeat these operations lane by lane, so that every table
 * gives the same bits. fmaf() is exact on every platform (in hardware or not).
 * The rounding mode is the default one (nearest, ties to even) and denormals are kept. */
#ifndef INFER_KERNELS_MATH_H
#define INFER_KERNELS_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float kfloat_of_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t kbits_of_float(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* The larger of a running maximum and x; a NaN in x is passed over. (x86: maxps(x, top)) */
static inline float kmax(float top, float x) { return x > top ? x : top; }

/* ---- exp ----
 *
 * Below KEXP_MIN the result is 0, above KEXP_MAX that of KEXP_MAX (so it is never infinite, and never
 * denormal); NaN gives NaN. n = round half to even(x * log2 e); r = x - n*ln2 in two
 * fma steps; a polynomial of degree 6 in r by Horner with fma, whose coefficients
 * minimize the largest relative error over |r| <= ln2/2 (0.06 of half a unit in the last place before rounding)
 * with the first three held at 1, 1, 1/2; then scaled by 2^n through
 * the exponent bits. Within 1 ulp of exp. */
#define KEXP_MIN (-87.0f)
#define KEXP_MAX (88.0f)
#define KEXP_LOG2E 1.44269504088896341f
#define KEXP_LN2_HI 0.693145751953125f       /* the upper 16 bits of ln 2: n*hi is exact */
#define KEXP_LN2_LO 1.42860682030941723e-6f  /* ln 2 - hi */
#define KEXP_C0 1.0f
#define KEXP_C1 1.0f
#define KEXP_C2 0.5f
#define KEXP_C3 0.166665345f
#define KEXP_C4 0.0416672379f
#define KEXP_C5 0.00836748257f
#define KEXP_C6 0.00138637808f

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
    return p * kfloat_of_bits((uint32_t)((int32_t)n + 127) << 23);
}

/* ---- GELU, the erf form: x * Phi(x) ----
 *
 * The normal distribution's tail, for a = |x|: Phi(-a) = t * exp(P(t) - a^2/2) with t = 1/(1 + a/4).
 * P is smooth on all of (0, 1]; the polynomial of degree 9 minimizes its
 * largest error over 0 <= a <= 14 (6.4e-8 with coefficients as floats), and kexp is 0 beyond. Then
 * Phi(x) = Phi(-a) for x < 0, else 1 - Phi(-a): negative x lose no digits to cancellation.
 * NaN gives NaN, +infinity itself, -infinity NaN. */
#define KGELU_C0 -2.305408f
#define KGELU_C1 1.00314653f
#define KGELU_C2 0.414509773f
#define KGELU_C3 0.293203384f
#define KGELU_C4 -0.0730461553f
#define KGELU_C5 -0.030492058f
#define KGELU_C6 0.513998747f
#define KGELU_C7 -1.09515595f
#define KGELU_C8 0.768370748f
#define KGELU_C9 -0.182274237f

static inline float kgelu(float x)
{
    float a = fabsf(x);
    float t = 1.0f / fmaf(0.25f, a, 1.0f);
    float p = KGELU_C9;
    p = fmaf(p, t, KGELU_C8);
    p = fmaf(p, t, KGELU_C7);
    p = fmaf(p, t, KGELU_C6);
    p = fmaf(p, t, KGELU_C5);
    p = fmaf(p, t, KGELU_C4);
    p = fmaf(p, t, KGELU_C3);
    p = fmaf(p, t, KGELU_C2);
    p = fmaf(p, t, KGELU_C1);
    p = fmaf(p, t, KGELU_C0);
    float tail = t * kexp(fmaf(-0.5f * a, a, p));
    return x * (x < 0 ? tail : 1.0f - tail);
}

/* ---- scale of a block of activations, or of another vector of integers ----
 *
 * levels: the largest integer's magnitude, 127 for activations.
 * A block whose largest magnitude is below KQUANT_TINY counts as zero: levels/amax must stay finite.
 * One with a NaN or an infinity gets scale NaN and all q 0, so that every result that
 * depends on it is NaN. The largest magnitude is that of the bits without the sign, as
 * integers: the same order as the floats', with NaN above infinity. */
#define KQUANT_TINY 0x1p-100f

static inline uint32_t kabsmax(uint32_t top_bits, float x)
{
    uint32_t bits = kbits_of_float(x) & 0x7fffffffu;
    return bits > top_bits ? bits : top_bits;
}

/* Returns the block's scale; *inv is what x is multiplied with, 0: all q are 0. */
static inline float kquant_scale(uint32_t top_bits, float levels, float *inv)
{
    float amax = kfloat_of_bits(top_bits);
    *inv = 0;
    if (top_bits >= 0x7f800000u) return kfloat_of_bits(0x7fc00000u);
    if (amax < KQUANT_TINY) return 0;
    *inv = levels / amax;
    return amax / levels;
}

/* The same with a scale that its upper half is all of, so that 16 bits hold it: not smaller, and not by 1 % larger. */
static inline float kquant_scale_upper(uint32_t top_bits, float levels, float *inv)
{
    float scale = kquant_scale(top_bits, levels, inv);
    if (!(*inv > 0)) return scale;
    scale = kfloat_of_bits((kbits_of_float(scale) + 0xffffu) & 0xffff0000u);
    *inv = 1.0f / scale;
    return scale;
}

/* A vector's length, as kquant_scale takes it, from the sum of its squares. Where that is so small that squares have lost
 * digits, the vector counts as zero. */
static inline uint32_t klength_bits(float squares) { return kbits_of_float(squares < KQUANT_TINY ? 0 : sqrtf(squares)); }

#endif
