/* Three to AVX2_FEW_TOKENS activation rows times quantized weight rows, by AVX2's own byte products.
 *
 * Arithmetic is the limit here, and much of it is not products. Broadcasts of activations: sixteen rows of weights share
 * each, a tile as in matmul, where matvec has eight. Unpacking: only 256 elements of a tile at a time, and nibbles (of
 * Q4_0, Q4_1 and Q4_K) stay packed until they are multiplied, which saves more instructions than it costs while so few rows
 * share them.
 *
 * Same bits as matvec and matmul. Memory is the caller's; any thread. */
#define UNPACK8_KEEPS_NIBBLES

#include "formats.h"
#include "pack_sink.h"
#include "product_maddubs.h"
#include "side_by_side.h"

/* A word of nibbles of each row. Words lie next to each other, so that a block takes half the place of its unpacked elements. */
INLINE void put_nibble_word(struct sink *s, int i, __m256i w)
{
    _mm256_store_si256((__m256i *)s->dst->q[s->j0 * s->sub / 8 + i][8 * s->half], w);
}

#include "unpack8.h"

enum { FEW_SLAB = 256 }; /* elements of a row that are unpacked at a time */

struct few_scratch {
    struct avx2_packed packed; /* its first FEW_SLAB elements */
    struct side_by_side_scratch side_by_side;
};

/* How 32 elements of a slab lie in it. */
enum layout {
    BYTES,
    LOW, HIGH, /* the nibbles of 64 elements: the first 32, the others */
    HALVES,    /* nibbles: the first sixteen in the low, the others in the high ones */
};

/* Elements 4g .. 4g+3 of the 32 at w, of rows 8 * half and up. */
INLINE __m256i load_elements(const uint8_t *w, int g, int half, enum layout layout)
{
    if (layout == BYTES) return load_group(w, g, half);
    __m256i nibbles = load_group(w, layout == HALVES ? g % 4 : g, half);
    if (layout == HIGH || (layout == HALVES && g >= 4)) nibbles = _mm256_srli_epi16(nibbles, 4);
    return _mm256_and_si256(nibbles, _mm256_set1_epi8(15));
}

/* A slab and what it is multiplied with, at two blocks of 32. */
struct few {
    int n_t, sub, bits; /* constants of the function */
    bool has_zero;
    enum layout layout; /* of the first block */
    const struct avx2_packed *packed;
    int at;             /* the first block's number in the slab */
    struct side_by_side a;
    const uint8_t *next; /* bytes that will be unpacked next, to be requested */
};

/* sum[t] = products of block c with activation rows t0 <= t < t1, each sub-block's times its factor. Meanwhile lines
 * from line0 on are requested. */
INLINE void few_products(const struct few *f, int c, __m256i sum[][2], int t0, int t1, int line0, int lines)
{
    const int run = run_of(f->bits, f->has_zero), n_groups = f->sub / 4, sub_blocks = ACT_BLOCK / f->sub;
    const enum layout layout = f->layout == LOW && c ? HIGH : f->layout;
    const int block = f->at + c, group = layout == BYTES ? 8 * block : layout == HALVES ? 4 * block : 4 * f->at;
    __m256i pairs[AVX2_FEW_TOKENS][2];
#pragma GCC unroll 8
    for (int g = 0; g < ACT_BLOCK / 4; g++) {
        const int j = g / n_groups, at = g % n_groups;
        for (int i = g * lines / 8; i < (g + 1) * lines / 8; i++) request(f->next + 64 * (line0 + i));
        const uint8_t *q = f->packed->q[group][0];
        const __m256i w[2] = {load_elements(q, g, 0, layout), load_elements(q, g, 1, layout)};
#pragma GCC unroll 4
        for (int t = t0; t < t1; t++) {
            __m256i b = broadcast4(f->a.q + ((8 * c + g) * STRIDE(f->n_t) + t) * 4);
            const int32_t *start = f->a.offset + (c * sub_blocks + j) * STRIDE(f->n_t) + t;
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                pairs[t][h] = at % run == 0 ? first_products(start, f->has_zero, w[h], b) : add_products(pairs[t][h], w[h], b);
                SETTLE(pairs[t][h]);
            }
            if (at % run < run - 1 && at < n_groups - 1) continue;
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                __m256i factor = _mm256_set1_epi16(1);
                if (f->sub == 16) factor = _mm256_load_si256((const __m256i *)f->packed->factor[2 * block + j][8 * h]);
                add_sum(&sum[t][h], j == 0 && at < run, _mm256_madd_epi16(pairs[t][h], factor));
            }
        }
    }
}

/* acc += block c times all rows of activations. */
INLINE void few_block(const struct few *f, int c, __m256 acc[][2], int line0, int lines)
{
    __m256i sum[AVX2_FEW_TOKENS][2];
    /* The registers suffice for four rows; where pairs are widened before a sub-block's end, there are twice as many sums. */
    const int most = run_of(f->bits, f->has_zero) < f->sub / 4 ? 2 : 4, parts = (f->n_t + most - 1) / most;
    const int together = (f->n_t + parts - 1) / parts;
#pragma GCC unroll 4
    for (int t = 0; t < f->n_t; t += together)
        few_products(f, c, sum, t, t + together < f->n_t ? t + together : f->n_t, line0, t == 0 ? lines : 0);
#pragma GCC unroll 8
    for (int t = 0; t < f->n_t; t++) {
        __m256 scale = _mm256_set1_ps(f->a.scale[c * STRIDE(f->n_t) + t]);
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            __m256 d = _mm256_mul_ps(_mm256_load_ps(f->packed->d[f->at + c] + 8 * h), scale);
            acc[t][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[t][h]), d, acc[t][h]);
        }
    }
}

/* On to the next two blocks. */
INLINE void few_advance(struct few *f, int bytes)
{
    f->a.q += 2 * ACT_BLOCK * STRIDE(f->n_t);
    f->a.scale += 2 * STRIDE(f->n_t);
    f->a.offset += 2 * ACT_BLOCK / f->sub * STRIDE(f->n_t);
    f->next += bytes;
}

/* macc += minimums of n_sub sub-blocks. */
INLINE void few_minimums(struct few *f, __m256 macc[][2], int n_sub)
{
    for (int j = 0; j < n_sub; j++, f->a.fsum += STRIDE(f->n_t)) {
        const __m256 m[2] = {_mm256_load_ps(f->packed->m[j]), _mm256_load_ps(f->packed->m[j] + 8)};
#pragma GCC unroll 8
        for (int t = 0; t < f->n_t; t++) {
            __m256 fsum = _mm256_set1_ps(f->a.fsum[t]);
            macc[t][0] = _mm256_fmadd_ps(m[0], fsum, macc[t][0]);
            macc[t][1] = _mm256_fmadd_ps(m[1], fsum, macc[t][1]);
        }
    }
}

EXPAND_FORMAT(DEFINE_PACK, Q4_0_FORMAT)
EXPAND_FORMAT(DEFINE_PACK, Q4_1_FORMAT)
EXPAND_FORMAT(DEFINE_PACK, Q2_K_FORMAT)
EXPAND_FORMAT(DEFINE_PACK, Q3_K_FORMAT)
EXPAND_FORMAT(DEFINE_PACK, Q4_K_FORMAT)
EXPAND_FORMAT(DEFINE_PACK, Q5_K_FORMAT)
EXPAND_FORMAT(DEFINE_PACK, Q6_K_FORMAT)

/* Rows row0 .. row1-1 of w times all rows of act. */
#define DEFINE_FEW(name, elements, sub_elements, n_bits, offset_by, min, how, T) \
    __attribute__((noinline)) static void few_##name##_##T(const struct weight *w, int row0, int row1, const struct side_by_side *act, \
                                                           float *y, size_t ld_y, struct avx2_packed *packed) \
    { \
        enum { BYTES_64 = sizeof(struct block_##name) * ROW_TILE * 64 / elements, LINES = (BYTES_64 + 63) / 64 }; \
        const size_t stride = w->row_bytes; \
        for (int r = row0; r < row1; r += ROW_TILE) { \
            /* where the matrix ends within the tile, a half starts earlier, at the last eight rows */ \
            const int first[2] = {r + 8 <= w->n_out ? r : w->n_out - 8, r + 16 <= w->n_out ? r + 8 : w->n_out - 8}; \
            const uint8_t *p = (const uint8_t *)w->data + (size_t)first[0] * stride; \
            const size_t second = (size_t)(first[1] - first[0]) * stride; \
            __m256 acc[T][2], macc[T][2]; \
            for (int t = 0; t < T; t++) acc[t][0] = acc[t][1] = macc[t][0] = macc[t][1] = _mm256_setzero_ps(); \
            struct few f = {.n_t = T, .sub = sub_elements, .bits = n_bits, .has_zero = offset_by != 0, .layout = how, \
                            .packed = packed, .a = *act, .next = p + ROW_TILE * stride /* one contiguous piece */}; \
            for (int k = 0; k < w->n_in; k += FEW_SLAB) { \
                const int n = w->n_in - k < FEW_SLAB ? w->n_in - k : FEW_SLAB; \
                pack_##name(packed, 0, p, stride, n / elements); \
                pack_##name(packed, 1, p + second, stride, n / elements); \
                p += (size_t)(n / elements) * sizeof(struct block_##name); \
                for (f.at = 0; f.at < n / ACT_BLOCK; f.at += 2) { \
                    few_block(&f, 0, acc, 0, (LINES + 1) / 2); \
                    if (f.at + 1 < n / ACT_BLOCK) few_block(&f, 1, acc, (LINES + 1) / 2, LINES / 2); \
                    few_advance(&f, BYTES_64); \
                } \
                if (min) few_minimums(&f, macc, n / sub_elements); \
            } \
            for (int t = 0; t < T; t++) \
                for (int h = 0; h < 2; h++) \
                    store_rows(y + (size_t)t * ld_y, first[h], r + 8 * h, row1, min ? _mm256_sub_ps(acc[t][h], macc[t][h]) : acc[t][h]); \
        } \
    }
#define FEW_CASE(name, sub_elements, offset_by, min, T) \
    case T: \
        act = lay_side_by_side(&s->side_by_side, a, T, sub_elements, offset_by, min); \
        few_##name##_##T(w, row0, row1, &act, y, ld_y, &s->packed); \
        break;
/* how: the layout. further: of more than four rows. */
#define DEFINE_MATMUL_FEW(name, elements, sub_elements, n_bits, offset_by, min, how, further) \
    DEFINE_FEW(name, elements, sub_elements, n_bits, offset_by, min, how, 3) \
    DEFINE_FEW(name, elements, sub_elements, n_bits, offset_by, min, how, 4) \
    static void matmul_few_##name(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y, \
                                  void *scratch) \
    { \
        struct few_scratch *s = scratch; \
        struct side_by_side act; /* how many rows is a constant to those who lay and read it */ \
        switch (a->n_rows) { \
            FEW_CASE(name, sub_elements, offset_by, min, 3) \
            FEW_CASE(name, sub_elements, offset_by, min, 4) \
            further \
        } \
    }
#define DEFINE_UP_TO_6(name, elements, sub_elements, n_bits, offset_by, min, how) \
    DEFINE_FEW(name, elements, sub_elements, n_bits, offset_by, min, how, 5) \
    DEFINE_FEW(name, elements, sub_elements, n_bits, offset_by, min, how, 6) \
    DEFINE_MATMUL_FEW(name, elements, sub_elements, n_bits, offset_by, min, how, \
                      FEW_CASE(name, sub_elements, offset_by, min, 5) FEW_CASE(name, sub_elements, offset_by, min, 6))

EXPAND_FORMAT(DEFINE_UP_TO_6, Q4_0_FORMAT, HALVES)
EXPAND_FORMAT(DEFINE_UP_TO_6, Q4_1_FORMAT, HALVES)
EXPAND_FORMAT(DEFINE_UP_TO_6, Q2_K_FORMAT, BYTES)
EXPAND_FORMAT(DEFINE_UP_TO_6, Q3_K_FORMAT, BYTES)
EXPAND_FORMAT(DEFINE_UP_TO_6, Q4_K_FORMAT, LOW)
EXPAND_FORMAT(DEFINE_MATMUL_FEW, Q5_K_FORMAT, BYTES, )
EXPAND_FORMAT(DEFINE_UP_TO_6, Q6_K_FORMAT, BYTES)

avx2_matmul_fn *const avx2_matmul_few[TYPE_COUNT] = {
    [TYPE_Q4_0] = matmul_few_q4_0, [TYPE_Q4_1] = matmul_few_q4_1, [TYPE_Q2_K] = matmul_few_q2_K, [TYPE_Q3_K] = matmul_few_q3_K,
    [TYPE_Q4_K] = matmul_few_q4_K, [TYPE_Q5_K] = matmul_few_q5_K, [TYPE_Q6_K] = matmul_few_q6_K,
};
const size_t avx2_few_scratch = sizeof(struct few_scratch);
