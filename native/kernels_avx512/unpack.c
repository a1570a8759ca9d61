/* A slab of 16 weight rows unpacked into a tile, for batches: with unsigned bytes for VPDPBUSD, or less the
 * format's zero for AMX, which multiplies signed bytes too. Memory is the caller's; any thread. */
#include "formats.h"
#include "tile.h"

INLINE void store_sub_block(struct tile *out, int s, const __m512i *w, __m512 d, __m512 factor, __m512 m, const int sub,
                            const int zero, const bool has_min)
{
#pragma GCC unroll 8
    for (int k = 0; k < sub / 4; k++) out->w[s * (sub / 4) + k] = zero ? _mm512_sub_epi8(w[k], _mm512_set1_epi8((char)zero)) : w[k];
    if (sub == 16) out->factor[s] = factor;
    if (s * sub % ACT_BLOCK == 0) out->d[s * sub / ACT_BLOCK] = d;
    if (has_min) out->m[s] = m;
}

#define DEFINE(name, NAME, block, sub, zero, has_min)                                         \
    INLINE void store_##name(void *ctx, int s, const __m512i *w, __m512 d, __m512 f, __m512 m) \
    {                                                                                         \
        store_sub_block(ctx, s, w, d, f, m, sub, 0, has_min);                                 \
    }                                                                                         \
    INLINE void store_signed_##name(void *ctx, int s, const __m512i *w, __m512 d, __m512 f, __m512 m) \
    {                                                                                         \
        store_sub_block(ctx, s, w, d, f, m, sub, zero, has_min);                              \
    }                                                                                         \
    static void unpack_##name(struct tile *out, const struct rows *r, int n_blocks)           \
    {                                                                                         \
        struct rows rows = *r;                                                                \
        rows.runs = false; /* for the compiler */                                             \
        walk_##name(&rows, n_blocks, store_##name, out);                                      \
    }                                                                                         \
    static void unpack_signed_##name(struct tile *out, const struct rows *r, int n_blocks)    \
    {                                                                                         \
        struct rows rows = *r;                                                                \
        rows.runs = false;                                                                    \
        walk_##name(&rows, n_blocks, store_signed_##name, out);                               \
    }
FOR_EACH_FORMAT(DEFINE)

#define LINE(name, NAME, block, sub, zero, has_min) [TYPE_##NAME] = unpack_##name,
unpack_fn *const avx512_unpack[TYPE_COUNT] = {FOR_EACH_FORMAT(LINE)};
#define LINE_SIGNED(name, NAME, block, sub, zero, has_min) [TYPE_##NAME] = unpack_signed_##name,
unpack_fn *const avx512_unpack_signed[TYPE_COUNT] = {FOR_EACH_FORMAT(LINE_SIGNED)};
