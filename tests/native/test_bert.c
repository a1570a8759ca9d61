/* The embedding engine on small random models: its vectors against a forward pass in double precision that is written
 * here, and requests step by step. */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bert.h"
#include "bert_model.h"
#include "bert_writer.h"
#include "check.h"
#include "engine_test.h"
#include "encoder.h"
#include "kernels.h"
#include "platform.h"

enum { MAX_TEXT = 160, MAX_EMBD = 128, MAX_FF = 256 };

/* ---- a forward pass in double precision ---- */

static double gelu(double x) { return 0.5 * x * (1 + erf(x / sqrt(2.0))); }

static void product(double *y, const struct weight *w, const float *bias, const double *x)
{
    static float row[MAX_FF];
    for (int r = 0; r < w->n_out; r++) {
        dequantize_row(w->type, (const char *)w->data + (size_t)r * w->row_bytes, row, w->n_in);
        y[r] = bias ? (double)bias[r] : 0;
        for (int i = 0; i < w->n_in; i++) y[r] += (double)row[i] * x[i];
    }
}

static void layernorm(double *x, const struct bert_norm *norm, int n, double eps)
{
    double mean = 0, var = 0;
    for (int i = 0; i < n; i++) mean += x[i] / n;
    for (int i = 0; i < n; i++) var += (x[i] - mean) * (x[i] - mean) / n;
    for (int i = 0; i < n; i++) x[i] = (x[i] - mean) / sqrt(var + eps) * (double)norm->w[i] + (double)norm->b[i];
}

static void add_row(double *x, const struct weight *w, uint32_t row)
{
    static float v[MAX_FF];
    if (!w->data) return;
    dequantize_row(w->type, (const char *)w->data + row * w->row_bytes, v, w->n_in);
    for (int i = 0; i < w->n_in; i++) x[i] += (double)v[i];
}

static void reference(const struct bert_model *m, const uint32_t *tokens, int n, double *vector)
{
    static double x[MAX_TEXT][MAX_EMBD], q[MAX_TEXT][MAX_EMBD], k[MAX_TEXT][MAX_EMBD], v[MAX_TEXT][MAX_EMBD];
    const struct bert_hparams *hp = &m->hp;
    int d = hp->head_dim;
    memset(x, 0, sizeof x);
    for (int t = 0; t < n; t++) {
        add_row(x[t], &m->embedding, tokens[t]);
        add_row(x[t], &m->positions, (uint32_t)t);
        add_row(x[t], &m->types, 0);
        layernorm(x[t], &m->embedding_norm, hp->n_embd, (double)hp->norm_eps);
    }
    for (int i = 0; i < hp->n_layer; i++) {
        const struct bert_layer *l = &m->layers[i];
        for (int t = 0; t < n; t++) {
            product(q[t], &l->wq, l->bq, x[t]);
            product(k[t], &l->wk, l->bk, x[t]);
            product(v[t], &l->wv, l->bv, x[t]);
        }
        for (int t = 0; t < n; t++) {
            double heads[MAX_EMBD] = {0}, y[MAX_EMBD], hidden[MAX_FF];
            for (int h = 0; h < hp->n_head; h++) {
                double p[MAX_TEXT], top = -INFINITY, sum = 0;
                for (int s = 0; s < n; s++) {
                    p[s] = 0;
                    for (int j = h * d; j < (h + 1) * d; j++) p[s] += q[t][j] * k[s][j] / sqrt(d);
                    top = fmax(top, p[s]);
                }
                for (int s = 0; s < n; s++) sum += p[s] = exp(p[s] - top);
                for (int s = 0; s < n; s++)
                    for (int j = h * d; j < (h + 1) * d; j++) heads[j] += p[s] / sum * v[s][j];
            }
            product(y, &l->wo, l->bo, heads);
            for (int j = 0; j < hp->n_embd; j++) x[t][j] += y[j];
            layernorm(x[t], &l->attn_norm, hp->n_embd, (double)hp->norm_eps);
            product(hidden, &l->up, l->b_up, x[t]);
            for (int j = 0; j < hp->n_ff; j++) hidden[j] = gelu(hidden[j]);
            product(y, &l->down, l->b_down, hidden);
            for (int j = 0; j < hp->n_embd; j++) x[t][j] += y[j];
            layernorm(x[t], &l->out_norm, hp->n_embd, (double)hp->norm_eps);
        }
    }
    double length = 0;
    for (int j = 0; j < hp->n_embd; j++) {
        vector[j] = 0;
        for (int t = 0; t < (hp->pooling == POOLING_MEAN ? n : 1); t++) vector[j] += x[t][j];
        length += vector[j] * vector[j];
    }
    for (int j = 0; j < hp->n_embd; j++) vector[j] /= sqrt(length);
}

/* ---- models and texts ---- */

struct bytes {
    unsigned char *data; /* outlives the model */
    struct bert_model *m;
};

static struct bytes make(const struct random_bert *o)
{
    struct infer_error err;
    size_t n;
    struct bytes b = {.data = random_bert_bytes(o, &n)};
    struct gguf *g = gguf_open_memory(b.data, n, &err);
    b.m = g ? bert_model_load(g, &err) : NULL;
    if (!b.m) fprintf(stderr, "%s\n", err.message), exit(1);
    return b;
}

static void drop(struct bytes *b)
{
    bert_model_free(b->m);
    free(b->data);
}

static const struct kernels *best(void)
{
    const char *why;
    return kernels_select(&why);
}

static struct pool *make_pool(int threads)
{
    struct infer_error err;
    return pool_create(threads, best()->scratch_bytes, "test", &err);
}

static uint32_t tokens[MAX_TEXT];

static void fill_tokens(int n_vocab)
{
    uint64_t seed = 5;
    for (int i = 0; i < MAX_TEXT; i++) tokens[i] = (uint32_t)(random_u64(&seed) % (uint64_t)n_vocab);
}

static const int lengths[] = {1, 2, 16, 48, 49, 63, 64, 65, 130, 160};
enum { N_LENGTHS = sizeof lengths / sizeof *lengths };

static void compare(const char *what, const struct random_bert *o, double tolerance)
{
    struct bytes b = make(o);
    struct infer_error err;
    struct pool *p = make_pool(2);
    struct encoder *e = encoder_create(b.m, best(), MAX_TEXT, &err);
    fill_tokens(o->n_vocab);
    for (int i = 0; i < N_LENGTHS; i++) {
        float vector[MAX_EMBD];
        double expected[MAX_EMBD], off = 0, dot = 0;
        encoder_forward(e, p, &(struct encoder_text){tokens, lengths[i], vector}, 1);
        reference(b.m, tokens, lengths[i], expected);
        for (int j = 0; j < o->n_embd; j++) {
            off = fmax(off, fabs((double)vector[j] - expected[j]));
            dot += (double)vector[j] * expected[j];
        }
        CHECKF(off < tolerance, "%s, %d tokens: off by %g, cosine %.7f", what, lengths[i], off, dot);
    }
    encoder_free(e);
    pool_free(p);
    drop(&b);
}

static void float_models_give_the_reference_vectors(void)
{
    struct random_bert o = random_bert_defaults();
    compare("F32", &o, 2e-4); /* Q, K and V are 16-bit integers */
    o.type = o.embedding_type = TYPE_F16;
    compare("F16", &o, 2e-4);
    o.type = TYPE_BF16, o.n_head = 4, o.pooling = 2;
    compare("BF16, heads of 16, CLS", &o, 3e-4);
    o.no_biases = o.no_types = true, o.n_head = 1;
    compare("no biases, one head", &o, 3e-4);
    o.n_embd = 60, o.n_head = 3, o.n_ff = 50;
    compare("heads of 20", &o, 3e-4);
    o.n_head = 4;
    compare("heads of 15", &o, 3e-4);
}

static void quantized_models_stay_near_the_reference(void)
{
    struct random_bert o = random_bert_defaults();
    o.type = TYPE_Q8_0;
    compare("Q8_0", &o, 8e-3);
    o.n_head = 4, o.embedding_type = TYPE_Q8_0;
    compare("Q8_0, heads of 16", &o, 8e-3);
    o.type = TYPE_Q4_0, o.pooling = 2;
    compare("Q4_0 weights as the file has them, CLS", &o, 2e-2);
}

static void short_texts_are_computed_finer(void)
{
    struct random_bert o = random_bert_defaults();
    o.type = TYPE_Q8_0;
    struct bytes b = make(&o);
    struct infer_error err;
    struct pool *p = make_pool(1);
    struct encoder *e = encoder_create(b.m, best(), MAX_TEXT, &err);
    double off[2] = {0};
    for (int i = 0; i < 40; i++) { /* 48 and 49 tokens */
        for (int j = 0; j < MAX_TEXT; j++) tokens[j] = (tokens[j] * 7 + 3) % 100;
        float vector[MAX_EMBD];
        double expected[MAX_EMBD];
        encoder_forward(e, p, &(struct encoder_text){tokens, 48 + i % 2, vector}, 1);
        reference(b.m, tokens, 48 + i % 2, expected);
        for (int j = 0; j < o.n_embd; j++) off[i % 2] += pow((double)vector[j] - expected[j], 2);
    }
    CHECKF(off[0] * 20 < off[1], "48 tokens %g, 49 tokens %g", off[0], off[1]);
    encoder_free(e);
    pool_free(p);
    drop(&b);
}

static void neighbours_threads_and_tables_change_no_bit(void)
{
    struct random_bert o = random_bert_defaults();
    fill_tokens(o.n_vocab);
    for (int quantized = 0; quantized < 2; quantized++) {
        o.type = quantized ? TYPE_Q8_0 : TYPE_F16;
        struct bytes b = make(&o);
        struct infer_error err;
        float alone[N_LENGTHS][MAX_EMBD], together[N_LENGTHS][MAX_EMBD];
        struct pool *one = pool_create(1, kernels_scalar.scratch_bytes, "one", &err);
        struct encoder *e = encoder_create(b.m, &kernels_scalar, 4 * MAX_TEXT, &err);
        for (int i = 0; i < N_LENGTHS; i++)
            encoder_forward(e, one, &(struct encoder_text){tokens, lengths[i], alone[i]}, 1);
        encoder_free(e);
        pool_free(one);
        for (const struct kernels *const *k = kernels_available(); *k; k++)
            for (int threads = 1; threads <= 3; threads++) {
                struct pool *p = pool_create(threads, (*k)->scratch_bytes, "test", &err);
                e = encoder_create(b.m, *k, 4 * MAX_TEXT, &err);
                struct encoder_text texts[N_LENGTHS];
                for (int i = 0; i < N_LENGTHS; i++) {
                    int at = (i + threads) % N_LENGTHS; /* in another order each time */
                    texts[i] = (struct encoder_text){tokens, lengths[at], together[at]};
                }
                encoder_forward(e, p, texts, N_LENGTHS);
                for (int i = 0; i < N_LENGTHS; i++)
                    CHECKF(memcmp(alone[i], together[i], (size_t)o.n_embd * sizeof(float)) == 0,
                           "%s, %d threads, %d tokens, %s", (*k)->name, threads, lengths[i], tensor_type_name(o.type));
                encoder_free(e);
                pool_free(p);
            }
        drop(&b);
    }
}

/* ---- refusals ---- */

static void refused(const struct random_bert *o, void (*spoil)(struct gguf_writer *w), const char *names)
{
    struct infer_error err = {0};
    struct gguf_writer w = {0};
    random_bert_put(&w, o);
    if (spoil) spoil(&w);
    size_t bytes;
    unsigned char *data = gw_finish(&w, &bytes);
    struct gguf *g = gguf_open_memory(data, bytes, &err);
    CHECK(g != NULL);
    struct bert_model *m = bert_model_load(g, &err);
    CHECKF(!m && strstr(err.message, names), "'%s' does not name '%s'", err.message, names);
    if (m) bert_model_free(m);
    else gguf_close(g);
    free(data);
}

static void add_alibi(struct gguf_writer *w) { gw_f32(w, "bert.attention.max_alibi_bias", 8.0f); }
static void add_key(struct gguf_writer *w) { gw_u32(w, "bert.new_thing", 1); }
static void add_tensor(struct gguf_writer *w)
{
    float v[64] = {0};
    gw_tensor(w, "cls.weight", TYPE_F32, 1, (uint64_t[]){64}, v, sizeof v);
}

static void what_is_not_implemented_is_refused_by_name(void)
{
    struct random_bert o = random_bert_defaults();
    refused(&o, add_alibi, "bert.attention.max_alibi_bias is 8");
    refused(&o, add_key, "bert.new_thing");
    refused(&o, add_tensor, "cls.weight");
    o.pooling = 3;
    refused(&o, NULL, "bert.pooling_type is 3");
    o = random_bert_defaults();
    o.n_ctx = 8193;
    refused(&o, NULL, "bert.context_length is 8193");
    o = random_bert_defaults();
    o.n_head = 7;
    refused(&o, NULL, "head_count 7 does not divide");
}

/* ---- the engine ---- */

static struct engine_limits limits;

static struct engine *load(unsigned char **data, int max_open)
{
    struct random_bert o = random_bert_defaults();
    struct infer_error err;
    size_t bytes;
    *data = random_bert_bytes(&o, &bytes);
    atomic_store(&limits.max_batch, 1);
    atomic_store(&limits.max_queue, max_open - 1);
    struct engine_config c = {.kernels = best(), .limits = &limits};
    struct engine *e = bert_load(gguf_open_memory(*data, bytes, &err), &c, &err);
    if (!e) fprintf(stderr, "%s\n", err.message), exit(1);
    return e;
}

struct client {
    struct embed_request *r;
    int n_done;
};

static void on_done(struct request *base) { ((struct client *)base->user)->n_done++; }

static struct client prepare(struct engine *e, int n_inputs, int n_tokens)
{
    struct infer_error err;
    struct client c = {.r = embed_request_create(e, &err)};
    for (int i = 0; i < n_inputs; i++)
        if (embed_request_add(c.r, tokens + i % 8, (size_t)n_tokens * 4, "input", &err) != 0)
            fprintf(stderr, "%s\n", err.message), exit(1);
    return c;
}

static int admit(struct engine *e, struct client *c, struct infer_error *err)
{
    c->r->base.user = c;
    c->r->base.done = on_done;
    c->r->base.timing.admitted_at = platform_now_us();
    atomic_store(&c->r->base.state, REQUEST_QUEUED);
    return e->ops->embed(e, c->r, err);
}

static void a_single_text_does_not_wait_for_thousands(void)
{
    unsigned char *data;
    struct engine *e = load(&data, 10);
    struct pool *p = make_pool(1);
    struct infer_error err;
    fill_tokens(100);
    struct client many = prepare(e, 2000, 100), one = prepare(e, 1, 100), alone = prepare(e, 1, 100);
    CHECK(admit(e, &many, &err) == 0);
    CHECK(e->ops->step(e, p) && many.r->n_done > 0);
    CHECK(admit(e, &one, &err) == 0);
    CHECK(e->ops->step(e, p));
    CHECK(one.n_done == 1 && many.n_done == 0);
    while (e->ops->step(e, p)) {
    }
    CHECK(many.n_done == 1 && many.r->base.error.code == INFER_OK && many.r->n_done == 2000);
    CHECK(admit(e, &alone, &err) == 0);
    while (e->ops->step(e, p)) {
    }
    size_t bytes = (size_t)alone.r->n_embd * sizeof(float);
    CHECK(memcmp(alone.r->vectors, one.r->vectors, bytes) == 0);
    CHECK(memcmp(alone.r->vectors, many.r->vectors, bytes) == 0);
    CHECK(memcmp(alone.r->vectors, many.r->vectors + 1600 * alone.r->n_embd, bytes) == 0); /* the same tokens */
    check_idle(e);
    embed_request_free(many.r), embed_request_free(one.r), embed_request_free(alone.r);
    e->ops->free(e);
    pool_free(p);
    free(data);
}

static void requests_can_be_cancelled_timed_out_and_aborted(void)
{
    unsigned char *data;
    struct engine *e = load(&data, 10);
    struct pool *p = make_pool(1);
    struct infer_error err;
    fill_tokens(100);
    struct client cancelled = prepare(e, 50, 60), late = prepare(e, 50, 60), aborted = prepare(e, 50, 60);
    late.r->base.timeout_us = 1;
    CHECK(admit(e, &cancelled, &err) == 0 && e->ops->step(e, p));
    atomic_store(&cancelled.r->base.cancelled, true);
    CHECK(admit(e, &late, &err) == 0);
    late.r->base.timing.admitted_at -= 10;
    CHECK(e->ops->step(e, p));
    CHECK(cancelled.n_done == 1 && cancelled.r->base.error.code == INFER_CANCELLED);
    CHECKF(strstr(cancelled.r->base.error.message, "of 50 inputs"), "%s", cancelled.r->base.error.message);
    CHECK(late.n_done == 1 && late.r->base.error.code == INFER_CANCELLED && strstr(late.r->base.error.message, "timed out"));
    CHECK(admit(e, &aborted, &err) == 0 && e->ops->step(e, p));
    e->ops->abort(e);
    CHECK(aborted.n_done == 1 && aborted.r->base.error.code == INFER_NOMODEL);
    check_idle(e);
    embed_request_free(cancelled.r), embed_request_free(late.r), embed_request_free(aborted.r);
    e->ops->free(e);
    pool_free(p);
    free(data);
}

/* Around what one step takes: ENCODER_TEXTS texts, BERT_STEP_TOKENS tokens. Every text has the vector that it has alone. */
static void steps_are_filled_to_their_last_text_and_token(void)
{
    static const struct {
        int n_texts, n_tokens; /* of each text but the last, */
        int n_last;            /* which has these */
    } cases[] = {
        {ENCODER_TEXTS - 1, 3, 3}, {ENCODER_TEXTS, 3, 3}, {ENCODER_TEXTS + 1, 3, 3}, {2 * ENCODER_TEXTS + 1, 1, 1},
        {4, 128, 127}, {4, 128, 128}, {4, 128, 129}, {5, 128, 1}, {BERT_STEP_TOKENS / 8, 8, 8}, {BERT_STEP_TOKENS / 8, 8, 9},
    };
    unsigned char *data;
    struct engine *e = load(&data, 10);
    struct pool *p = make_pool(2);
    struct infer_error err;
    fill_tokens(100);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int n = cases[i].n_texts, n_embd;
        struct client all = {.r = embed_request_create(e, &err)};
        for (int j = 0; j < n; j++) {
            int n_tokens = j == n - 1 ? cases[i].n_last : cases[i].n_tokens;
            CHECK(embed_request_add(all.r, tokens + j % 31, (size_t)n_tokens * 4, "input", &err) == 0);
        }
        CHECK(admit(e, &all, &err) == 0);
        while (e->ops->step(e, p)) {
        }
        CHECK(all.n_done == 1 && all.r->base.error.code == INFER_OK && all.r->n_done == n);
        n_embd = all.r->n_embd;
        for (int j = 0; j < n; j++) {
            struct client one = {.r = embed_request_create(e, &err)};
            int n_tokens = j == n - 1 ? cases[i].n_last : cases[i].n_tokens;
            CHECK(embed_request_add(one.r, tokens + j % 31, (size_t)n_tokens * 4, "input", &err) == 0);
            CHECK(admit(e, &one, &err) == 0);
            while (e->ops->step(e, p)) {
            }
            CHECKF(memcmp(one.r->vectors, all.r->vectors + (ptrdiff_t)j * n_embd, (size_t)n_embd * sizeof(float)) == 0,
                   "text %d of %d, %d tokens", j, n, n_tokens);
            embed_request_free(one.r);
        }
        embed_request_free(all.r);
        check_idle(e);
    }
    e->ops->free(e);
    pool_free(p);
    free(data);
}

/* Pairs and triples of lengths, so that the arrays grow from every size to every other one nearby. */
static void inputs_of_any_length_lie_one_behind_the_other(void)
{
    enum { MOST = 70 };
    unsigned char *data;
    struct engine *e = load(&data, 2);
    struct infer_error err;
    fill_tokens(100);
    for (int first = 1; first <= MOST; first++)
        for (int second = 1; second <= MOST; second++) {
            const int parts[] = {first, second, first + second};
            struct embed_request *r = embed_request_create(e, &err);
            int n = 0;
            for (int i = 0; i < 3; i++) {
                CHECK(embed_request_add(r, tokens + i, (size_t)parts[i] * sizeof *tokens, "input", &err) == 0);
                n += parts[i];
                CHECKF(r->n_tokens == n && r->cap_tokens >= n, "%d and %d: room for %d of %d", first, second, r->cap_tokens, n);
                CHECK(r->n_inputs == i + 1 && r->cap_inputs >= i + 1 && r->ends[i] == n);
            }
            for (int i = 0, at = 0; i < 3; at += parts[i++])
                CHECK(memcmp(r->tokens + at, tokens + i, (size_t)parts[i] * sizeof *tokens) == 0);
            embed_request_free(r);
        }
    e->ops->free(e);
    free(data);
}

static void bad_input_is_refused_and_leaves_the_request_as_it_was(void)
{
    unsigned char *data;
    struct engine *e = load(&data, 2);
    struct infer_error err;
    fill_tokens(100);
    struct client c = prepare(e, 1, 3);
    static const uint32_t bad[] = {1, 2, 100};
    CHECK(embed_request_add(c.r, bad, 12, "key 'x'", &err) == -1 && err.code == INFER_BADTOKENS);
    CHECKF(strcmp(err.message, "key 'x' holds token 100 at position 2, outside the vocabulary of 100") == 0, "%s", err.message);
    CHECK(embed_request_add(c.r, bad, 11, "key 'x'", &err) == -1 && err.code == INFER_BADTOKENS);
    CHECK(embed_request_add(c.r, bad, 0, "key 'x'", &err) == -1 && err.code == INFER_BADTOKENS);
    static const uint32_t long_text[161] = {0};
    CHECK(embed_request_add(c.r, long_text, sizeof long_text, "key 'x'", &err) == -1 && err.code == INFER_CONTEXT);
    CHECK(c.r->n_inputs == 1 && c.r->n_tokens == 3);
    struct client none = {.r = embed_request_create(e, &err)}, b = prepare(e, 1, 3), full = prepare(e, 1, 3);
    CHECK(admit(e, &none, &err) == -1 && err.code == INFER_BADTOKENS);
    CHECK(admit(e, &c, &err) == 0 && admit(e, &b, &err) == 0);
    CHECK(admit(e, &full, &err) == -1 && err.code == INFER_BUSY);
    e->ops->abort(e);
    struct request text = {0};
    CHECK(e->ops->admit(e, &text, &err) == -1 && err.code == INFER_ERR);
    check_idle(e);
    embed_request_free(c.r), embed_request_free(none.r), embed_request_free(b.r), embed_request_free(full.r);
    e->ops->free(e);
    free(data);
}

int main(void)
{
    RUN(float_models_give_the_reference_vectors);
    RUN(quantized_models_stay_near_the_reference);
    RUN(short_texts_are_computed_finer);
    RUN(neighbours_threads_and_tables_change_no_bit);
    RUN(what_is_not_implemented_is_refused_by_name);
    RUN(a_single_text_does_not_wait_for_thousands);
    RUN(requests_can_be_cancelled_timed_out_and_aborted);
    RUN(steps_are_filled_to_their_last_text_and_token);
    RUN(inputs_of_any_length_lie_one_behind_the_other);
    RUN(bad_input_is_refused_and_leaves_the_request_as_it_was);
    return check_result();
}
