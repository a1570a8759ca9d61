/* The forward pass, on small random models of every variant: against a forward pass
 * in double precision written here independently, and for equal bits however the work is cut. */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "blocks.h"
#include "check.h"
#include "decoder.h"
#include "product.h"

/* ---- random models, in memory ---- */

static uint64_t random_state;

static double uniform(void) /* in [-1, 1); splitmix64 */
{
    uint64_t z = random_state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (double)(z ^ (z >> 31)) / 9223372036854775808.0 - 1;
}

struct variant {
    const char *name;
    int n_vocab, n_embd, n_layer, n_head, n_head_kv, k_dim, v_dim, n_ff, n_rot;
    enum rope_order order;
    bool bias, bo, qk_norm, rope_freqs, tied;
    enum tensor_type type, embedding_type;
};

static const struct variant float_variants[] = {
    {"llama", 83, 64, 3, 4, 2, 16, 16, 96, 16, ROPE_INTERLEAVED, 0, 0, 0, 0, 1, TYPE_F32, TYPE_F32},
    {"llama 3, rope_freqs, untied, F16", 83, 64, 2, 6, 2, 32, 32, 128, 32, ROPE_INTERLEAVED, 0, 0, 0, 1, 0, TYPE_F16, TYPE_F16},
    {"qwen2, biases", 83, 64, 2, 4, 1, 16, 16, 96, 16, ROPE_NEOX, 1, 0, 0, 0, 1, TYPE_F32, TYPE_F16},
    {"qwen3, head size apart, norms", 83, 48, 2, 4, 2, 32, 32, 80, 32, ROPE_NEOX, 0, 0, 1, 0, 1, TYPE_F16, TYPE_F32},
    {"no shape is a multiple of anything, BF16", 61, 40, 2, 3, 3, 21, 13, 52, 10, ROPE_NEOX, 1, 1, 0, 0, 0, TYPE_BF16, TYPE_BF16},
    {"group of 9 on one KV head", 83, 64, 2, 9, 1, 24, 40, 64, 24, ROPE_INTERLEAVED, 0, 1, 1, 1, 0, TYPE_F32, TYPE_F32},
};

static const struct variant quantized_variants[] = {
    {"smollm2-like, Q4_1 and Q8_0", 96, 96, 2, 3, 1, 32, 32, 160, 32, ROPE_INTERLEAVED, 0, 0, 0, 0, 1, TYPE_Q4_1, TYPE_Q8_0},
    {"qwen3-like, Q4_K and Q6_K", 64, 256, 1, 4, 2, 64, 64, 256, 64, ROPE_NEOX, 0, 0, 1, 0, 1, TYPE_Q4_K, TYPE_Q6_K},
    {"heads of half a block, Q5_0", 70, 64, 2, 4, 2, 16, 16, 96, 16, ROPE_NEOX, 1, 1, 0, 1, 0, TYPE_Q5_0, TYPE_F16},
    {"more tokens than can be likely", 4500, 64, 1, 4, 2, 16, 16, 96, 16, ROPE_INTERLEAVED, 0, 0, 0, 0, 1, TYPE_Q4_0, TYPE_Q8_0},
    {"rows too long for sixteen in a thread's buffer", 48, 8192, 1, 2, 1, 16, 16, 32, 16, ROPE_NEOX, 0, 0, 0, 0, 1, TYPE_Q4_0, TYPE_Q8_0},
};

/* Those that are run in many ways: not the one with long rows, which would take most of the time. */
static const struct variant *const all_variants[] = {
    &float_variants[0], &float_variants[1], &float_variants[2], &float_variants[3], &float_variants[4],
    &float_variants[5], &quantized_variants[0], &quantized_variants[1], &quantized_variants[2],
    &quantized_variants[3],
};
enum { N_VARIANTS = sizeof all_variants / sizeof *all_variants };

static uint16_t to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return (uint16_t)(u >> 16);
}

static void put_f16(void *p, double v)
{
    uint16_t h = f32_to_f16((float)v);
    memcpy(p, &h, sizeof h);
}

/* Where a block has its floats, and the minimum that centres random integers, in units of d. */
static const struct {
    size_t d, m;
    double centre;
} block_floats[TYPE_COUNT] = {
    [TYPE_Q4_1] = {offsetof(struct block_q4_1, d), offsetof(struct block_q4_1, m), -7.5},
    [TYPE_Q5_0] = {offsetof(struct block_q5_0, d), 0, 0},
    [TYPE_Q8_0] = {offsetof(struct block_q8_0, d), 0, 0},
    [TYPE_Q4_K] = {offsetof(struct block_q4_K, d), offsetof(struct block_q4_K, dmin), 7.5},
    [TYPE_Q6_K] = {offsetof(struct block_q6_K, d), 0, 0},
};

static void random_block(enum tensor_type t, unsigned char *block, double d)
{
    for (int i = 0; i < tensor_type_info(t)->block_bytes; i++) block[i] = (unsigned char)((uniform() + 1) * 127.9);
    put_f16(block + block_floats[t].d, d);
    if (block_floats[t].centre != 0) put_f16(block + block_floats[t].m, d * block_floats[t].centre);
}

/* Of variance 1/n_in, so that activations keep their size. */
static struct weight random_weight(enum tensor_type t, int n_out, int n_in)
{
    struct weight w = {.type = t, .n_out = n_out, .n_in = n_in, .row_bytes = tensor_row_bytes(t, n_in)};
    unsigned char *data = malloc((size_t)n_out * w.row_bytes);
    double deviation = 1 / sqrt(n_in);
    size_t n = (size_t)n_out * (size_t)n_in;
    if (t == TYPE_F32 || t == TYPE_F16 || t == TYPE_BF16) {
        for (size_t i = 0; i < n; i++) {
            float v = (float)(uniform() * sqrt(3) * deviation);
            uint16_t h = t == TYPE_F16 ? f32_to_f16(v) : to_bf16(v);
            memcpy(data + i * (t == TYPE_F32 ? 4 : 2), t == TYPE_F32 ? (void *)&v : (void *)&h, t == TYPE_F32 ? 4 : 2);
        }
    } else {
        const struct tensor_type_info *info = tensor_type_info(t);
        float y[256];
        double square = 0;
        random_block(t, data, 1);
        dequantize_row(t, data, y, info->block);
        for (int i = 0; i < info->block; i++) square += y[i] * y[i];
        double d = deviation / sqrt(square / info->block);
        for (size_t b = 0; b < n / (size_t)info->block; b++) random_block(t, data + b * (size_t)info->block_bytes, d);
    }
    w.data = data;
    return w;
}

static float *random_floats(int n, double mean, double spread)
{
    float *p = malloc((size_t)n * sizeof *p);
    for (int i = 0; i < n; i++) p[i] = (float)(mean + spread * uniform());
    return p;
}

static struct model *random_model(const struct variant *v)
{
    random_state = 42;
    struct model *m = calloc(1, sizeof *m);
    m->hp = (struct hparams){.n_vocab = v->n_vocab, .n_embd = v->n_embd, .n_layer = v->n_layer, .n_head = v->n_head,
                             .n_head_kv = v->n_head_kv, .k_dim = v->k_dim, .v_dim = v->v_dim, .n_ff = v->n_ff,
                             .n_ctx_train = 4096, .norm_eps = 1e-5f, .rope_order = v->order, .n_rot = v->n_rot,
                             .rope_base = 10000, .n_q = v->n_head * v->k_dim, .n_k = v->n_head_kv * v->k_dim,
                             .n_v = v->n_head_kv * v->v_dim};
    m->embedding = random_weight(v->embedding_type, v->n_vocab, v->n_embd);
    m->tied = v->tied;
    m->output = v->tied ? m->embedding : random_weight(v->type, v->n_vocab, v->n_embd);
    m->output_norm = random_floats(v->n_embd, 1, 0.3);
    if (v->rope_freqs) m->rope_freqs = random_floats(v->n_rot / 2, 3, 2);
    m->layers = calloc((size_t)v->n_layer, sizeof *m->layers);
    for (int i = 0; i < v->n_layer; i++) {
        struct layer *l = &m->layers[i];
        l->attn_norm = random_floats(v->n_embd, 1, 0.3);
        l->ffn_norm = random_floats(v->n_embd, 1, 0.3);
        l->wq = random_weight(v->type, m->hp.n_q, v->n_embd);
        l->wk = random_weight(v->type, m->hp.n_k, v->n_embd);
        l->wv = random_weight(v->type, m->hp.n_v, v->n_embd);
        l->wo = random_weight(v->type, v->n_embd, v->n_head * v->v_dim);
        l->gate = random_weight(v->type, v->n_ff, v->n_embd);
        l->up = random_weight(v->type, v->n_ff, v->n_embd);
        l->down = random_weight(v->type, v->n_embd, v->n_ff);
        if (v->bias) {
            l->bq = random_floats(m->hp.n_q, 0, 0.5);
            l->bk = random_floats(m->hp.n_k, 0, 0.5);
            l->bv = random_floats(m->hp.n_v, 0, 0.5);
        }
        if (v->bo) l->bo = random_floats(v->n_embd, 0, 0.5);
        if (v->qk_norm) {
            l->q_norm = random_floats(v->k_dim, 1.5, 0.5);
            l->k_norm = random_floats(v->k_dim, 1.5, 0.5);
        }
    }
    return m;
}

static void free_floats(const float *p)
{
    free((void *)(uintptr_t)p);
}

static void free_weight(const struct weight *w)
{
    free((void *)(uintptr_t)w->data);
}

static void free_model(struct model *m)
{
    free_weight(&m->embedding);
    if (!m->tied) free_weight(&m->output);
    free_floats(m->output_norm);
    free_floats(m->rope_freqs);
    for (int i = 0; i < m->hp.n_layer; i++) {
        struct layer *l = &m->layers[i];
        const struct weight *w[] = {&l->wq, &l->wk, &l->wv, &l->wo, &l->gate, &l->up, &l->down};
        for (size_t j = 0; j < sizeof w / sizeof *w; j++) free_weight(w[j]);
        const float *f[] = {l->attn_norm, l->ffn_norm, l->bq, l->bk, l->bv, l->bo, l->q_norm, l->k_norm};
        for (size_t j = 0; j < sizeof f / sizeof *f; j++) free_floats(f[j]);
    }
    free(m->layers);
    free(m);
}

/* ---- the forward pass in double precision ---- */

static double *reference_product(const struct weight *w, const double *x, const float *bias)
{
    double *y = malloc((size_t)w->n_out * sizeof *y);
    float *row = malloc((size_t)w->n_in * sizeof *row);
    for (int r = 0; r < w->n_out; r++) {
        dequantize_row(w->type, (const char *)w->data + (size_t)r * w->row_bytes, row, w->n_in);
        y[r] = bias ? bias[r] : 0;
        for (int i = 0; i < w->n_in; i++) y[r] += row[i] * x[i];
    }
    free(row);
    return y;
}

static void reference_norm(double *y, const double *x, const float *w, int n, double eps)
{
    double mean = 0;
    for (int i = 0; i < n; i++) mean += x[i] * x[i] / n;
    for (int i = 0; i < n; i++) y[i] = x[i] / sqrt(mean + eps) * w[i];
}

static void reference_rotate(const struct model *m, double *x, int pos)
{
    int half = m->hp.n_rot / 2;
    for (int i = 0; i < half; i++) {
        double angle = pos * pow(m->hp.rope_base, -(double)i / half);
        if (m->rope_freqs) angle = angle / m->rope_freqs[i];
        double *re = m->hp.rope_order == ROPE_NEOX ? &x[i] : &x[2 * i];
        double *im = m->hp.rope_order == ROPE_NEOX ? &x[i + half] : &x[2 * i + 1];
        double r = *re * cos(angle) - *im * sin(angle);
        *im = *im * cos(angle) + *re * sin(angle);
        *re = r;
    }
}

/* Logits [n, n_vocab] and, if asked for, normalized final states [n, n_embd] of one sequence; layer by layer, all tokens at once. */
static double *reference_logits(const struct model *m, const uint32_t *ids, int n, double *hidden)
{
    const struct hparams *hp = &m->hp;
    int E = hp->n_embd, KD = hp->k_dim, VD = hp->v_dim, group = hp->n_head / hp->n_head_kv;
    double *x = malloc((size_t)(n * E) * sizeof *x), *h = malloc((size_t)E * sizeof *h);
    double **q = malloc((size_t)n * sizeof *q), **k = malloc((size_t)n * sizeof *k), **v = malloc((size_t)n * sizeof *v);
    double *att = malloc((size_t)(hp->n_head * VD) * sizeof *att), *p = malloc((size_t)n * sizeof *p);
    float *row = malloc((size_t)E * sizeof *row);
    for (int t = 0; t < n; t++) {
        dequantize_row(m->embedding.type, (const char *)m->embedding.data + ids[t] * m->embedding.row_bytes, row, E);
        for (int i = 0; i < E; i++) x[t * E + i] = row[i];
    }
    for (int il = 0; il < hp->n_layer; il++) {
        const struct layer *l = &m->layers[il];
        for (int t = 0; t < n; t++) {
            reference_norm(h, x + t * E, l->attn_norm, E, hp->norm_eps);
            q[t] = reference_product(&l->wq, h, l->bq);
            k[t] = reference_product(&l->wk, h, l->bk);
            v[t] = reference_product(&l->wv, h, l->bv);
            for (int i = 0; i < hp->n_head; i++) {
                if (l->q_norm) reference_norm(q[t] + i * KD, q[t] + i * KD, l->q_norm, KD, hp->norm_eps);
                reference_rotate(m, q[t] + i * KD, t);
            }
            for (int i = 0; i < hp->n_head_kv; i++) {
                if (l->k_norm) reference_norm(k[t] + i * KD, k[t] + i * KD, l->k_norm, KD, hp->norm_eps);
                reference_rotate(m, k[t] + i * KD, t);
            }
        }
        for (int t = 0; t < n; t++) {
            for (int i = 0; i < hp->n_head; i++) {
                double top = -INFINITY, sum = 0;
                for (int j = 0; j <= t; j++) {
                    p[j] = 0;
                    for (int d = 0; d < KD; d++) p[j] += q[t][i * KD + d] * k[j][i / group * KD + d] / sqrt(KD);
                    if (p[j] > top) top = p[j];
                }
                for (int j = 0; j <= t; j++) sum += p[j] = exp(p[j] - top);
                for (int d = 0; d < VD; d++) {
                    att[i * VD + d] = 0;
                    for (int j = 0; j <= t; j++) att[i * VD + d] += p[j] / sum * v[j][i / group * VD + d];
                }
            }
            double *o = reference_product(&l->wo, att, l->bo);
            for (int i = 0; i < E; i++) x[t * E + i] += o[i];
            free(o);
            reference_norm(h, x + t * E, l->ffn_norm, E, hp->norm_eps);
            double *gate = reference_product(&l->gate, h, NULL), *up = reference_product(&l->up, h, NULL);
            for (int i = 0; i < hp->n_ff; i++) gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
            double *down = reference_product(&l->down, gate, NULL);
            for (int i = 0; i < E; i++) x[t * E + i] += down[i];
            free(gate);
            free(up);
            free(down);
        }
        for (int t = 0; t < n; t++) {
            free(q[t]);
            free(k[t]);
            free(v[t]);
        }
    }
    double *logits = malloc((size_t)n * (size_t)hp->n_vocab * sizeof *logits);
    for (int t = 0; t < n; t++) {
        reference_norm(h, x + t * E, m->output_norm, E, hp->norm_eps);
        if (hidden) memcpy(hidden + t * E, h, (size_t)E * sizeof *h);
        double *y = reference_product(&m->output, h, NULL);
        memcpy(logits + (size_t)t * (size_t)hp->n_vocab, y, (size_t)hp->n_vocab * sizeof *y);
        free(y);
    }
    free(x);
    free(h);
    free(q);
    free(k);
    free(v);
    free(att);
    free(p);
    free(row);
    return logits;
}

/* ---- running a decoder ---- */

enum { N = 300 }; /* tokens of the test's prompt: several pages and spans */

static void make_ids(const struct model *m, uint32_t *ids, int n, uint64_t seed)
{
    random_state = seed;
    for (int i = 0; i < n; i++) ids[i] = (uint32_t)((uniform() + 1) / 2 * m->hp.n_vocab);
}

struct runner {
    const struct kernels *k;
    int threads, slice; /* tokens of the prompt in one step */
    int others;         /* sequences that run beside it */
    bool last_only;     /* logits of the last slice only; the other rows are 0 */
    int every;          /* logits of every so many tokens only, hidden states of those right behind; 0: of all */
};

static bool is_nth(struct runner how, int token, int n) { return how.every == 0 || token % how.every == n; }

/* Logits [n, n_vocab] of the ids as one sequence; hidden [n, n_embd] may be NULL. */
static float *run(const struct model *m, struct runner how, const uint32_t *ids, int n, float *hidden)
{
    enum { OTHERS = 5, OTHER_TOKENS = 200 };
    size_t n_vocab = (size_t)m->hp.n_vocab;
    struct infer_error err;
    struct pool *p = pool_create(how.threads, how.k->scratch_bytes, "t", &err);
    struct decoder *d = decoder_create(m, how.k, n + OTHERS * 16, n, &err);
    struct kv_cache *kv = kv_create(&m->hp, kv_page_bytes(&m->hp) * 40, &err);
    struct kv_seq seq = {0}, other[OTHERS] = {{0}};
    struct batch_token *batch = calloc((size_t)n + OTHERS * 16, sizeof *batch);
    float *logits = calloc((size_t)n * n_vocab, sizeof *logits);
    if (!p || !d || !kv || !batch || !logits) abort();
    if (kv_seq_start(kv, &seq, ids, n, n, 0) != 0) abort();
    for (int i = 0; i < how.others; i++)
        if (kv_seq_start(kv, &other[i], ids, n, OTHER_TOKENS, 0) != 0) abort();

    for (int done = 0; done < n; done += how.slice) {
        int take = n - done < how.slice ? n - done : how.slice, at = 0;
        bool wanted = !how.last_only || done + take == n;
        int n_rows = 0;
        for (int i = 0; i <= how.others; i++) {
            if (i == how.others / 2) { /* ours, in the middle */
                if (kv_seq_reserve(&seq, done + take) != 0) abort();
                for (int j = done; j < done + take; j++)
                    batch[at++] = (struct batch_token){
                        .id = ids[j], .pos = j, .seq = &seq, .logits_row = wanted && is_nth(how, j, 0) ? n_rows++ : -1,
                        .hidden = hidden && is_nth(how, j, 1) ? hidden + j * m->hp.n_embd : NULL};
            }
            int tokens = 1 + 5 * i % 16; /* slices of several lengths; they end at different times */
            if (i == how.others || other[i].n_tokens + tokens > OTHER_TOKENS) continue;
            if (kv_seq_reserve(&other[i], other[i].n_tokens + tokens) != 0) abort();
            for (int j = 0; j < tokens; j++)
                batch[at++] = (struct batch_token){.id = ids[(done + 7 * i + j) % n], .pos = other[i].n_tokens + j,
                                                   .seq = &other[i], .logits_row = -1};
        }
        const float *rows = decoder_forward(d, p, batch, at);
        for (int i = 0; i < at; i++)
            if (batch[i].logits_row >= 0)
                memcpy(logits + (size_t)batch[i].pos * n_vocab, rows + (size_t)batch[i].logits_row * n_vocab, n_vocab * sizeof *rows);
        for (int i = 0; i < at; i++) batch[i].seq->n_tokens = batch[i].pos + 1;
    }
    kv_seq_end(&seq, ids, 0);
    for (int i = 0; i < how.others; i++) kv_seq_end(&other[i], ids, 0);
    free(batch);
    kv_free(kv);
    decoder_free(d);
    pool_free(p);
    return logits;
}

/* ---- the tests ---- */

static double range_of(const double *x, size_t n)
{
    double low = x[0], high = x[0];
    for (size_t i = 0; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    return high - low;
}

static double worst_of(const float *x, const double *want, size_t n)
{
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double e = fabs(x[i] - want[i]);
        if (!(e <= worst)) worst = e; /* NaN too */
    }
    return worst;
}

static void compare_with_reference(const struct variant *v, double tolerance)
{
    struct model *m = random_model(v);
    uint32_t ids[N];
    make_ids(m, ids, N, 7);
    size_t n_logits = (size_t)N * (size_t)v->n_vocab, n_hidden = (size_t)N * (size_t)v->n_embd;
    double *want_hidden = malloc(n_hidden * sizeof *want_hidden);
    double *want = reference_logits(m, ids, N, want_hidden);
    float *hidden = malloc(n_hidden * sizeof *hidden);
    float *got = run(m, (struct runner){.k = kernels_available()[0], .threads = 2, .slice = N}, ids, N, hidden);
    double worst = worst_of(got, want, n_logits) / range_of(want, n_logits);
    CHECKF(worst <= tolerance, "%s: logits differ by %g of their range", v->name, worst);
    worst = worst_of(hidden, want_hidden, n_hidden) / range_of(want_hidden, n_hidden);
    CHECKF(worst <= tolerance, "%s: hidden states differ by %g of their range", v->name, worst);
    free(got);
    free(hidden);
    free(want);
    free(want_hidden);
    free_model(m);
}

static void float_models_match_double_precision(void)
{
    for (size_t i = 0; i < sizeof float_variants / sizeof *float_variants; i++)
        compare_with_reference(&float_variants[i], 1e-3);
}

/* The bound is of the activations' 8 bits on small models with random weights, where errors
 * don't average out; real models are compared elsewhere. */
static void quantized_models_stay_near_double_precision(void)
{
    for (size_t i = 0; i < sizeof quantized_variants / sizeof *quantized_variants; i++)
        compare_with_reference(&quantized_variants[i], 0.03);
}

static int descending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* docs/accuracy.md: less than 6 nats below the largest logit, or, where more than 256 are, fewer sixteenths of
 * a nat, but one at least. */
static float likely_nats(const float *logits, int n)
{
    float *sorted = malloc((size_t)n * sizeof *sorted), nats = 6;
    memcpy(sorted, logits, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, descending);
    while (n > 256 && nats > 1 / 16.0f && sorted[0] - sorted[256] < nats) nats -= 1 / 16.0f;
    free(sorted);
    return nats;
}

/* Which logits have rounding errors in them; spread: what the weights of the last norm are multiplied with. Returns for how
 * many tokens all that are within 6 nats were likely. */
static int check_likely(const struct variant *v, float spread)
{
    const struct kernels *k = &kernels_scalar;
    struct model *m = random_model(v);
    float *norm = (float *)(uintptr_t)m->output_norm;
    for (int i = 0; i < v->n_embd; i++) norm[i] *= spread;
    uint32_t ids[N];
    make_ids(m, ids, N, 7);
    float *hidden = malloc((size_t)(N * v->n_embd) * sizeof *hidden), *y = malloc((size_t)(2 * v->n_vocab) * sizeof *y);
    float *got = run(m, (struct runner){.k = kernels_available()[0], .threads = 2, .slice = N}, ids, N, hidden);
    enum { MOST = 8192 };
    static int8_t q[2 * MOST];
    static float scale[2 * MOST / ACT_BLOCK], fsum[2 * MOST / ACT_SUM_BLOCK];
    static int32_t sum[2 * MOST / ACT_SUM_BLOCK];
    struct act a = {.n_rows = 2, .n = v->n_embd, .ld_x = (size_t)v->n_embd, .q = q, .scale = scale, .sum = sum, .fsum = fsum};
    void *scratch = aligned_alloc(64, (k->scratch_bytes + 63) / 64 * 64 + 64);
    int all = 0, wrong = 0, refined = 0;
    for (int t = 0; t < N; t++) {
        a.x = hidden + t * v->n_embd;
        k->quantize(&a, 0);
        act_quantize_error(k, &a, a.x, 0, 1, 0, a.n);
        k->matmul[m->output.type](&m->output, 0, v->n_vocab, &a, y, (size_t)v->n_vocab, scratch);
        float top = y[k->argmax(y, v->n_vocab)], nats = likely_nats(y, v->n_vocab);
        all += nats == 6;
        for (int i = 0; i < v->n_vocab; i++) {
            bool likely = top - y[i] < nats;
            float want = likely ? y[i] + y[v->n_vocab + i] : y[i];
            refined += likely;
            wrong += memcmp(&got[t * v->n_vocab + i], &want, sizeof want) != 0;
        }
    }
    CHECKF(wrong == 0, "%s, spread %g: %d of %d logits are not what the rule says", v->name, spread, wrong, N * v->n_vocab);
    CHECKF(refined >= N && refined <= 257 * N, "%s, spread %g: %d likely logits of %d tokens", v->name, spread, refined, N);
    free(scratch);
    free(got);
    free(y);
    free(hidden);
    free_model(m);
    return all;
}

static void likely_logits_have_rounding_errors(void)
{
    CHECK(check_likely(&quantized_variants[3], 1) == 0);   /* thousands within 6 nats */
    CHECK(check_likely(&quantized_variants[3], 10) > 200); /* few */
    CHECK(check_likely(&quantized_variants[4], 1) == N);
}

/* Such rows are refused; only quantized ones are copied to be refined. */
static void longer_rows_than_a_buffer_are_refused(void)
{
    for (int quantized = 0; quantized < 2; quantized++) {
        const struct variant *v = quantized ? &quantized_variants[0] : &float_variants[0];
        struct model *m = random_model(v);
        struct infer_error err = {0};
        m->output.row_bytes = 1 << 18;
        struct decoder *d = decoder_create(m, kernels_available()[0], 1, 1, &err);
        CHECK((d == NULL) == (quantized == 1));
        CHECK(!quantized || strstr(err.message, "rows of 262144 bytes in the output matrix"));
        decoder_free(d);
        free_model(m);
    }
}

/* Bit for bit. */
static void expect_equal(const struct variant *v, const struct model *m, const float *want, struct runner how,
                         const uint32_t *ids)
{
    float *got = run(m, how, ids, N, NULL);
    size_t n = (size_t)N * (size_t)v->n_vocab, wrong = 0, first = 0;
    size_t begin = how.last_only ? (size_t)((N - 1) / how.slice * how.slice) * (size_t)v->n_vocab : 0;
    for (size_t i = n; i-- > begin;)
        if (memcmp(&got[i], &want[i], sizeof *got) != 0) wrong++, first = i;
    CHECKF(wrong == 0, "%s, %s, %d threads, slices of %d, %d others: %zu of %zu differ, first at token %zu", v->name,
           how.k->name, how.threads, how.slice, how.others, wrong, n, first / (size_t)v->n_vocab);
    free(got);
}

static void compare_cuts(const struct runner *cuts, size_t n_cuts)
{
    for (int i = 0; i < N_VARIANTS; i++) {
        const struct variant *v = all_variants[i];
        struct model *m = random_model(v);
        uint32_t ids[N];
        make_ids(m, ids, N, 7);
        float *want = run(m, (struct runner){.k = kernels_available()[0], .threads = 1, .slice = N}, ids, N, NULL);
        for (size_t c = 0; c < n_cuts; c++) {
            struct runner how = cuts[c];
            how.k = kernels_available()[0];
            expect_equal(v, m, want, how, ids);
        }
        free(want);
        free_model(m);
    }
}

static void threads_change_no_bit(void)
{
    static const struct runner cuts[] = {{.threads = 2, .slice = N}, {.threads = 3, .slice = 64}, {.threads = 7, .slice = N}};
    compare_cuts(cuts, sizeof cuts / sizeof *cuts);
}

static void slices_of_the_prompt_change_no_bit(void)
{
    static const struct runner cuts[] = {{.threads = 1, .slice = 1}, {.threads = 2, .slice = 1},
                                         {.threads = 2, .slice = 3}, {.threads = 2, .slice = 64}};
    compare_cuts(cuts, sizeof cuts / sizeof *cuts);
}

static void slices_without_logits_leave_the_same_keys_and_values(void)
{
    static const struct runner cuts[] = {{.threads = 2, .slice = 60, .last_only = true},
                                         {.threads = 1, .slice = 7, .others = 2, .last_only = true}};
    compare_cuts(cuts, sizeof cuts / sizeof *cuts);
}

/* The last layer leaves out tokens that nobody asks for. */
static void outputs_of_some_tokens_are_those_of_all(void)
{
    static const struct runner cuts[] = {{.threads = 1, .slice = N, .every = 7}, {.threads = 2, .slice = N, .every = 2},
                                         {.threads = 2, .slice = 40, .others = 3, .every = 3}, {.threads = 3, .slice = 5, .every = 9}};
    for (int i = 0; i < N_VARIANTS; i++) {
        const struct variant *v = all_variants[i];
        struct model *m = random_model(v);
        uint32_t ids[N];
        make_ids(m, ids, N, 7);
        float *want_hidden = calloc((size_t)N * (size_t)v->n_embd, sizeof *want_hidden), *hidden = calloc((size_t)N * (size_t)v->n_embd, sizeof *hidden);
        struct runner how = {.k = kernels_available()[0], .threads = 1, .slice = N};
        float *want = run(m, how, ids, N, want_hidden);
        for (size_t c = 0; c < sizeof cuts / sizeof *cuts; c++) {
            how = cuts[c];
            how.k = kernels_available()[0];
            float *got = run(m, how, ids, N, hidden);
            int wrong = 0;
            for (int t = 0; t < N; t++) {
                size_t logits = (size_t)t * (size_t)v->n_vocab, state = (size_t)t * (size_t)v->n_embd;
                if (is_nth(how, t, 0)) wrong += memcmp(got + logits, want + logits, (size_t)v->n_vocab * sizeof *got) != 0;
                if (is_nth(how, t, 1)) wrong += memcmp(hidden + state, want_hidden + state, (size_t)v->n_embd * sizeof *hidden) != 0;
            }
            CHECKF(wrong == 0, "%s, output of every %d tokens, %d threads, slices of %d: %d differ", v->name, how.every, how.threads,
                   how.slice, wrong);
            free(got);
        }
        free(want);
        free(want_hidden);
        free(hidden);
        free_model(m);
    }
}

static void other_sequences_in_the_batch_change_no_bit(void)
{
    static const struct runner cuts[] = {{.threads = 1, .slice = N, .others = 2}, {.threads = 2, .slice = 1, .others = 5},
                                         {.threads = 3, .slice = 40, .others = 3}};
    compare_cuts(cuts, sizeof cuts / sizeof *cuts);
}

static void every_kernel_table_computes_the_same_bits(void)
{
    for (int i = 0; i < N_VARIANTS; i++) {
        const struct variant *v = all_variants[i];
        struct model *m = random_model(v);
        uint32_t ids[N];
        make_ids(m, ids, N, 7);
        float *want = run(m, (struct runner){.k = &kernels_scalar, .threads = 2, .slice = N}, ids, N, NULL);
        for (const struct kernels *const *k = kernels_available(); *k; k++)
            if (*k != &kernels_scalar) {
                expect_equal(v, m, want, (struct runner){.k = *k, .threads = 2, .slice = N}, ids);
                expect_equal(v, m, want, (struct runner){.k = *k, .threads = 2, .slice = 29, .others = 1}, ids);
            }
        free(want);
        free_model(m);
    }
}

int main(void)
{
    RUN(float_models_match_double_precision);
    RUN(quantized_models_stay_near_double_precision);
    RUN(likely_logits_have_rounding_errors);
    RUN(longer_rows_than_a_buffer_are_refused);
    RUN(threads_change_no_bit);
    RUN(slices_of_the_prompt_change_no_bit);
    RUN(slices_without_logits_leave_the_same_keys_and_values);
    RUN(outputs_of_some_tokens_are_those_of_all);
    RUN(other_sequences_in_the_batch_change_no_bit);
    RUN(every_kernel_table_computes_the_same_bits);
    return check_result();
}
