/* Packing a slab of weight rows for the multiplication of many activation rows.
 *
 * The destination is the calling thread's scratch. Any thread. */
#include "avx2.h"
#include "simd.h"

/* Where unpack8.h delivers to. */
struct sink {
    struct avx2_packed *dst;
    int half;     /* rows 0..7 or 8..15 of the tile */
    int sub;      /* elements of a sub-block */
    int j0;       /* sub-blocks before this block */
};

INLINE void put(struct sink *s, int j, int g, __m256i w)
{
    int group = (s->j0 + j) * s->sub / 4 + g;
    _mm256_store_si256((__m256i *)s->dst->q[group][8 * s->half], w);
}

INLINE void put_signed(struct sink *s, int j, int g, __m256i w)
{
    put(s, j, g, _mm256_xor_si256(w, _mm256_set1_epi8((char)128))); /* +128 */
}

INLINE void scale(struct sink *s, int j, __m256 d, __m256 m)
{
    _mm256_store_ps(s->dst->d[s->j0 + j] + 8 * s->half, d);
    _mm256_store_ps(s->dst->m[s->j0 + j] + 8 * s->half, m);
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

#include "unpack8.h"

#define DEFINE_PACK(name, elements, sub_elements) \
    static void pack_##name(struct avx2_packed *dst, int half, const uint8_t *p, size_t stride, int n_blocks) \
    { \
        struct sink s = {.dst = dst, .half = half, .sub = sub_elements, .j0 = 0}; \
        for (int b = 0; b < n_blocks; b++, p += sizeof(struct block_##name), s.j0 += elements / sub_elements) \
            unpack8_##name(&s, p, stride); \
    }

DEFINE_PACK(q4_0, 32, 32)
DEFINE_PACK(q4_1, 32, 32)
DEFINE_PACK(q5_0, 32, 32)
DEFINE_PACK(q5_1, 32, 32)
DEFINE_PACK(q8_0, 32, 32)
DEFINE_PACK(q2_K, 256, 16)
DEFINE_PACK(q3_K, 256, 16)
DEFINE_PACK(q4_K, 256, 32)
DEFINE_PACK(q5_K, 256, 32)
DEFINE_PACK(q6_K, 256, 16)

#define FORMAT(name, elements, sub_elements, n_bits, offset, min) \
    {.block = elements, .sub = sub_elements, .bits = n_bits, .zero = offset, .has_min = min, \
     .block_bytes = sizeof(struct block_##name), .pack = pack_##name}

const struct avx2_format avx2_formats[TYPE_COUNT] = {
    [TYPE_Q4_0] = FORMAT(q4_0, 32, 32, 4, 8, false),   [TYPE_Q4_1] = FORMAT(q4_1, 32, 32, 4, 0, true),
    [TYPE_Q5_0] = FORMAT(q5_0, 32, 32, 5, 16, false),  [TYPE_Q5_1] = FORMAT(q5_1, 32, 32, 5, 0, true),
    [TYPE_Q8_0] = FORMAT(q8_0, 32, 32, 8, 128, false), [TYPE_Q2_K] = FORMAT(q2_K, 256, 16, 4, 0, true),
    [TYPE_Q3_K] = FORMAT(q3_K, 256, 16, 4, 4, false),  [TYPE_Q4_K] = FORMAT(q4_K, 256, 32, 4, 0, true),
    [TYPE_Q5_K] = FORMAT(q5_K, 256, 32, 5, 0, true),   [TYPE_Q6_K] = FORMAT(q6_K, 256, 16, 6, 32, false),
};
