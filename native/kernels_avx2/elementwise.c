/* Normalization, activation functions, rotation, argmax. Memory is the caller's; any thread.
 *
 * Ends of rows that do not fill a register are handled with masks, so that one
 * body serves all lengths. */
#include "avx2.h"
#include "simd.h"

/* What a lane16 sum adds up. */
enum summand { SUM_X, SUM_SQUARE };

/* lanes16 of x - mean, or of its square by fma. */
INLINE float sum_lanes(enum summand what, const float *x, int n, float mean)
{
    __m256 lane[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()}, center = _mm256_set1_ps(mean);
    int i = 0;
    for (; i + 16 <= n; i += 16) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            __m256 v = _mm256_sub_ps(_mm256_loadu_ps(x + i + 8 * h), center);
            lane[h] = what == SUM_X ? _mm256_add_ps(lane[h], v) : _mm256_fmadd_ps(v, v, lane[h]);
        }
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        __m256i mask = lanes_below(n - i - 8 * h);
        __m256 v = _mm256_sub_ps(_mm256_maskload_ps(x + i + 8 * h, mask), center);
        __m256 sum = what == SUM_X ? _mm256_add_ps(lane[h], v) : _mm256_fmadd_ps(v, v, lane[h]);
        lane[h] = _mm256_blendv_ps(lane[h], sum, _mm256_castsi256_ps(mask));
    }
    return fold16(lane[0], lane[1]);
}

void avx2_rmsnorm(float *y, const float *x, const float *w, int n, float eps)
{
    float r = 1 / sqrtf(sum_lanes(SUM_SQUARE, x, n, 0) / (float)n + eps);
    __m256 by = _mm256_set1_ps(r);
    int i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), by), _mm256_loadu_ps(w + i)));
    for (; i < n; i++) y[i] = (x[i] * r) * w[i];
}

void avx2_layernorm(float *y, const float *x, const float *w, const float *b, int n, float eps)
{
    float mean = sum_lanes(SUM_X, x, n, 0) / (float)n;
    float r = 1 / sqrtf(sum_lanes(SUM_SQUARE, x, n, mean) / (float)n + eps);
    __m256 center = _mm256_set1_ps(mean), by = _mm256_set1_ps(r);
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 v = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i), center), by);
        _mm256_storeu_ps(y + i, _mm256_fmadd_ps(v, _mm256_loadu_ps(w + i), _mm256_loadu_ps(b + i)));
    }
    for (; i < n; i++) y[i] = fmaf((x[i] - mean) * r, w[i], b[i]);
}

void avx2_add(float *y, const float *x, int n)
{
    int i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_add_ps(_mm256_loadu_ps(y + i), _mm256_loadu_ps(x + i)));
    for (; i < n; i++) y[i] += x[i];
}

INLINE __m256 silu8(__m256 g, __m256 u)
{
    __m256 e = exp8(_mm256_xor_ps(g, _mm256_set1_ps(-0.0f)));
    return _mm256_mul_ps(_mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1), e)), u);
}

void avx2_silu_mul(float *y, const float *gate, const float *up, int n)
{
    int i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, silu8(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i)));
    __m256i mask = lanes_below(n - i);
    if (i < n) _mm256_maskstore_ps(y + i, mask, silu8(_mm256_maskload_ps(gate + i, mask), _mm256_maskload_ps(up + i, mask)));
}

/* kgelu of kernels_math.h in each lane. */
INLINE __m256 gelu8(__m256 x)
{
    const float c[10] = {KGELU_C0, KGELU_C1, KGELU_C2, KGELU_C3, KGELU_C4,
                         KGELU_C5, KGELU_C6, KGELU_C7, KGELU_C8, KGELU_C9};
    __m256 one = _mm256_set1_ps(1);
    __m256 a = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
    __m256 t = _mm256_div_ps(one, _mm256_fmadd_ps(_mm256_set1_ps(0.25f), a, one));
    __m256 p = _mm256_set1_ps(c[9]);
#pragma GCC unroll 9
    for (int i = 8; i >= 0; i--) p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(c[i]));
    __m256 e = exp8(_mm256_fmadd_ps(_mm256_mul_ps(_mm256_set1_ps(-0.5f), a), a, p));
    __m256 tail = _mm256_mul_ps(t, e);
    __m256 negative = _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ);
    return _mm256_mul_ps(x, _mm256_blendv_ps(_mm256_sub_ps(one, tail), tail, negative));
}

void avx2_gelu(float *y, const float *x, int n)
{
    int i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, gelu8(_mm256_loadu_ps(x + i)));
    __m256i mask = lanes_below(n - i);
    if (i < n) _mm256_maskstore_ps(y + i, mask, gelu8(_mm256_maskload_ps(x + i, mask)));
}

void avx2_rope(float *x, const float *cos, const float *sin, int n_rot, bool neox)
{
    int half = n_rot / 2, i = 0;
    if (neox) {
        for (; i + 8 <= half; i += 8) {
            __m256 x0 = _mm256_loadu_ps(x + i), x1 = _mm256_loadu_ps(x + i + half);
            __m256 c = _mm256_loadu_ps(cos + i), s = _mm256_loadu_ps(sin + i);
            _mm256_storeu_ps(x + i, _mm256_sub_ps(_mm256_mul_ps(x0, c), _mm256_mul_ps(x1, s)));
            _mm256_storeu_ps(x + i + half, _mm256_add_ps(_mm256_mul_ps(x0, s), _mm256_mul_ps(x1, c)));
        }
    } else {
        const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
        for (; i + 4 <= half; i += 4) {
            __m256 v = _mm256_loadu_ps(x + 2 * i), swapped = _mm256_permute_ps(v, 0xb1);
            __m256 c = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(cos + i)), twice);
            __m256 s = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(sin + i)), twice);
            _mm256_storeu_ps(x + 2 * i, _mm256_addsub_ps(_mm256_mul_ps(v, c), _mm256_mul_ps(swapped, s)));
        }
    }
    for (; i < half; i++) {
        float *p0 = neox ? x + i : x + 2 * i, *p1 = neox ? x + i + half : x + 2 * i + 1;
        float x0 = *p0, x1 = *p1;
        *p0 = x0 * cos[i] - x1 * sin[i];
        *p1 = x0 * sin[i] + x1 * cos[i];
    }
}

int avx2_argmax(const float *x, int n)
{
    __m256 top8 = _mm256_set1_ps(-INFINITY);
    int i = 0;
    for (; i + 8 <= n; i += 8) top8 = _mm256_max_ps(_mm256_loadu_ps(x + i), top8); /* this order passes over NaN */
    __m128 top4 = _mm_max_ps(_mm256_castps256_ps128(top8), _mm256_extractf128_ps(top8, 1));
    top4 = _mm_max_ps(top4, _mm_movehl_ps(top4, top4));
    float top = _mm_cvtss_f32(_mm_max_ss(top4, _mm_movehdup_ps(top4)));
    for (; i < n; i++) top = kmax(top, x[i]);
    __m256 all = _mm256_set1_ps(top);
    for (i = 0; i + 8 <= n; i += 8) {
        int equal = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + i), all, _CMP_EQ_OQ));
        if (equal) return i + __builtin_ctz((unsigned)equal);
    }
    for (; i < n; i++)
        if (x[i] == top) return i;
    return 0; /* NaN everywhere */
}
