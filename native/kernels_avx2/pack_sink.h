/* Where unpack8.h delivers to when a tile is packed: template part, included before it. */
#include "avx2.h"
#include "simd.h"

struct sink {
    struct avx2_packed *dst;
    int half;     /* rows 0..7 or 8..15 of the tile */
    int sub;      /* elements of a sub-block */
    int j0;       /* sub-blocks before this block */
    bool keeps_sign;  /* of 8-bit weights, which are offset by 128 otherwise */
    __m256i negative; /* if so: the sums of the block's negative elements, in two 16-bit halves for each row */
};

INLINE void put(struct sink *s, int j, int g, __m256i w)
{
    int group = (s->j0 + j) * s->sub / 4 + g;
    _mm256_store_si256((__m256i *)s->dst->q[group][8 * s->half], w);
}

INLINE void put_signed(struct sink *s, int j, int g, __m256i w)
{
    if (!s->keeps_sign) {
        put(s, j, g, _mm256_xor_si256(w, _mm256_set1_epi8((char)128))); /* +128 */
        return;
    }
    put(s, j, g, w);
    __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_min_epi8(w, _mm256_setzero_si256()));
    s->negative = g == 0 ? pairs : _mm256_add_epi16(s->negative, pairs);
}

INLINE void scale(struct sink *s, int j, __m256 d, __m256 m)
{
    _mm256_store_ps(s->dst->d[s->j0 + j] + 8 * s->half, d);
    _mm256_store_ps(s->dst->m[s->j0 + j] + 8 * s->half, m);
    if (s->keeps_sign)
        _mm256_store_si256((__m256i *)s->dst->factor[s->j0 + j][8 * s->half], _mm256_madd_epi16(s->negative, _mm256_set1_epi16(-1)));
}

INLINE void scale16(struct sink *s, int i, __m256 d, const __m256i factor[2], const __m256 m[2])
{
    int at = s->j0 + 2 * i;
    _mm256_store_ps(s->dst->d[at / 2] + 8 * s->half, d);
#pragma GCC unroll 2
    for (int k = 0; k < 2; k++) {
        __m256i twice = _mm256_or_si256(_mm256_slli_epi32(factor[k], 16), _mm256_and_si256(factor[k], _mm256_set1_epi32(0xffff)));
        _mm256_store_si256((__m256i *)s->dst->factor[at + k][8 * s->half], twice);
        _mm256_store_ps(s->dst->m[at + k] + 8 * s->half, m[k]);
    }
}

/* avx2_pack_fn of a format. On its own, so that it has all registers for itself. */
#define DEFINE_PACK_AS(function, is_signed, name, elements, sub_elements, ...) \
    __attribute__((noinline)) void function(struct avx2_packed *dst, int half, const uint8_t *p, size_t stride, int n_blocks) \
    { \
        struct sink s = {.dst = dst, .half = half, .sub = sub_elements, .j0 = 0, .keeps_sign = is_signed}; \
        for (int b = 0; b < n_blocks; b++, p += sizeof(struct block_##name), s.j0 += elements / sub_elements) \
            unpack8_##name(&s, p, stride); \
    }
#define DEFINE_PACK(name, ...) static DEFINE_PACK_AS(pack_##name, false, name, __VA_ARGS__)
