/* The scalar kernel table: the definition that the other tables repeat.
 *
 * Each function is its `order:` of kernels.h written out; speed comes
 * second here. Runs on every machine. No memory of its own; any thread. */
#include "kernels.h"

#include <math.h>
#include <string.h>

#include "kernels_math.h"
#include "unpack.h"

/* lanes16 of kernels.h: the fold of the sixteen partial sums. */
static float fold16(float lane[16])
{
    for (int width = 8; width > 1; width /= 2)
        for (int i = 0; i < width; i++) lane[i] += lane[i + width];
    return lane[0] + lane[1];
}

static void quantize(struct act *a, int row)
{
    const float *x = a->x + (size_t)row * a->ld_x;
    size_t n_blocks = (size_t)a->n / ACT_BLOCK;
    for (size_t b = 0; b < n_blocks; b++, x += ACT_BLOCK) {
        size_t at = (size_t)row * n_blocks + b;
        uint32_t top_bits = 0;
        for (int i = 0; i < ACT_BLOCK; i++) top_bits = kabsmax(top_bits, x[i]);
        float inv;
        a->scale[at] = kquant_scale(top_bits, 127, &inv);
        for (int half = 0; half < 2; half++) {
            int32_t sum = 0;
            for (int i = 0; i < ACT_SUM_BLOCK; i++) {
                int e = half * ACT_SUM_BLOCK + i;
                int8_t q = inv > 0 ? (int8_t)nearbyintf(x[e] * inv) : 0;
                a->q[at * ACT_BLOCK + (size_t)e] = q;
                sum += q;
            }
            a->sum[2 * at + (size_t)half] = sum;
            a->fsum[2 * at + (size_t)half] = a->scale[at] * (float)sum;
        }
    }
}

/* ---- matmul, quantized types ---- */

/* Rows of activations that one unpacking of a weight row serves. */
enum { SCALAR_TOKENS = 64 };

struct matmul_scratch {
    struct unpacked u;
    float acc[SCALAR_TOKENS], macc[SCALAR_TOKENS];
};

/* One unpacked block against the same elements, k0 and up, of activation row t. */
static void multiply_block(const struct quant_format *f, const struct unpacked *u, const struct act *a, int t,
                           int k0, float *acc, float *macc)
{
    size_t row = (size_t)t * (size_t)a->n;
    for (int b = 0; b < f->block / ACT_BLOCK; b++) {
        size_t k = row + (size_t)(k0 + b * ACT_BLOCK);
        const int8_t *w = u->q + b * ACT_BLOCK, *q = a->q + k;
        const int32_t *sum = a->sum + k / ACT_SUM_BLOCK;
        float scale = a->scale[k / ACT_BLOCK];
        int32_t isum = 0;
        for (int i = 0; i < ACT_BLOCK; i++) {
            int factor = f->sub == 16 ? u->factor[2 * b + i / 16] : 1;
            isum += factor * w[i] * q[i];
        }
        *acc = fmaf((float)isum, u->d[b] * scale, *acc);
        if (!f->has_min) continue;
        if (f->sub == 16) {
            for (int half = 0; half < 2; half++) *macc = fmaf(u->m[2 * b + half], scale * (float)sum[half], *macc);
        } else {
            *macc = fmaf(u->m[b], scale * (float)(sum[0] + sum[1]), *macc);
        }
    }
}

static void matmul_quantized(const struct weight *w, int row0, int row1, const struct act *a, float *y,
                             size_t ld_y, void *scratch)
{
    const struct quant_format *f = quant_format(w->type);
    struct matmul_scratch *s = scratch;
    for (int t0 = 0; t0 < a->n_rows; t0 += SCALAR_TOKENS) {
        int n_tokens = a->n_rows - t0 < SCALAR_TOKENS ? a->n_rows - t0 : SCALAR_TOKENS;
        for (int r = row0; r < row1; r++) {
            const unsigned char *block = (const unsigned char *)w->data + (size_t)r * w->row_bytes;
            for (int t = 0; t < n_tokens; t++) s->acc[t] = s->macc[t] = 0;
            for (int k0 = 0; k0 < w->n_in; k0 += f->block, block += f->block_bytes) {
                f->unpack(&s->u, block);
                for (int t = 0; t < n_tokens; t++)
                    multiply_block(f, &s->u, a, t0 + t, k0, &s->acc[t], &s->macc[t]);
            }
            for (int t = 0; t < n_tokens; t++)
                y[(size_t)(t0 + t) * ld_y + (size_t)r] = f->has_min ? s->acc[t] - s->macc[t] : s->acc[t];
        }
    }
}

/* ---- matmul, float types ---- */

static float f32_element(const unsigned char *row, int i)
{
    float v;
    memcpy(&v, row + 4 * (size_t)i, sizeof v);
    return v;
}

static uint16_t u16_element(const unsigned char *row, int i)
{
    uint16_t v;
    memcpy(&v, row + 2 * (size_t)i, sizeof v);
    return v;
}

static void matmul_float(const struct weight *w, int row0, int row1, const struct act *a, float *y, size_t ld_y,
                         void *scratch)
{
    (void)scratch;
    for (int r = row0; r < row1; r++) {
        const unsigned char *row = (const unsigned char *)w->data + (size_t)r * w->row_bytes;
        for (int t = 0; t < a->n_rows; t++) {
            const float *x = a->x + (size_t)t * a->ld_x;
            float lane[16] = {0};
            for (int i = 0; i < w->n_in; i++) {
                float v = w->type == TYPE_F32   ? f32_element(row, i)
                          : w->type == TYPE_F16 ? f16_to_f32(u16_element(row, i))
                                                : bf16_to_f32(u16_element(row, i));
                lane[i % 16] = fmaf(v, x[i], lane[i % 16]);
            }
            y[(size_t)t * ld_y + (size_t)r] = fold16(lane);
        }
    }
}

/* ---- normalization and elementwise operations ---- */

static void rmsnorm(float *y, const float *x, const float *w, int n, float eps)
{
    float lane[16] = {0};
    for (int i = 0; i < n; i++) lane[i % 16] = fmaf(x[i], x[i], lane[i % 16]);
    float r = 1 / sqrtf(fold16(lane) / (float)n + eps);
    for (int i = 0; i < n; i++) y[i] = (x[i] * r) * w[i];
}

static void layernorm(float *y, const float *x, const float *w, const float *b, int n, float eps)
{
    float lane[16] = {0};
    for (int i = 0; i < n; i++) lane[i % 16] += x[i];
    float mean = fold16(lane) / (float)n;
    memset(lane, 0, sizeof lane);
    for (int i = 0; i < n; i++) lane[i % 16] = fmaf(x[i] - mean, x[i] - mean, lane[i % 16]);
    float r = 1 / sqrtf(fold16(lane) / (float)n + eps);
    for (int i = 0; i < n; i++) y[i] = fmaf((x[i] - mean) * r, w[i], b[i]);
}

static void add(float *y, const float *x, int n)
{
    for (int i = 0; i < n; i++) y[i] += x[i];
}

static void silu_mul(float *y, const float *gate, const float *up, int n)
{
    for (int i = 0; i < n; i++) y[i] = gate[i] / (1 + kexp(-gate[i])) * up[i];
}

static void gelu(float *y, const float *x, int n)
{
    for (int i = 0; i < n; i++) y[i] = kgelu(x[i]);
}

static void rope(float *x, const float *cos, const float *sin, int n_rot, bool neox)
{
    int half = n_rot / 2;
    for (int i = 0; i < half; i++) {
        float *p0 = neox ? x + i : x + 2 * i;
        float *p1 = neox ? x + i + half : x + 2 * i + 1;
        float x0 = *p0, x1 = *p1;
        *p0 = x0 * cos[i] - x1 * sin[i];
        *p1 = x0 * sin[i] + x1 * cos[i];
    }
}

static int argmax(const float *x, int n)
{
    int best = -1;
    for (int i = 0; i < n; i++)
        if (best < 0 ? x[i] == x[i] : x[i] > x[best]) best = i;
    return best < 0 ? 0 : best;
}

/* ---- attention ---- */

static float narrow(int16_t *y, const float *x, int n, enum narrow_by by)
{
    float inv, lane[16] = {0}, levels = by == NARROW_BY_LENGTH ? KEY_LEVELS : VALUE_LEVELS;
    uint32_t top_bits = 0;
    for (int i = 0; i < n; i++) {
        lane[i % 16] = fmaf(x[i], x[i], lane[i % 16]);
        top_bits = kabsmax(top_bits, x[i]);
    }
    if (by == NARROW_BY_LENGTH) top_bits = klength_bits(fold16(lane));
    float scale = kquant_scale_upper(top_bits, levels, &inv);
    for (int i = 0; i < n; i++) y[i] = inv > 0 ? (int16_t)nearbyintf(x[i] * inv) : 0;
    if (n % 2) y[n] = 0;
    return scale;
}

/* One query's `seen` keys of a page, merged into its (m, l, acc). */
static void attend_page(const struct kv_query *q, int seen, int k_dim, int v_dim, const struct kv_head *page, bool first,
                        float *m, float *l, float *acc)
{
    const int16_t *v = page->data + kv_k_count(k_dim);
    float s[KV_PAGE], lane[16] = {0}, top = *m;
    for (int j = 0; j < seen; j++) {
        int32_t sum = 0;
        for (int d = 0; d < k_dim; d++) sum += q->q[d] * page->data[kv_k_at(k_dim, j, d)];
        s[j] = (float)sum * (bf16_to_f32(page->scale[j]) * q->scale);
        top = kmax(top, s[j]);
    }
    top += 0.0f;
    float c = first ? 0 : kexp(*m - top), inv;
    uint32_t top_bits = 0;
    for (int j = 0; j < seen; j++) {
        s[j] = kexp(s[j] - top);
        lane[j % 16] += s[j];
        s[j] *= bf16_to_f32(page->scale[KV_PAGE + j]);
        top_bits = kabsmax(top_bits, s[j]);
    }
    *l = fmaf(*l, c, fold16(lane));
    *m = top;
    float scale = kquant_scale(top_bits, WEIGHT_LEVELS, &inv);
    int32_t weight[KV_PAGE];
    for (int j = 0; j < seen; j++) weight[j] = inv > 0 ? (int32_t)nearbyintf(s[j] * inv) : 0;
    for (int d = 0; d < v_dim; d++) {
        int32_t sum = 0;
        for (int j = 0; j < seen; j++) sum += weight[j] * v[kv_v_at(v_dim, j, d)];
        acc[d] = fmaf((float)sum, scale, first ? 0 : acc[d] * c);
    }
}

static void attend(const struct kv_query *queries, int n_q, int k_dim, int v_dim, const struct kv_head *pages, float *m,
                   float *l, float *acc, void *scratch)
{
    (void)scratch;
    for (int i = 0; i < n_q; i++) {
        float *acc_i = acc + (size_t)i * (size_t)v_dim;
        m[i] = -INFINITY;
        l[i] = 0;
        for (int d = 0; d < v_dim; d++) acc_i[d] = 0;
        for (int page = 0; page * KV_PAGE < queries[i].n_keys; page++) {
            int seen = queries[i].n_keys - page * KV_PAGE;
            attend_page(&queries[i], seen < KV_PAGE ? seen : KV_PAGE, k_dim, v_dim, &pages[page], page == 0, &m[i], &l[i], acc_i);
        }
    }
}

static void attend_merge(float *m, float *l, float *acc, float m2, float l2, const float *acc2, int v_dim)
{
    float top = kmax(*m, m2) + 0.0f;
    float a = *m == -INFINITY ? 0 : kexp(*m - top);
    float b = m2 == -INFINITY ? 0 : kexp(m2 - top);
    *l = fmaf(*l, a, l2 * b);
    for (int d = 0; d < v_dim; d++) acc[d] = fmaf(acc[d], a, acc2[d] * b);
    *m = top;
}

const struct kernels kernels_scalar = {
    .name = "scalar",
    .quantize = quantize,
    .matmul = {
        [TYPE_F32] = matmul_float,      [TYPE_F16] = matmul_float,      [TYPE_BF16] = matmul_float,
        [TYPE_Q4_0] = matmul_quantized, [TYPE_Q4_1] = matmul_quantized, [TYPE_Q5_0] = matmul_quantized,
        [TYPE_Q5_1] = matmul_quantized, [TYPE_Q8_0] = matmul_quantized, [TYPE_Q2_K] = matmul_quantized,
        [TYPE_Q3_K] = matmul_quantized, [TYPE_Q4_K] = matmul_quantized, [TYPE_Q5_K] = matmul_quantized,
        [TYPE_Q6_K] = matmul_quantized,
    },
    .rmsnorm = rmsnorm,
    .layernorm = layernorm,
    .add = add,
    .silu_mul = silu_mul,
    .gelu = gelu,
    .rope = rope,
    .narrow = narrow,
    .attend = attend,
    .attend_merge = attend_merge,
    .argmax = argmax,
    .scratch_bytes = sizeof(struct matmul_scratch),
    .token_block = TOKEN_BLOCK_MAX,
};
