/* The int8 microkernel of AMX: a tile of 16 weight rows against 16 activation rows.
 *
 * TDPB multiplies 16 rows, 16 tokens and a sub-block's columns in 16 cycles. Its sums go through
 * memory: stored, loaded, converted, scaled and added in lanes, in the order that kernels.h prescribes.
 * For some 300 cycles after any AMX instruction multiplications, fused ones and conversions of floats start on one
 * port instead of two, while additions and integer operations keep both. Hence integers become floats by two
 * additions (magic_float), and a sub-block's 16 products of scales and 16 fma take 32 cycles. Tiles are loaded, multiplied and
 * stored two pairs of sub-blocks ahead, so that nothing waits for TDPB's 52 cycles or for a store to reach L1.
 *
 * With few groups the weights' way from memory takes as long as all this, and a core waits for 16 lines at most: they have
 * to be asked for all the time, here too, evenly. And unpacking would wait for L2, while here there is time to fetch from it.
 *
 * Addresses are few and run on: GCC keeps what it has no registers for in vector registers, whose way back is the port
 * that the floats wait for. A tile's load that waits with them is late, and the products after it: 20 % slower for one stride.
 *
 * Configuration of the tiles is a thread's own; memory is the caller's; any thread. */
#include "amx.h"
#include "vector.h"

/* What the tile registers are for; the intrinsics want numbers. */
enum { C0, C1, C2, C3, A0, A1, B0, B1, TILES };

enum {
    FAR_OF_PIECE = 2, /* requests of each piece of amx_ahead, with a sub-block */
    NEAR_ROWS = 4,    /* that are fetched with two pairs of sub-blocks, */
    NEAR_LINES = 5,   /* at least so many lines of each: 512 columns in 4 bits */
};

void avx512_amx_begin(int sub)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < TILES; i++) {
        config.row_bytes[i] = (uint16_t)(i == A0 || i == A1 ? sub : 64);
        config.rows[i] = (uint8_t)(i == B0 || i == B1 ? sub / 4 : 16);
    }
    __asm__ volatile("" ::"r"(&config) : "memory"); /* compilers' intrinsics say that they read less of it */
    _tile_loadconfig(&config);
}

void avx512_amx_end(void) { _tile_release(); }

/* What is multiplied next, and what is taken in next: two pairs of sub-blocks behind. */
struct progress {
    const int8_t *q;   /* of the pair */
    const __m512i *w;
    int left;          /* pairs of this group */
    const float *scale;
    const __m512 *d, *factor; /* of 32 columns, of a sub-block of 16 */
    int taking_left;
    struct amx_sums *sums;
    bool first;        /* the sums begin here, from 0 */
    const char *far;   /* amx_ahead's */
    size_t piece, step;
    __m512 acc[AMX_TOKENS];
};

/* As the intrinsics, but with a displacement, which saves registers; so does that all rows are 64 bytes apart. */
#ifdef INFER_TILE_LOAD /* emulated: tests/emulation */
#define LOAD INFER_TILE_LOAD
#define STORE INFER_TILE_STORE
#else
#define LOAD(tile, base, at) \
    __asm__ volatile("tileloadd %c[d](%[p],%[s],1), %%tmm" #tile ::[d] "i"(at), [p] "r"(base), [s] "r"((ptrdiff_t)64))
#define STORE(tile, base, at)                                                                                              \
    __asm__ volatile("tilestored %%tmm" #tile ", %c[d](%[p],%[s],1)" ::[d] "i"(at), [p] "r"(base), [s] "r"((ptrdiff_t)64) \
                     : "memory")
#endif

/* Tile registers c = a * b: a sub-block of the tokens times the same of the rows, the second of the pair if `second`. */
#define PRODUCT(c, a_tile, b_tile, second)                              \
    do {                                                                \
        _tile_zero(c);                                                  \
        LOAD(a_tile, p->q, (second)*sub);                               \
        LOAD(b_tile, p->w, (second) * (sub / 4) * 64);                  \
        if (is_unsigned) _tile_dpbsud(c, a_tile, b_tile);               \
        else _tile_dpbssd(c, a_tile, b_tile);                           \
    } while (0)

/* Two sub-blocks of 32 are 64 columns, two of 16 the first or the second half of them (and their pairs are even in number: they
 * come in super-blocks). */
INLINE void multiply_pair(struct progress *p, int n_pairs, const int odd, const int sub, const bool is_unsigned)
{
    if (odd) {
        PRODUCT(2, 4, 6, 0);
        PRODUCT(3, 5, 7, 1);
    } else {
        PRODUCT(0, 4, 6, 0);
        PRODUCT(1, 5, 7, 1);
    }
    p->q += sub == 16 && !odd ? 32 : AMX_TOKENS * 64 - (sub == 16 ? 32 : 0);
    p->w += 2 * sub / 4;
    if (--p->left) return;
    p->left = n_pairs;
    p->q += (int)sizeof(struct amx_group) - n_pairs * 2 * sub * AMX_TOKENS;
    p->w -= n_pairs * 2 * sub / 4;
}

INLINE void store_pair(__m512i sum[2][2][AMX_TOKENS], const int odd)
{
    if (odd) {
        STORE(2, sum, 2048);
        STORE(3, sum, 3072);
    } else {
        STORE(0, sum, 0);
        STORE(1, sum, 1024);
    }
}

/* Integers of a magnitude up to 2^22, and no sub-block's sum exceeds 2^20: added to the bits of 1.5 * 2^23 they are those of
 * the float 1.5 * 2^23 + v. */
INLINE __m512 magic_float(__m512i v)
{
    v = _mm512_add_epi32(v, _mm512_set1_epi32(0x4b400000));
    return _mm512_sub_ps(_mm512_castsi512_ps(v), _mm512_set1_ps(0x1.8p23f));
}

/* Before token t of as many sub-blocks: their share of the requests. */
INLINE void fetch_far(struct progress *p, int t, const int sub_blocks)
{
    if (t % (AMX_TOKENS / FAR_OF_PIECE / sub_blocks)) return;
    _mm_prefetch(p->far, _MM_HINT_T1);
    _mm_prefetch(p->far + p->piece, _MM_HINT_T1);
    p->far += p->step;
}

/* A sub-block of 32. */
INLINE void take_sub_block(struct progress *p, const __m512i *sum, const float *scale, __m512 d)
{
#pragma GCC unroll 16
    for (int t = 0; t < AMX_TOKENS; t++) {
        fetch_far(p, t, 1);
        p->acc[t] = _mm512_fmadd_ps(magic_float(sum[t]), _mm512_mul_ps(d, _mm512_set1_ps(scale[t])), p->acc[t]);
    }
}

/* Two sub-blocks of 16. Products with their factors and the sums of these are integers below 2^24: exact. */
INLINE void take_halves(struct progress *p, __m512i sum[2][AMX_TOKENS])
{
    __m512 d = p->d[0], factor[2] = {p->factor[0], p->factor[1]};
#pragma GCC unroll 16
    for (int t = 0; t < AMX_TOKENS; t++) {
        fetch_far(p, t, 2);
        __m512 both = _mm512_fmadd_ps(magic_float(sum[1][t]), factor[1], _mm512_mul_ps(magic_float(sum[0][t]), factor[0]));
        p->acc[t] = _mm512_fmadd_ps(both, _mm512_mul_ps(d, _mm512_set1_ps(p->scale[t])), p->acc[t]);
    }
}

INLINE void take_pair(struct progress *p, __m512i sum[2][AMX_TOKENS], int n_pairs, bool odd_end, const int sub)
{
    const int blocks = 2 * sub / ACT_BLOCK;
    if (p->taking_left == n_pairs) {
#pragma GCC unroll 16
        for (int t = 0; t < AMX_TOKENS; t++) p->acc[t] = p->first ? _mm512_setzero_ps() : p->sums->acc[t];
    }
    if (sub == 16) {
        take_halves(p, sum);
        p->factor += 2;
    } else {
        take_sub_block(p, sum[0], p->scale, p->d[0]);
        if (p->taking_left > 1 || !odd_end) take_sub_block(p, sum[1], p->scale + AMX_TOKENS, p->d[1]);
    }
    p->scale += blocks * AMX_TOKENS;
    p->d += blocks;
    if (--p->taking_left) return;
#pragma GCC unroll 16
    for (int t = 0; t < AMX_TOKENS; t++) p->sums->acc[t] = p->acc[t];
    p->taking_left = n_pairs;
    p->sums++;
    p->scale += (int)(sizeof(struct amx_group) / sizeof *p->scale) - n_pairs * blocks * AMX_TOKENS;
    p->d -= n_pairs * blocks;
    if (sub == 16) p->factor -= n_pairs * 2;
}

/* Some of the rows that are unpacked next, and on to others. */
INLINE void fetch_near(struct amx_ahead *a)
{
    __asm__ volatile("" : "+m"(*a)); /* it stays in memory: the products need the registers */
#pragma GCC unroll 4
    for (int r = 0; r < NEAR_ROWS; r++, a->near += a->stride) {
#pragma GCC unroll 8
        for (int i = 0; i < NEAR_LINES; i++) _mm_prefetch(a->near + 64 * i, _MM_HINT_T0);
        for (size_t i = 64 * NEAR_LINES; i < a->near_bytes; i += 64) _mm_prefetch(a->near + i, _MM_HINT_T0);
    }
}

/* In step i pair i of sub-blocks is multiplied, pair i - 1 stored and pair i - 2 taken in, on through all groups. The
 * last pair of each may be half a pair: the other half is whatever lies there, and not taken in. */
INLINE void products(struct amx_sums *c, const struct tile *w, const struct amx_group *a, int n_groups, int n_sub,
                     bool first, const struct amx_ahead *ahead, const int sub, const bool is_unsigned)
{
    __m512i sum[2][2][AMX_TOKENS];
    int n_pairs = (n_sub + 1) / 2, n = n_groups * n_pairs;
    bool odd_end = n_sub % 2;
    struct progress p = {.q = a->q[0][0], .w = w->w, .left = n_pairs, .scale = a->scale[0], .d = w->d, .factor = w->factor,
                         .taking_left = n_pairs, .sums = c, .first = first, .far = ahead->far, .piece = ahead->piece,
                         .step = ahead->bytes / (size_t)(2 * n * FAR_OF_PIECE) + 1};
    struct amx_ahead near = *ahead;
    for (int i = 0; i < n + 2; i += 2) {
        if (i >= n - 2 * ROW_TILE / NEAR_ROWS) fetch_near(&near);
        if (i < n) multiply_pair(&p, n_pairs, 0, sub, is_unsigned);
        if (i > 0 && i <= n) store_pair(sum, 1);
        if (i > 1) take_pair(&p, sum[0], n_pairs, odd_end, sub);
        if (i + 1 < n) multiply_pair(&p, n_pairs, 1, sub, is_unsigned);
        if (i < n) store_pair(sum, 0);
        if (i > 1 && i - 1 < n) take_pair(&p, sum[1], n_pairs, odd_end, sub);
    }
}

#define PARAMETERS                                                                                                           \
    struct amx_sums *c, const struct tile *w, const struct amx_group *a, int n_groups, int n_sub, bool first,                \
        const struct amx_ahead *ahead

static void multiply16(PARAMETERS) { products(c, w, a, n_groups, n_sub, first, ahead, 16, false); }
static void multiply32(PARAMETERS) { products(c, w, a, n_groups, n_sub, first, ahead, 32, false); }
static void multiply16_unsigned(PARAMETERS) { products(c, w, a, n_groups, n_sub, first, ahead, 16, true); }
static void multiply32_unsigned(PARAMETERS) { products(c, w, a, n_groups, n_sub, first, ahead, 32, true); }

amx_multiply_fn *const avx512_amx_multiply[2][2] = {{multiply16, multiply32}, {multiply16_unsigned, multiply32_unsigned}};
