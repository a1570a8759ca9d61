/* AVX-512, AMX and AVX-VNNI, emulated: what the kernels of native/kernels_avx512 and kernels_avx2 use of them, one lane at a
 * time, for tests on processors that have none of them. Found instead of the compiler's header where REDIS_INFER_EMULATE is on.
 *
 * Each function is the intrinsic of its name in Intel's Intrinsics Guide, bit for bit, but for these: what is undefined there is
 * nonsense here (casts to wider registers), what would end the process ends it (a tile instruction whose tiles do not fit), and
 * memory is touched where its mask says, so that a mistake in a mask is found. Needs AVX2, FMA and F16C.
 *
 * Tiles are a thread's own, as in the processor; everything else is pure. */
#ifndef INFER_EMULATED_IMMINTRIN_H
#define INFER_EMULATED_IMMINTRIN_H

/* What processors with AVX2 have: the compiler's own, by the files that its <immintrin.h> consists of. */
#define _IMMINTRIN_H_INCLUDED /* gcc */
#define __IMMINTRIN_H         /* clang */
#include <nmmintrin.h>
#include <avxintrin.h>
#include <avx2intrin.h>
#include <f16cintrin.h>
#include <fmaintrin.h>

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef float __m512 __attribute__((vector_size(64), may_alias));
typedef long long __m512i __attribute__((vector_size(64), may_alias));
typedef uint8_t __mmask8;
typedef uint16_t __mmask16;
typedef enum { _MM_PERM_BADC = 0x4e, _MM_PERM_CDAB = 0xb1 } _MM_PERM_ENUM;

/* A register as its lanes. */
typedef union {
    __m512 v;
    __m512i i;
    __m256 half[2];
    __m256i half_i[2];
    __m128 quarter[4];
    float f[16];
    int32_t d[16];
    uint32_t u[16];
    uint64_t q[8];
    int16_t w[32];
    uint8_t b[64];
} emulated;

/* Inlined only where that is optimized: otherwise it makes kernels larger, and their compilation minutes long. */
#ifdef __OPTIMIZE__
#define EMULATED static inline __attribute__((unused))
#else
#define EMULATED static __attribute__((noinline, unused))
#endif
#define LANES(n) for (int l = 0; l < (n); l++)
#define IN(mask) ((mask) >> l & 1)

/* All lanes from one expression of l, by member of the union. */
#define FUNCTION(type, name, parameters, out, member, n, expression) \
    EMULATED type name parameters                                    \
    {                                                                \
        emulated r;                                                  \
        LANES(n) r.member[l] = expression;                           \
        return r.out;                                                \
    }
#define F(x) (((emulated){.v = (x)}).f[l])
#define D(x) (((emulated){.i = (x)}).d[l])
#define U(x) (((emulated){.i = (x)}).u[l])
#define FLOATS(name, parameters, expression) FUNCTION(__m512, name, parameters, v, f, 16, expression)
#define DWORDS(name, parameters, expression) FUNCTION(__m512i, name, parameters, i, u, 16, expression)

/* ---- constants ---- */

FLOATS(_mm512_set1_ps, (float x), x)
DWORDS(_mm512_set1_epi32, (int x), (uint32_t)x)
FUNCTION(__m512i, _mm512_set1_epi8, (char x), i, b, 64, (uint8_t)x)
FUNCTION(__m512i, _mm512_set1_epi16, (short x), i, w, 32, x)
FUNCTION(__m512i, _mm512_set1_epi64, (long long x), i, q, 8, (uint64_t)x)
EMULATED __m512 _mm512_setzero_ps(void) { return (__m512){0}; }
EMULATED __m512i _mm512_setzero_si512(void) { return (__m512i){0}; }
#define _mm512_setr_epi32(...) (((emulated){.d = {__VA_ARGS__}}).i)
#define _mm512_setr_epi64(...) ((__m512i){__VA_ARGS__})
EMULATED __m512i emulated_reversed(emulated x)
{
    emulated r;
    LANES(32) r.w[l] = x.w[31 - l];
    return r.i;
}
#define _mm512_set_epi16(...) emulated_reversed((emulated){.w = {__VA_ARGS__}})

/* ---- memory ---- */

#define LOADER(type, name) \
    EMULATED type name(const void *p) { type v; memcpy(&v, p, sizeof v); return v; }
#define STORER(type, name) \
    EMULATED void name(void *p, type v) { memcpy(p, &v, sizeof v); }
/* Aligned ones. */
#define CHECK_ALIGNED(p) \
    if ((uintptr_t)(p) % 64) fputs("not aligned to 64 bytes\n", stderr), abort()
LOADER(__m512, _mm512_loadu_ps)
EMULATED __m512 _mm512_load_ps(const void *p) { CHECK_ALIGNED(p); return _mm512_loadu_ps(p); }
STORER(__m512, _mm512_storeu_ps)
STORER(__m512i, _mm512_storeu_si512)
EMULATED void _mm512_store_ps(void *p, __m512 v) { CHECK_ALIGNED(p); _mm512_storeu_ps(p, v); }
EMULATED void _mm512_store_si512(void *p, __m512i v) { CHECK_ALIGNED(p); _mm512_storeu_si512(p, v); }
#define MASKED_LOAD(type, name, n, bytes)                                                                    \
    EMULATED type name(uint16_t some, const void *p)                                                         \
    {                                                                                                        \
        type r = {0};                                                                                        \
        LANES(n) if (IN(some)) memcpy((char *)&r + l * (bytes), (const char *)p + l * (bytes), (bytes));     \
        return r;                                                                                            \
    }
#define MASKED_STORE(type, name, n, bytes)                                                                          \
    EMULATED void name(void *p, uint16_t some, type v)                                                              \
    {                                                                                                               \
        LANES(n) if (IN(some)) memcpy((char *)p + l * (bytes), (const char *)&v + l * (bytes), (bytes));            \
    }
MASKED_LOAD(__m512, _mm512_maskz_loadu_ps, 16, 4)
MASKED_LOAD(__m512i, _mm512_maskz_loadu_epi32, 16, 4)
MASKED_LOAD(__m256i, _mm256_maskz_loadu_epi16, 16, 2)
MASKED_STORE(__m512, _mm512_mask_storeu_ps, 16, 4)
MASKED_STORE(__m512i, _mm512_mask_storeu_epi32, 16, 4)
MASKED_STORE(__m256i, _mm256_mask_storeu_epi16, 16, 2)
MASKED_STORE(__m256i, _mm256_mask_storeu_epi32, 8, 4)
MASKED_STORE(__m256, _mm256_mask_storeu_ps, 8, 4)
MASKED_STORE(__m128, _mm_mask_storeu_ps, 4, 4)
EMULATED void _mm512_i32scatter_ps(void *p, __m512i index, __m512 v, int scale)
{
    LANES(16) memcpy((char *)p + (ptrdiff_t)D(index) * scale, &((emulated){.v = v}).f[l], sizeof(float));
}

/* ---- floats: as the lanes' own halves do ---- */

#define HALVES(name, half_name, parameters, ...)             \
    EMULATED __m512 name parameters                          \
    {                                                        \
        emulated r;                                          \
        for (int h = 0; h < 2; h++) r.half[h] = half_name(__VA_ARGS__); \
        return r.v;                                          \
    }
#define H(x) (((emulated){.v = (x)}).half[h])
#define HI(x) (((emulated){.i = (x)}).half_i[h])
EMULATED __m512 _mm512_add_ps(__m512 a, __m512 b) { return a + b; }
EMULATED __m512 _mm512_sub_ps(__m512 a, __m512 b) { return a - b; }
EMULATED __m512 _mm512_mul_ps(__m512 a, __m512 b) { return a * b; }
EMULATED __m512 _mm512_div_ps(__m512 a, __m512 b) { return a / b; }
HALVES(_mm512_min_ps, _mm256_min_ps, (__m512 a, __m512 b), H(a), H(b))
HALVES(_mm512_max_ps, _mm256_max_ps, (__m512 a, __m512 b), H(a), H(b))
HALVES(_mm512_fmadd_ps, _mm256_fmadd_ps, (__m512 a, __m512 b, __m512 c), H(a), H(b), H(c))
HALVES(_mm512_cvtepi32_ps, _mm256_cvtepi32_ps, (__m512i a), HI(a))
FLOATS(_mm512_abs_ps, (__m512 a), fabsf(F(a)))
FLOATS(emulated_blend, (__mmask16 k, __m512 a, __m512 b), IN(k) ? F(b) : F(a))
EMULATED __m512 _mm512_mask_blend_ps(__mmask16 k, __m512 a, __m512 b) { return emulated_blend(k, a, b); }
EMULATED __m512 _mm512_mask_mov_ps(__m512 a, __mmask16 k, __m512 b) { return emulated_blend(k, a, b); }
EMULATED __m512 _mm512_maskz_mov_ps(__mmask16 k, __m512 a) { return emulated_blend(k, _mm512_setzero_ps(), a); }
EMULATED __m512 _mm512_mask_add_ps(__m512 old, __mmask16 k, __m512 a, __m512 b) { return emulated_blend(k, old, a + b); }
EMULATED __m512 _mm512_mask_max_ps(__m512 old, __mmask16 k, __m512 a, __m512 b)
{
    return emulated_blend(k, old, _mm512_max_ps(a, b));
}
EMULATED __m512 _mm512_mask3_fmadd_ps(__m512 a, __m512 b, __m512 c, __mmask16 k)
{
    return emulated_blend(k, c, _mm512_fmadd_ps(a, b, c));
}
EMULATED __m512 _mm512_roundscale_ps(__m512 a, int how)
{
    if (how != (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)) abort(); /* the only one in use */
    emulated r;
    for (int h = 0; h < 2; h++) r.half[h] = _mm256_round_ps(H(a), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return r.v;
}
/* a * 2^floor(b), rounded once. */
FLOATS(_mm512_maskz_scalef_ps, (__mmask16 k, __m512 a, __m512 b),
       !IN(k) ? 0 : isnan(F(b)) ? F(a) + F(b) : ldexpf(F(a), (int)fminf(fmaxf(floorf(F(b)), -1000), 1000)))
EMULATED int emulated_compare(float a, float b, int how)
{
    switch (how) {
    case _CMP_LT_OQ: return a < b;
    case _CMP_NLT_UQ: return !(a < b);
    case _CMP_NLE_UQ: return !(a <= b);
    case _CMP_ORD_Q: return !isnan(a) && !isnan(b);
    default: abort(); /* not in use */
    }
}
EMULATED __mmask16 _mm512_mask_cmp_ps_mask(__mmask16 k, __m512 a, __m512 b, int how)
{
    unsigned r = 0;
    LANES(16) r |= (unsigned)(IN(k) && emulated_compare(F(a), F(b), how)) << l;
    return (__mmask16)r;
}
EMULATED __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int how) { return _mm512_mask_cmp_ps_mask(0xffff, a, b, how); }
EMULATED __mmask8 _mm_mask_cmp_ps_mask(__mmask8 k, __m128 a, __m128 b, int how)
{
    unsigned r = 0;
    LANES(4) r |= (unsigned)(IN(k) && emulated_compare(a[l], b[l], how)) << l;
    return (__mmask8)r;
}
EMULATED __m128 _mm_mask_mov_ps(__m128 a, __mmask8 k, __m128 b)
{
    LANES(4) a[l] = IN(k) ? b[l] : a[l];
    return a;
}
EMULATED __m128 _mm_maskz_div_ps(__mmask8 k, __m128 a, __m128 b) { return _mm_mask_mov_ps(_mm_setzero_ps(), k, a / b); }

/* ---- conversions ---- */

EMULATED __m512 _mm512_cvtph_ps(__m256i a)
{
    return ((emulated){.half = {_mm256_cvtph_ps(_mm256_castsi256_si128(a)), _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1))}}).v;
}
EMULATED __m512i _mm512_maskz_cvtps_epi32(__mmask16 k, __m512 a)
{
    emulated r;
    for (int h = 0; h < 2; h++) r.half_i[h] = _mm256_cvtps_epi32(H(a));
    LANES(16) r.d[l] = IN(k) ? r.d[l] : 0;
    return r.i;
}
DWORDS(_mm512_cvtepu16_epi32, (__m256i a), (((emulated){.half_i = {a}}).w[l] & 0xffff))
#define NONSENSE _mm256_set1_epi8(0x5a)
EMULATED __m512i _mm512_castsi256_si512(__m256i a) { return ((emulated){.half_i = {a, NONSENSE}}).i; }
EMULATED __m512i _mm512_castsi128_si512(__m128i a)
{
    return _mm512_castsi256_si512(_mm256_inserti128_si256(NONSENSE, a, 0));
}
EMULATED __m256i _mm512_castsi512_si256(__m512i a) { return ((emulated){.i = a}).half_i[0]; }
EMULATED __m128i _mm512_castsi512_si128(__m512i a) { return _mm256_castsi256_si128(_mm512_castsi512_si256(a)); }
EMULATED __m256 _mm512_castps512_ps256(__m512 a) { return ((emulated){.v = a}).half[0]; }
EMULATED __m128 _mm512_castps512_ps128(__m512 a) { return ((emulated){.v = a}).quarter[0]; }
EMULATED __m512 _mm512_castsi512_ps(__m512i a) { return (__m512)a; }
EMULATED __m512i _mm512_castps_si512(__m512 a) { return (__m512i)a; }

/* ---- integers ---- */

EMULATED __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
EMULATED __m512i _mm512_xor_si512(__m512i a, __m512i b) { return a ^ b; }
EMULATED __m512 _mm512_xor_ps(__m512 a, __m512 b) { return (__m512)((__m512i)a ^ (__m512i)b); }
EMULATED __m512i _mm512_ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int table)
{
    __m512i r = {0};
    for (int bits = 0; bits < 8; bits++)
        if (table >> bits & 1) r |= (bits & 4 ? a : ~a) & (bits & 2 ? b : ~b) & (bits & 1 ? c : ~c);
    return r;
}
#define INTEGERS(name, half_name)                                                        \
    EMULATED __m512i name(__m512i a, __m512i b)                                          \
    {                                                                                    \
        emulated r;                                                                      \
        for (int h = 0; h < 2; h++) r.half_i[h] = half_name(HI(a), HI(b));               \
        return r.i;                                                                      \
    }
INTEGERS(_mm512_add_epi8, _mm256_add_epi8)
INTEGERS(_mm512_add_epi16, _mm256_add_epi16)
INTEGERS(_mm512_add_epi32, _mm256_add_epi32)
INTEGERS(_mm512_add_epi64, _mm256_add_epi64)
INTEGERS(_mm512_sub_epi8, _mm256_sub_epi8)
INTEGERS(_mm512_mullo_epi32, _mm256_mullo_epi32)
INTEGERS(_mm512_max_epu32, _mm256_max_epu32)
INTEGERS(_mm512_packs_epi32, _mm256_packs_epi32) /* within each 128 bits: halves do the same */
INTEGERS(_mm512_packs_epi16, _mm256_packs_epi16)
INTEGERS(_mm512_unpacklo_epi32, _mm256_unpacklo_epi32)
INTEGERS(_mm512_unpackhi_epi32, _mm256_unpackhi_epi32)
INTEGERS(_mm512_unpacklo_epi64, _mm256_unpacklo_epi64)
INTEGERS(_mm512_unpackhi_epi64, _mm256_unpackhi_epi64)
DWORDS(_mm512_srli_epi32, (__m512i a, unsigned n), n > 31 ? 0 : U(a) >> n)
DWORDS(_mm512_slli_epi32, (__m512i a, unsigned n), n > 31 ? 0 : U(a) << n)
DWORDS(_mm512_shrdi_epi32, (__m512i a, __m512i b, int n), (uint32_t)(((uint64_t)U(b) << 32 | U(a)) >> (n & 31)))
DWORDS(emulated_blend_epi32, (__mmask16 k, __m512i a, __m512i b), IN(k) ? U(b) : U(a))
EMULATED __m512i _mm512_mask_blend_epi32(__mmask16 k, __m512i a, __m512i b) { return emulated_blend_epi32(k, a, b); }
EMULATED __m512i _mm512_mask_mov_epi32(__m512i a, __mmask16 k, __m512i b) { return emulated_blend_epi32(k, a, b); }
EMULATED __mmask8 _mm_cmplt_epu32_mask(__m128i a, __m128i b)
{
    uint32_t x[4], y[4];
    unsigned r = 0;
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    LANES(4) r |= (unsigned)(x[l] < y[l]) << l;
    return (__mmask8)r;
}
EMULATED __mmask16 _mm512_cmplt_epu32_mask(__m512i a, __m512i b)
{
    unsigned r = 0;
    LANES(16) r |= (unsigned)(U(a) < U(b)) << l;
    return (__mmask16)r;
}
/* sum + the products of four unsigned bytes of a and four signed ones of b: even bytes, then odd ones, by products of words. */
EMULATED __m256i _mm256_dpbusd_avx_epi32(__m256i sum, __m256i a, __m256i b)
{
    __m256i even = _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(0xff)), _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
    __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}
EMULATED __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b)
{
    emulated r;
    for (int h = 0; h < 2; h++) r.half_i[h] = _mm256_dpbusd_avx_epi32(HI(sum), HI(a), HI(b));
    return r.i;
}
EMULATED __m512i _mm512_dpwssd_epi32(__m512i sum, __m512i a, __m512i b)
{
    emulated r;
    for (int h = 0; h < 2; h++) r.half_i[h] = _mm256_add_epi32(HI(sum), _mm256_madd_epi16(HI(a), HI(b)));
    return r.i;
}
EMULATED __m256i _mm512_cvtepi32_epi16(__m512i a)
{
    int16_t r[16];
    __m256i v;
    LANES(16) r[l] = (int16_t)D(a);
    memcpy(&v, r, sizeof v);
    return v;
}
EMULATED uint64_t emulated_rotated(uint64_t v, unsigned n) { return n % 64 ? v >> n % 64 | v << (64 - n % 64) : v; }
/* Byte l: eight bits of its qword of b, from bit a[l] on, around its end. */
FUNCTION(__m512i, _mm512_multishift_epi64_epi8, (__m512i a, __m512i b), i, b, 64,
         (uint8_t)emulated_rotated(((emulated){.i = b}).q[l / 8], ((emulated){.i = a}).b[l]))

/* ---- lanes moved ---- */

#define QUARTER(x, n) (((emulated){.v = (x)}).quarter[n])
EMULATED __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int how)
{
    return ((emulated){.quarter = {QUARTER(a, how & 3), QUARTER(a, how >> 2 & 3), QUARTER(b, how >> 4 & 3),
                                   QUARTER(b, how >> 6 & 3)}}).v;
}
EMULATED __m512i _mm512_shuffle_i64x2(__m512i a, __m512i b, int how)
{
    return (__m512i)_mm512_shuffle_f32x4((__m512)a, (__m512)b, how);
}
/* Within each quarter: two of a, then two of b. */
FLOATS(_mm512_shuffle_ps, (__m512 a, __m512 b, int how),
       ((emulated){.v = l % 4 < 2 ? a : b}).f[l / 4 * 4 + (how >> l % 4 * 2 & 3)])
EMULATED __m512 _mm512_permute_ps(__m512 a, int how) { return _mm512_shuffle_ps(a, a, how); }
EMULATED __m512i _mm512_shuffle_epi32(__m512i a, int how)
{
    return (__m512i)_mm512_shuffle_ps((__m512)a, (__m512)a, how);
}
DWORDS(_mm512_permutexvar_epi32, (__m512i index, __m512i a), ((emulated){.i = a}).u[U(index) % 16])
FUNCTION(__m512i, _mm512_permutexvar_epi16, (__m512i index, __m512i a), i, w, 32,
         ((emulated){.i = a}).w[((emulated){.i = index}).w[l] & 31])
EMULATED __m512 _mm512_permutexvar_ps(__m512i index, __m512 a)
{
    return (__m512)_mm512_permutexvar_epi32(index, (__m512i)a);
}
DWORDS(_mm512_permutex2var_epi32, (__m512i a, __m512i index, __m512i b),
       ((emulated){.i = U(index) & 16 ? b : a}).u[U(index) % 16])
FUNCTION(__m512i, _mm512_permutex2var_epi64, (__m512i a, __m512i index, __m512i b), i, q, 8,
         ((emulated){.i = ((emulated){.i = index}).q[l] & 8 ? b : a}).q[((emulated){.i = index}).q[l] % 8])
EMULATED __m512 _mm512_permutex2var_ps(__m512 a, __m512i index, __m512 b)
{
    return (__m512)_mm512_permutex2var_epi32((__m512i)a, index, (__m512i)b);
}
EMULATED __m512i _mm512_inserti32x4(__m512i a, __m128i b, int at)
{
    emulated r = {.i = a};
    r.quarter[at] = _mm_castsi128_ps(b);
    return r.i;
}
EMULATED __m512i _mm512_inserti64x4(__m512i a, __m256i b, int at)
{
    emulated r = {.i = a};
    r.half_i[at] = b;
    return r.i;
}
EMULATED __m128 _mm512_extractf32x4_ps(__m512 a, int at) { return QUARTER(a, at); }
EMULATED __m256 _mm512_extractf32x8_ps(__m512 a, int at) { return ((emulated){.v = a}).half[at]; }
EMULATED __m512 _mm512_broadcast_f32x4(__m128 a) { return ((emulated){.quarter = {a, a, a, a}}).v; }

/* ---- AMX ---- */

/* The thread's tiles: rows of 64 bytes, of which the configuration says how many, and bytes of each, there are. */
static _Thread_local struct {
    uint8_t palette;
    uint8_t rows[8];
    uint16_t row_bytes[8];
    int8_t data[8][16][64];
} emulated_tiles __attribute__((unused));

EMULATED void emulated_tile_check(int ok, const char *what)
{
    if (ok && emulated_tiles.palette == 1) return;
    fprintf(stderr, "%s: %s\n", what, emulated_tiles.palette == 1 ? "tiles that do not fit" : "no configuration");
    abort();
}
EMULATED void _tile_loadconfig(const void *config)
{
    const uint8_t *c = config;
    emulated_tiles.palette = c[0];
    for (int t = 0; t < 8; t++) {
        memcpy(&emulated_tiles.row_bytes[t], c + 16 + 2 * t, 2);
        emulated_tiles.rows[t] = c[48 + t];
        emulated_tile_check(emulated_tiles.rows[t] <= 16 && emulated_tiles.row_bytes[t] <= 64, "ldtilecfg");
    }
    memset(emulated_tiles.data, 0, sizeof emulated_tiles.data);
}
EMULATED void _tile_release(void) { emulated_tiles.palette = 0; }
EMULATED void _tile_zero(int t)
{
    emulated_tile_check(1, "tilezero");
    memset(emulated_tiles.data[t], 0, sizeof emulated_tiles.data[t]);
}
EMULATED void emulated_tile_load(int t, const void *base, ptrdiff_t stride)
{
    _tile_zero(t);
    LANES(emulated_tiles.rows[t]) memcpy(emulated_tiles.data[t][l], (const char *)base + l * stride, emulated_tiles.row_bytes[t]);
}
EMULATED void emulated_tile_store(int t, void *base, ptrdiff_t stride)
{
    emulated_tile_check(1, "tilestored");
    LANES(emulated_tiles.rows[t]) memcpy((char *)base + l * stride, emulated_tiles.data[t][l], emulated_tiles.row_bytes[t]);
}
/* c += a * b, of signed bytes of a, and of signed or unsigned ones of b, whose rows hold four of each column. */
EMULATED void emulated_tile_products(int c, int a, int b, int b_unsigned)
{
    int m = emulated_tiles.rows[c], n = emulated_tiles.row_bytes[c] / 4, k = emulated_tiles.rows[b];
    emulated_tile_check(m == emulated_tiles.rows[a] && k == emulated_tiles.row_bytes[a] / 4 &&
                            emulated_tiles.row_bytes[c] == emulated_tiles.row_bytes[b], "tdpb");
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            int32_t sum;
            memcpy(&sum, &emulated_tiles.data[c][i][4 * j], sizeof sum);
            for (int l = 0; l < 4 * k; l++) {
                int8_t of_b = emulated_tiles.data[b][l / 4][4 * j + l % 4];
                sum += emulated_tiles.data[a][i][l] * (b_unsigned ? (int)(uint8_t)of_b : of_b);
            }
            memcpy(&emulated_tiles.data[c][i][4 * j], &sum, sizeof sum);
        }
}
EMULATED void _tile_dpbssd(int c, int a, int b) { emulated_tile_products(c, a, b, 0); }
EMULATED void _tile_dpbsud(int c, int a, int b) { emulated_tile_products(c, a, b, 1); }
/* For what multiply_amx.c writes in assembly. */
#define INFER_TILE_LOAD(tile, base, at) emulated_tile_load(tile, (const char *)(base) + (at), 64)
#define INFER_TILE_STORE(tile, base, at) emulated_tile_store(tile, (char *)(base) + (at), 64)

#endif
