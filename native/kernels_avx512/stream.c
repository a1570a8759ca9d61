/* Products of 16 weight rows with a few activation rows, straight from the file: decode, alone or in a batch.
 *
 * Nothing is stored between reading a weight and its product, so a row tile costs, per 32 bytes of
 * 16 rows of 4-bit weights: 8 inserts and 24 shuffles to make lane = row, 24 operations to
 * split nibbles, and per token 16 VPDPBUSD and 6 float operations. That is about 80 operations on two
 * ports for 512 bytes and one token, 12 bytes per cycle, several times what one core reads from memory; the
 * weights that come later are prefetched meanwhile.
 *
 * Up to SIDE_TOKENS have functions of their own, with the sums in registers. More tokens share one
 * function per format that keeps the sums in memory and takes 4 tokens at a time, while
 * the weights stay in registers. Memory is the caller's; any thread. */
#include "formats.h"
#include "tile.h"

struct sums {
    __m512 acc[STREAM_TOKENS], macc[STREAM_TOKENS];
    __m512 first_half[STREAM_TOKENS]; /* of 32 columns, in sub-blocks of 16: the integer sum times its factor */
    const struct act_rows *a;
    int n_tokens;
};

INLINE __m512i load_four(const int8_t *q)
{
    int32_t v;
    memcpy(&v, q, sizeof v);
    return _mm512_set1_epi32(v);
}

/* How far it is from one activation row to the next, in q, in scale and in what there is of each sub-block; and from one dword of
 * a row to the next, in dwords. */
struct steps {
    size_t q, scale, sub, dword;
};

/* Sub-block s against T tokens from t0. */
INLINE void multiply_tokens(struct sums *c, int t0, int s, const __m512i *w, __m512 d, __m512 factor, __m512 m, const int T,
                            const int sub, const int zero, const bool has_min, const struct steps by)
{
    const struct act_rows *a = c->a;
    /* Eight VPDPBUSD in a row take 40 cycles, longer than all that waits with them: so two sums. */
    const bool two = sub == 32;
    __m512i isum[4], odd[4];
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
        isum[t] = zero ? _mm512_set1_epi32(a->start[(size_t)(t0 + t) * by.sub + (size_t)s * by.dword]) : _mm512_setzero_si512();
        odd[t] = _mm512_setzero_si512();
    }
#pragma GCC unroll 8
    for (int k = 0; k < sub / 4; k++)
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
            __m512i q = load_four(a->q + (size_t)(t0 + t) * by.q + (size_t)(s * sub + 4 * k) * by.dword);
            __m512i *sum = two && k % 2 ? &odd[t] : &isum[t];
            *sum = _mm512_dpbusd_epi32(*sum, w[k], q);
        }
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
        const float *scale = a->scale + (size_t)(t0 + t) * by.scale + (size_t)(s * sub / ACT_BLOCK) * by.dword;
        const float *fsum = a->fsum + (size_t)(t0 + t) * by.sub + (size_t)s * by.dword;
        __m512 sum = _mm512_cvtepi32_ps(two ? _mm512_add_epi32(isum[t], odd[t]) : isum[t]);
        /* Products with factors and their sums are integers below 2^24: exact. */
        if (sub == 16 && s % 2 == 0) c->first_half[t0 + t] = _mm512_mul_ps(sum, factor);
        if (sub == 16 && s % 2 == 1) sum = _mm512_fmadd_ps(sum, factor, c->first_half[t0 + t]);
        if (sub == 32 || s % 2 == 1)
            c->acc[t0 + t] = _mm512_fmadd_ps(sum, _mm512_mul_ps(d, _mm512_set1_ps(*scale)), c->acc[t0 + t]);
        if (has_min) c->macc[t0 + t] = _mm512_fmadd_ps(m, _mm512_set1_ps(*fsum), c->macc[t0 + t]);
    }
}

/* The same against all of them. */
INLINE void multiply_all(struct sums *c, int s, const __m512i *w, __m512 d, __m512 factor, __m512 m, const int sub,
                         const int zero, const bool has_min)
{
    const struct steps by = {c->a->ld_q, c->a->ld_scale, c->a->ld_sub, 1};
    int t = 0;
    for (; t + 4 <= c->n_tokens; t += 4) multiply_tokens(c, t, s, w, d, factor, m, 4, sub, zero, has_min, by);
    for (; t < c->n_tokens; t++) multiply_tokens(c, t, s, w, d, factor, m, 1, sub, zero, has_min, by);
}

INLINE void store_sums(__m512 *y, const struct sums *c, int n_tokens, const bool has_min)
{
    for (int t = 0; t < n_tokens; t++) y[t] = has_min ? _mm512_sub_ps(c->acc[t], c->macc[t]) : c->acc[t];
}

/* *r, with what the compiler should know of it. */
INLINE struct rows known(const struct rows *r, const bool runs)
{
    return (struct rows){.half = {r->half[0], r->half[1]}, .stride = r->stride, .runs = runs, .ahead = r->ahead, .piece = r->piece};
}

#define DEFINE_WALK(name, has_min, T, runs_)                                                                               \
    static void stream_##name##_##T##_##runs_(__m512 *y, const struct rows *r, int n_blocks, const struct act_rows *a, int n) \
    {                                                                                                                      \
        struct sums c = {.a = a};                                                                                          \
        (void)n;                                                                                                           \
        for (int t = 0; t < T; t++) c.acc[t] = c.macc[t] = _mm512_setzero_ps();                                            \
        struct rows rows = known(r, runs_);                                                                                \
        walk_##name(&rows, n_blocks, multiply_##name##_##T, &c);                                                           \
        store_sums(y, &c, T, has_min);                                                                                     \
    }
#define DEFINE_T(name, block, sub, zero, has_min, T)                                                                       \
    INLINE void multiply_##name##_##T(void *ctx, int s, const __m512i *w, __m512 d, __m512 f, __m512 m)                    \
    {                                                                                                                      \
        multiply_tokens(ctx, 0, s, w, d, f, m, T, sub, zero, has_min, (struct steps){4, 1, 1, SIDE_STEP(T)});              \
    }                                                                                                                      \
    DEFINE_WALK(name, has_min, T, 0)                                                                                       \
    DEFINE_WALK(name, has_min, T, 1)
#define DEFINE(name, NAME, block, sub, zero, has_min)                                                                      \
    DEFINE_T(name, block, sub, zero, has_min, 1)                                                                           \
    DEFINE_T(name, block, sub, zero, has_min, 2)                                                                           \
    DEFINE_T(name, block, sub, zero, has_min, 3)                                                                           \
    DEFINE_T(name, block, sub, zero, has_min, 4)                                                                           \
    INLINE void multiply_##name(void *ctx, int s, const __m512i *w, __m512 d, __m512 f, __m512 m)                          \
    {                                                                                                                      \
        multiply_all(ctx, s, w, d, f, m, sub, zero, has_min);                                                              \
    }                                                                                                                      \
    static void stream_##name(__m512 *y, const struct rows *r, int n_blocks, const struct act_rows *a, int n)              \
    {                                                                                                                      \
        struct sums c = {.a = a, .n_tokens = n};                                                                           \
        struct rows rows = known(r, false);                                                                                \
        walk_##name(&rows, n_blocks, multiply_##name, &c);                                                                 \
        store_sums(y, &c, n, has_min);                                                                                     \
    }
FOR_EACH_FORMAT(DEFINE)

#define LINE(name, NAME, block, sub, zero, has_min) [TYPE_##NAME] = stream_##name,
static stream_fn *const any_number[TYPE_COUNT] = {FOR_EACH_FORMAT(LINE)};

#define LINE_SIDE(name, NAME, block, sub, zero, has_min)                                                                   \
    [TYPE_##NAME] = {{stream_##name##_1_0, stream_##name##_2_0, stream_##name##_3_0, stream_##name##_4_0},                 \
                     {stream_##name##_1_1, stream_##name##_2_1, stream_##name##_3_1, stream_##name##_4_1}},
static stream_fn *const side[TYPE_COUNT][2][SIDE_TOKENS] = {FOR_EACH_FORMAT(LINE_SIDE)};

stream_fn *avx512_stream(enum tensor_type t) { return any_number[t]; }
stream_fn *avx512_stream_side(enum tensor_type t, int n_tokens, bool runs) { return side[t][runs][n_tokens - 1]; }
