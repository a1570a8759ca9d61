/* Operations that take one element, or one pair, at a time; and argmax.
 * Memory is the caller's; any thread. */
#include "avx512.h"
#include "vector.h"

void avx512_add(float *y, const float *x, int n)
{
    for (int i = 0; i < n; i += 16) {
        __mmask16 some = lanes_left(n - i);
        __m512 v = _mm512_add_ps(_mm512_maskz_loadu_ps(some, y + i), _mm512_maskz_loadu_ps(some, x + i));
        _mm512_mask_storeu_ps(y + i, some, v);
    }
}

void avx512_silu_mul(float *y, const float *gate, const float *up, int n)
{
    const __m512 sign = _mm512_set1_ps(-0.0f), one = _mm512_set1_ps(1);
    for (int i = 0; i < n; i += 16) {
        __mmask16 some = lanes_left(n - i);
        __m512 g = _mm512_maskz_loadu_ps(some, gate + i);
        __m512 v = _mm512_div_ps(g, _mm512_add_ps(one, kexp16(_mm512_xor_ps(g, sign))));
        _mm512_mask_storeu_ps(y + i, some, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(some, up + i)));
    }
}

void avx512_gelu(float *y, const float *x, int n)
{
    static const float c[] = {KGELU_C8, KGELU_C7, KGELU_C6, KGELU_C5, KGELU_C4,
                              KGELU_C3, KGELU_C2, KGELU_C1, KGELU_C0};
    const __m512 one = _mm512_set1_ps(1);
    for (int i = 0; i < n; i += 16) {
        __mmask16 some = lanes_left(n - i);
        __m512 v = _mm512_maskz_loadu_ps(some, x + i);
        __m512 a = _mm512_abs_ps(v);
        __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(_mm512_set1_ps(0.25f), a, one));
        __m512 p = _mm512_set1_ps(KGELU_C9);
        for (size_t j = 0; j < sizeof c / sizeof *c; j++) p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(c[j]));
        __m512 e = kexp16(_mm512_fmadd_ps(_mm512_mul_ps(_mm512_set1_ps(-0.5f), a), a, p));
        __m512 tail = _mm512_mul_ps(t, e);
        __mmask16 negative = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ);
        __m512 phi = _mm512_mask_mov_ps(_mm512_sub_ps(one, tail), negative, tail);
        _mm512_mask_storeu_ps(y + i, some, _mm512_mul_ps(v, phi));
    }
}

/* (x0, x1) turned by the angle whose cosine and sine are c and s. */
INLINE void rotate(__m512 *x0, __m512 *x1, __m512 c, __m512 s)
{
    __m512 a = *x0, b = *x1;
    *x0 = _mm512_sub_ps(_mm512_mul_ps(a, c), _mm512_mul_ps(b, s));
    *x1 = _mm512_add_ps(_mm512_mul_ps(a, s), _mm512_mul_ps(b, c));
}

static void rope_halves(float *x, const float *cos, const float *sin, int half)
{
    for (int i = 0; i < half; i += 16) {
        __mmask16 some = lanes_left(half - i);
        __m512 x0 = _mm512_maskz_loadu_ps(some, x + i), x1 = _mm512_maskz_loadu_ps(some, x + half + i);
        rotate(&x0, &x1, _mm512_maskz_loadu_ps(some, cos + i), _mm512_maskz_loadu_ps(some, sin + i));
        _mm512_mask_storeu_ps(x + i, some, x0);
        _mm512_mask_storeu_ps(x + half + i, some, x1);
    }
}

static void rope_neighbours(float *x, const float *cos, const float *sin, int half)
{
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    for (int i = 0; i < half; i += 16) {
        __mmask16 some = lanes_left(half - i);
        __mmask16 m0 = lanes_left(2 * (half - i)), m1 = half - i > 8 ? lanes_left(2 * (half - i) - 16) : 0;
        __m512 a = _mm512_maskz_loadu_ps(m0, x + 2 * i), b = _mm512_maskz_loadu_ps(m1, x + 2 * i + 16);
        __m512 x0 = _mm512_permutex2var_ps(a, even, b), x1 = _mm512_permutex2var_ps(a, odd, b);
        rotate(&x0, &x1, _mm512_maskz_loadu_ps(some, cos + i), _mm512_maskz_loadu_ps(some, sin + i));
        _mm512_mask_storeu_ps(x + 2 * i, m0, _mm512_permutex2var_ps(x0, low, x1));
        _mm512_mask_storeu_ps(x + 2 * i + 16, m1, _mm512_permutex2var_ps(x0, high, x1));
    }
}

void avx512_rope(float *x, const float *cos, const float *sin, int n_rot, bool neox)
{
    if (neox)
        rope_halves(x, cos, sin, n_rot / 2);
    else
        rope_neighbours(x, cos, sin, n_rot / 2);
}

/* Each lane keeps its own best and where it was; a lane that saw only NaN keeps NaN. */
int avx512_argmax(const float *x, int n)
{
    __m512 best = _mm512_set1_ps(NAN);
    __m512i best_at = _mm512_setzero_si512();
    __m512i at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int i = 0; i < n; i += 16) {
        __mmask16 some = lanes_left(n - i);
        __m512 v = _mm512_maskz_loadu_ps(some, x + i);
        __mmask16 number = _mm512_mask_cmp_ps_mask(some, v, v, _CMP_ORD_Q);
        __mmask16 better = _mm512_mask_cmp_ps_mask(number, v, best, _CMP_NLE_UQ);
        best = _mm512_mask_mov_ps(best, better, v);
        best_at = _mm512_mask_mov_epi32(best_at, better, at);
        at = _mm512_add_epi32(at, _mm512_set1_epi32(16));
    }
    float value[16];
    int32_t where[16];
    _mm512_storeu_ps(value, best);
    _mm512_storeu_si512(where, best_at);
    int lane = -1;
    for (int i = 0; i < 16; i++) {
        if (value[i] != value[i]) continue;
        if (lane < 0 || value[i] > value[lane] || (value[i] == value[lane] && where[i] < where[lane])) lane = i;
    }
    return lane < 0 ? 0 : where[lane];
}
