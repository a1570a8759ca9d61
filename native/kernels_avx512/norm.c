/* RMS and layer normalization. Memory is the caller's; any thread. */
#include "avx512.h"
#include "vector.h"

void avx512_rmsnorm(float *y, const float *x, const float *w, int n, float eps)
{
    __m512 s = _mm512_setzero_ps();
    for (int i = 0; i < n; i += 16) {
        __mmask16 some = lanes_left(n - i);
        __m512 v = _mm512_maskz_loadu_ps(some, x + i);
        s = _mm512_mask3_fmadd_ps(v, v, s, some);
    }
    __m512 r = _mm512_set1_ps(1 / sqrtf(fold16(s) / (float)n + eps));
    for (int i = 0; i < n; i += 16) {
        __mmask16 some = lanes_left(n - i);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, x + i), r);
        _mm512_mask_storeu_ps(y + i, some, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(some, w + i)));
    }
}

void avx512_layernorm(float *y, const float *x, const float *w, const float *b, int n, float eps)
{
    __m512 s = _mm512_setzero_ps();
    for (int i = 0; i < n; i += 16) {
        __mmask16 some = lanes_left(n - i);
        s = _mm512_mask_add_ps(s, some, s, _mm512_maskz_loadu_ps(some, x + i));
    }
    __m512 mean = _mm512_set1_ps(fold16(s) / (float)n);
    s = _mm512_setzero_ps();
    for (int i = 0; i < n; i += 16) {
        __mmask16 some = lanes_left(n - i);
        __m512 v = _mm512_sub_ps(_mm512_maskz_loadu_ps(some, x + i), mean);
        s = _mm512_mask3_fmadd_ps(v, v, s, some);
    }
    __m512 r = _mm512_set1_ps(1 / sqrtf(fold16(s) / (float)n + eps));
    for (int i = 0; i < n; i += 16) {
        __mmask16 some = lanes_left(n - i);
        __m512 v = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(some, x + i), mean), r);
        v = _mm512_fmadd_ps(v, _mm512_maskz_loadu_ps(some, w + i), _mm512_maskz_loadu_ps(some, b + i));
        _mm512_mask_storeu_ps(y + i, some, v);
    }
}
