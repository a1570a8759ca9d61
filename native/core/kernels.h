/* The kernel table: all arithmetic of the forward pass, once per instruction set.
 *
 * Every table computes the same bits. Each operation below fixes the order of
 * its float operations ("order:"), so that scalar, AVX2, AVX-512 and NEON give
 * identical results, and so that the value of one output never depends on how
 * many rows, tokens, sequences or threads were computed beside it. Hence a
 * result is the same on any machine, with any number of threads, alone or in a
 * batch, with a cold or a warm cache; and the tests compare tables for equality.
 * All code of these tables is compiled with -ffp-contract=off: an FMA is one
 * only where the order says fma.
 *
 * Words of the orders:
 *   fma(a,b,c)  a*b+c rounded once.
 *   lanes16     sixteen partial sums; element i goes to lane i%16, in
 *               ascending i; then the lanes are folded: l[i]+=l[i+8] for i<8,
 *               l[i]+=l[i+4] for i<4, l[i]+=l[i+2] for i<2, l[0]+l[1].
 *   kexp(x)     the exponential of kernels_math.h (an exact recipe).
 *
 * Pure functions: no state, any thread; all memory is the caller's. */
#ifndef INFER_KERNELS_H
#define INFER_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "quant.h"

enum {
    ACT_BLOCK = 32,      /* elements of an activation row that share a scale */
    ACT_SUM_BLOCK = 16,  /* elements of an activation row that share a sum */
    ROW_TILE = 16,       /* weight rows that a kernel takes at once; row ranges start at a multiple */
    KV_PAGE = 64,        /* tokens of a page of the KV cache */
};

/* Largest magnitudes of attention's 16-bit integers. Two vectors of KEY_LEVELS, which is a vector's length there, not its
 * largest element, have a product of at most KEY_LEVELS^2 and a little for rounding, whatever their size. */
enum {
    KEY_LEVELS = 32767,
    VALUE_LEVELS = 4095,
    WEIGHT_LEVELS = 8191,
};
_Static_assert((KEY_LEVELS + 16LL) * (KEY_LEVELS + 16) <= INT32_MAX, "so do products of 1,024 elements, each half a level too large");
_Static_assert((int64_t)KV_PAGE * VALUE_LEVELS * WEIGHT_LEVELS <= INT32_MAX, "a page's weighted values fit into 32 bits");

/* A weight matrix inside the mapped file: row-major, [n_out, n_in]. */
struct weight {
    enum tensor_type type;
    int n_out, n_in;
    size_t row_bytes;
    const void *data; /* aligned as the file has it: assume nothing beyond 1 byte */
};

/* A batch of matrix inputs. Quantized types read q, scale, sum and fsum; F32,
 * F16 and BF16 weights read x. n is a multiple of ACT_BLOCK whenever q is used. */
struct act {
    int n_rows, n;
    const float *x; /* [n_rows, n] */
    size_t ld_x;    /* floats from row to row of x */
    int8_t *q;      /* [n_rows, n], in -127..127 */
    float *scale;   /* [n_rows, n/32]: x ~ q*scale */
    int32_t *sum;   /* [n_rows, n/16]: sum of q */
    float *fsum;    /* [n_rows, n/16]: scale * (float)sum, rounded once */
};

/* Where K and V of one head and KV_PAGE tokens are: 16-bit integers, each token's with a scale of its own. Two neighbours lie
 * side by side, so that one instruction multiplies both and adds the products: of K two elements of a key, of V
 * two keys' values. KV_STRIP keys of K, or elements of V, are a strip, whose rows of pairs lie next to each other; V's last strip
 * may be narrower. So a kernel reads memory from front to back, where it takes a strip at a time. kv_head.h writes it. */
struct kv_head {
    int16_t *data;   /* K [KV_PAGE/KV_STRIP, (k_dim+1)/2, KV_STRIP, 2], then V [v_dim/KV_STRIP, KV_PAGE/2, KV_STRIP, 2] */
    uint16_t *scale; /* of the KV_PAGE keys, then of their values: bf16, as exact: the lower halves of these floats are 0 */
};

enum {
    KV_STRIP = 32,
    KV_SCALES = 2 * KV_PAGE, /* of a head */
};

/* Integers of a query or key: an even number. */
static inline size_t kv_q_count(int k_dim) { return ((size_t)k_dim + 1) / 2 * 2; }

/* Integers of K of a head; V begins after them. */
static inline size_t kv_k_count(int k_dim) { return kv_q_count(k_dim) * KV_PAGE; }

/* Integers of a head. Its size in bytes is a multiple of 128, of 4096 if k_dim + v_dim is one of 32: heads of common sizes that
 * lie next to each other begin at pages of memory, which is where the processor's prefetching ends. */
static inline size_t kv_count(int k_dim, int v_dim) { return kv_k_count(k_dim) + (size_t)v_dim * KV_PAGE; }

/* Where V has element d of the key in slot j, from where V begins. */
static inline size_t kv_v_at(int v_dim, int j, int d)
{
    int strip = d / KV_STRIP * KV_STRIP, width = v_dim - strip < KV_STRIP ? v_dim - strip : KV_STRIP;
    return (size_t)(strip * KV_PAGE + (j / 2 * width + d - strip) * 2 + j % 2);
}

/* Where K has element d of the key in slot j. */
static inline size_t kv_k_at(int k_dim, int j, int d)
{
    int n_pairs = (k_dim + 1) / 2;
    return (size_t)(((j / KV_STRIP * n_pairs + d / 2) * KV_STRIP + j % KV_STRIP) * 2 + d % 2);
}

/* A query as attention takes it. */
struct kv_query {
    const int16_t *q; /* [kv_q_count]; narrow by length */
    float scale;      /* and 1/sqrt(k_dim) */
    int n_keys;       /* it sees keys 0..n_keys-1 of the span (>= 0) */
};

enum narrow_by { NARROW_BY_LENGTH, NARROW_BY_LARGEST };

enum { TOKEN_BLOCK_MAX = 128 }; /* rows of activations */

struct kernels {
    const char *name; /* "scalar", "avx2", "avxvnni", "avx512", "amx", "neon", "neon-dotprod", "neon-i8mm" */

    /* Fills row `row` of a (q, scale, sum, fsum) from a->x.
     * order, for each block of 32: amax = max|x|; scale = amax / 127; inv = 127 / amax;
     * q = round half to even(x * inv). Blocks of (nearly) zeros, NaN, infinities: kquant_scale in kernels_math.h. */
    void (*quantize)(struct act *a, int row);

    /* y[t*ld_y + r] = sum_k W[r,k] * x[t,k] for row0 <= r < row1 and all rows t of a.
     * a has one row or more. scratch: at least scratch_bytes, 64-byte aligned, this thread's own.
     *
     * order, quantized types: blocks of ACT_BLOCK elements ascending; for each
     *     isum = exact integer sum of (w_int - zero) * q, where zero is the format's
     *            fixed offset (Q4_0 8, Q5_0 16, Q8_0 0, Q3_K 4, Q6_K 32; 0 for formats with a minimum);
     *            where the format has sub-blocks of 16, each product times the sub-block's integer scale
     *            (below 2^24 in magnitude, Q6_K's at most 2 * 16 * 32 * 127 * 128: so it is exact in floats, too)
     *     acc  = fma((float)isum, d * scale, acc)
     * and for each sub-block (16 or 32 elements, as the format has scales), formats with a minimum only
     *     macc = fma(m, fsum', macc)
     * where d is the block's float scale, for sub-blocks of 32 with integer scales times that of the sub-block, rounded once, and
     * m the sub-block's minimum (the product of the block's float and the integer, rounded once; w = d*w_int - m; for Q4_1 and
     * Q5_1, whose format says w = d*w_int + m, m is the negated field), and fsum' = fsum
     * of the sub-block (for 32: scale * (float)(sum of both halves), rounded once).
     * y = acc - macc (acc alone for formats without a minimum). acc, macc start at 0.
     *
     * order, F32/F16/BF16: weights widened exactly to float32; lanes16 with fma. */
    void (*matmul[TYPE_COUNT])(const struct weight *w, int row0, int row1, const struct act *a,
                               float *y, size_t ld_y, void *scratch);

    /* y[i] = x[i] * (1/sqrt(mean(x^2) + eps)) * w[i]; y may be x.
     * order: s = lanes16 fma(x,x,lane); r = 1 / sqrtf(s / n + eps); y = (x * r) * w. */
    void (*rmsnorm)(float *y, const float *x, const float *w, int n, float eps);

    /* y[i] = (x[i] - mean) * r * w[i] + b[i]
     * order: mean = lanes16 add / n; v = lanes16 fma(x-mean, x-mean, lane); r = 1 / sqrtf(v / n + eps);
     * y = fma((x - mean) * r, w, b). */
    void (*layernorm)(float *y, const float *x, const float *w, const float *b, int n, float eps);

    void (*add)(float *y, const float *x, int n); /* y += x */

    /* y[i] = silu(gate[i]) * up[i]; order: (g / (1 + kexp(-g))) * u. y may be gate. */
    void (*silu_mul)(float *y, const float *gate, const float *up, int n);

    /* y[i] = gelu(x[i]), the erf form; order: kgelu of kernels_math.h. y may be x. */
    void (*gelu)(float *y, const float *x, int n);

    /* Rotates the first n_rot elements of one head in place. cos, sin: [n_rot/2].
     * neox: pairs are (i, i + n_rot/2), else (2i, 2i+1).
     * order: x0' = x0*c - x1*s, x1' = x0*s + x1*c, products and sum rounded separately. */
    void (*rope)(float *x, const float *cos, const float *sin, int n_rot, bool neox);

    /* A vector as 16-bit integers: x ~ y * the scale that is returned. y has room for an even number; if n is odd, y[n] = 0.
     * order, by length: s = lanes16 fma(x,x,lane); r = s < KQUANT_TINY ? 0 : sqrtf(s); levels = KEY_LEVELS
     *        by largest: r = max|x|; levels = VALUE_LEVELS
     * scale = r / levels, then its lower half rounded up; inv = 1 / scale; y = round half to even(x * inv). NaN, infinities (of s,
     * too) and nearly zeros as with blocks of activations: kquant_scale_upper in kernels_math.h. */
    float (*narrow)(int16_t *y, const float *x, int n, enum narrow_by by);

    /* Attention of n_q queries (any mix of heads of a group and of tokens) to one span of keys that they share, as
     * partial results to be merged.
     * pages: one per KV_PAGE keys, and one more: the page that the caller will attend to next, which a kernel may
     * prefetch, or pointers of NULL.
     * Out, per query: m (maximum), l (sum), acc [n_q, v_dim] (not divided by l).
     * A query that sees no key gets m = -INFINITY, l = 0, acc = 0. Slots past n_keys are never used
     * (they may hold anything, scales of NaN too).
     * order, pages ascending, for each page where a query sees v > 0 keys:
     *   s_j = (float)(sum over d of q[d] * k[d][j], exact) * (scale of key j * scale of q)
     *   m' = max(m, max s_j) + 0, passing over NaN (kmax); c = kexp(m - m') (0 on the first page);
     *   p_j = kexp(s_j - m'), 0 for unseen j
     *   l = fma(l, c, lanes16 add p_j over the 64 slots)
     *   w_j = p_j * scale of value j, 0 for unseen j; of their largest scale and inv as of kquant_scale with WEIGHT_LEVELS;
     *   i_j = round half to even(w_j * inv), or 0 where that says so
     *   acc[d] = fma((float)(sum over j of i_j * v[j][d], exact), scale, acc[d] * c) (0 for acc[d] * c on the first page)
     *   m = m' */
    void (*attend)(const struct kv_query *queries, int n_q, int k_dim, int v_dim, const struct kv_head *pages,
                   float *m, float *l, float *acc, void *scratch);

    /* Merges a later span's partial (m2, l2, acc2) into (m, l, acc) of one query.
     * order: n = kmax(m, m2) + 0; a = kexp(m - n) (0 where m is -inf); b likewise of m2;
     * l = fma(l, a, l2 * b); acc[d] = fma(acc[d], a, acc2[d] * b); m = n. */
    void (*attend_merge)(float *m, float *l, float *acc, float m2, float l2, const float *acc2, int v_dim);

    /* Largest element's index, the first one of equals; n >= 1. NaN never wins. */
    int (*argmax)(const float *x, int n);

    size_t scratch_bytes;
    int token_block; /* 1..TOKEN_BLOCK_MAX: most rows of activations to multiply at a time, so that they stay in a core's cache */

    /* For benchmarks; may be NULL. Issues this table's int8 multiply-add `rounds` times from registers, as fast as
     * the CPU takes it, and returns how many int8 products were summed. */
    uint64_t (*peak)(int rounds);
};

extern const struct kernels kernels_scalar;

/* Each kernel library defines one of these; the table's every entry is set (entries
 * that a library does not specialize repeat the scalar ones). NULL when this CPU cannot run it. */
const struct kernels *kernels_avx2(void);
const struct kernels *kernels_avxvnni(void); /* AVX2 with AVX-VNNI's byte products; same folder */
const struct kernels *kernels_avx512(void);
const struct kernels *kernels_amx(void); /* AVX-512 with AMX's 8-bit matrix products; same folder */
const struct kernels *kernels_neon(void);
const struct kernels *kernels_neon_dotprod(void); /* NEON with ARMv8.2's byte dot products; same folder */
const struct kernels *kernels_neon_i8mm(void);    /* and with 8-bit matrix products; same folder */

/* The best table for this CPU, or the one that REDIS_INFER_KERNELS names.
 * NULL if that name is unknown, not built in, or needs a newer CPU: *why then says so (static string). */
const struct kernels *kernels_select(const char **why);
/* Table by name, NULL as above. */
const struct kernels *kernels_by_name(const char *name, const char **why);
/* Tables that this machine can run, best first, NULL-terminated; static storage. */
const struct kernels *const *kernels_available(void);

#endif
