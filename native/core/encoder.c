/* The forward pass of BERT models. Every token of a text sees all of its tokens:
 *
 *     token + position + type embedding ─ layernorm ─ x
 *
 *     x ─┬─ Wq + bq ───────────────┐
 *        ├─ Wk + bk ─▶ K pages ────┤
 *        ├─ Wv + bv ─▶ V pages ────┴─ attention ─ Wo + bo ─┐
 *        └──────────────────────────────────────────────── + ─ layernorm ─ x'
 *     x' ┬─ Wup + b ─ gelu ─ Wdown + b ─┐
 *        └───────────────────────────── + ─ layernorm ─ x''
 *
 *     mean of x over the text's tokens, or x of its first ─ divided by its length
 *
 * Every thread of the pool runs forward() from top to bottom; a phase is work shared in chunks, and a barrier
 * ends it. K and V of one layer at a time lie in pages like those of the KV cache, which is what the attention
 * kernel reads: 16-bit integers with scales.
 *
 * Precision. Matrices of 16-bit floats are split into two planes of int8 (planes.h) when the encoder is made, and
 * multiplied with int8 activations and with the rounding errors of these, which are quantized too: nearly as exact as
 * float32, and faster. F32 matrices are multiplied as floats. With matrices that the file has quantized, int8
 * activations have to do: a vector is an average over its text's tokens, so their rounding, which is random, fades with
 * the number of tokens. Short texts have too few for that: of up to FINE_TOKENS tokens the errors are multiplied
 * there, too. All this depends on the file and on the text's own length only. The measured effect is in docs/benchmarks.md.
 *
 * Ownership: an encoder owns its buffers, allocated once for the largest batch, and the planes. Called by the conductor
 * only; inside a step the pool's threads share them as the phases say. */
#include "encoder.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "embed.h"
#include "kv_head.h"
#include "loader.h"
#include "planes.h"
#include "platform.h"
#include "product.h"

enum {
    FINE_TOKENS = 48,
    QUERY_ROWS = 64,      /* most tokens of a text that attend together */
    BLOCK = 256,          /* most tokens of a chunk: one unpacking of weights serves them; */
    SMALL_BLOCK = 128,    /* of a step that would have only one such block */
    TILE_ROWS = 128,      /* most rows of a chunk */
    CHUNKS_OF_THREAD = 4, /* at least so many, for the threads to end together */
    LOCAL_FLOATS = BLOCK * TILE_ROWS, /* a thread's own tile, on its stack */
    MAX_PAGES = BERT_MAX_CONTEXT / KV_PAGE, /* of a text */
};
_Static_assert(LOCAL_FLOATS >= (int)LOADER_MAX_HEAD_DIM, "a head of one token");

/* A text of the batch. Its tokens are rows first .. first+n-1 of the activations. */
struct text {
    const struct encoder_text *in;
    int first, n, page; /* page: its first one */
};

/* Tokens of one text and one head that attend together. */
struct attention_item {
    int text, head, row, n_rows; /* row: of the text */
};

/* A matrix as it is multiplied: as the file has it, or in two planes. */
struct matrix {
    struct weight w, low; /* low.data NULL: one plane */
    bool splits;          /* into two */
};

struct layer {
    struct matrix wq, wk, wv, wo, up, down;
};

/* Inputs of products. Row n_tokens + i holds the rounding errors of token i, where a product wants them. */
struct input {
    struct act act;
    float *low_scale; /* of the tokens, for the planes' lower half: scale * PLANES_LOW */
};

/* What the products that read an input want of it. */
struct wants {
    bool quantized, low;
    int errors; /* of tokens 0 .. errors-1 */
};

struct encoder {
    const struct bert_model *m;
    const struct kernels *k;
    struct layer *layers;      /* [n_layer] */
    float *places;             /* [n_ctx + 1, n_embd]: position and type; in the last row the type alone */
    void *planes;
    size_t planes_bytes;
    int max_tokens, max_pages;
    int head_unit;             /* fewest heads that a chunk of Q, K and V has: whole tiles of rows */
    size_t q_stride;           /* kv_q_count(head_dim) */
    bool quantize_heads_later; /* head_dim is no multiple of ACT_BLOCK */

    /* The step. */
    struct text texts[ENCODER_TEXTS];
    int n_texts, n_tokens;
    int n_fine;                /* tokens 0 .. n_fine-1 are those of short texts */
    int *token_text;           /* [max_tokens] */
    struct attention_item *items;
    int n_items;

    /* Activations, all inside `memory`. */
    float *x;                  /* [max_tokens, n_embd] the stream */
    struct input input;        /* [2 * max_tokens, n_embd] x */
    float *q, *k_out, *v_out;  /* [max_tokens, n_embd] */
    int16_t *q_narrow;         /* [max_tokens, n_head, q_stride]: q, as attention takes it */
    float *q_scale;            /* [max_tokens, n_head], 1/sqrt(head_dim) in it */
    int16_t *pages;            /* [max_pages, n_head] integers of a struct kv_head, */
    uint16_t *scales;          /* and their scales */
    struct input heads;        /* [2 * max_tokens, n_embd] attention's output */
    struct input hidden;       /* [2 * max_tokens, n_ff] gelu(up) */
    float *heads_x, *hidden_x; /* their floats, to write; hidden_x only where a down matrix is float */
    void *memory;
    size_t memory_bytes, other_bytes;
};

/* A thread's tiles. */
struct local {
    _Alignas(64) float tile[LOCAL_FLOATS]; /* products */
    _Alignas(64) float more[LOCAL_FLOATS]; /* products that are added to others */
};

/* ---- pieces of phases ---- */

/* Tokens whose rounding errors are multiplied with w, too: 0 .. the result - 1. */
static int errors_of(const struct encoder *e, const struct matrix *w)
{
    return w->low.data ? e->n_tokens : weight_is_quantized(&w->w) ? e->n_fine : 0;
}

static void want(const struct encoder *e, struct wants *all, const struct matrix *w)
{
    int errors = errors_of(e, w);
    all->quantized |= weight_is_quantized(&w->w);
    all->low |= w->low.data != NULL;
    if (errors > all->errors) all->errors = errors;
}

static struct wants wants_of(const struct encoder *e, const struct matrix *w)
{
    struct wants all = {0};
    want(e, &all, w);
    return all;
}

static struct wants wants_of_layer(const struct encoder *e, const struct layer *l)
{
    struct wants all = wants_of(e, &l->wq);
    want(e, &all, &l->wk);
    want(e, &all, &l->wv);
    return all;
}

/* y += rows row0 <= r < row1 of w times a, tokens of y ld_y apart. */
static void multiply_more(const struct encoder *e, struct local *mine, const struct weight *w, int row0, int row1,
                          const struct act *a, float *y, size_t ld_y, void *scratch)
{
    int most = LOCAL_FLOATS / a->n_rows / ROW_TILE * ROW_TILE;
    for (int r = row0, n; r < row1; r += n) {
        n = row1 - r < most ? row1 - r : most;
        multiply_tile(e->k, w, r, r + n, a, mine->more, scratch);
        for (int i = 0; i < a->n_rows; i++) e->k->add(y + (size_t)i * ld_y + (r - row0), mine->more + i * n, n);
    }
}

/* y[(t-t0)*ld_y + r-row0] = rows row0 <= r < row1 of w times tokens t0 <= t < t1 of the input. */
static void multiply(const struct encoder *e, struct local *mine, const struct matrix *w, int row0, int row1,
                     const struct input *in, int t0, int t1, float *y, size_t ld_y, void *scratch)
{
    int errors = errors_of(e, w);
    struct act rows = act_rows(&in->act, t0, t1);
    multiply_rows(e->k, &w->w, row0, row1, &rows, y, ld_y, scratch);
    if (w->low.data) {
        struct act low = rows;
        low.scale = in->low_scale + (size_t)t0 * (size_t)low.n / ACT_BLOCK;
        multiply_more(e, mine, &w->low, row0, row1, &low, y, ld_y, scratch);
    }
    if (t0 < errors) {
        struct act of_errors = act_rows(&in->act, e->n_tokens + t0, e->n_tokens + (t1 < errors ? t1 : errors));
        multiply_more(e, mine, &w->w, row0, row1, &of_errors, y, ld_y, scratch);
    }
}

/* y += elements row0 .. row0+n-1 of a bias, which may be NULL. */
static void add_bias(const struct encoder *e, float *y, const float *bias, int row0, int n)
{
    if (bias) e->k->add(y, bias + row0, n);
}

/* Columns c0 .. c0+n-1 of a token as input of products that want this. */
static void quantize(const struct encoder *e, struct input *in, struct wants wants, int token, int c0, const float *x, int n)
{
    if (!wants.quantized) return;
    act_quantize_part(e->k, &in->act, token, c0, x, n);
    if (token < wants.errors) act_quantize_error(e->k, &in->act, x, token, e->n_tokens + token, c0, n);
    if (!wants.low) return;
    size_t at = ((size_t)token * (size_t)in->act.n + (size_t)c0) / ACT_BLOCK, n_blocks = (size_t)n / ACT_BLOCK;
    for (size_t b = at; b < at + n_blocks; b++) in->low_scale[b] = in->act.scale[b] * PLANES_LOW;
}

static int block_of_step(const struct encoder *e)
{
    return e->n_tokens > BLOCK ? BLOCK : SMALL_BLOCK;
}

/* Rows of a chunk of n_out: many, which pays for gathering the tokens, but enough chunks for all threads. */
static int rows_of_chunk(const struct pool_thread *t, const struct encoder *e, int n_out, int least)
{
    int rows = TILE_ROWS / least * least, block = block_of_step(e), blocks = (e->n_tokens + block - 1) / block;
    if (rows == 0) return least;
    while (rows > least && (n_out + rows - 1) / rows * blocks < CHUNKS_OF_THREAD * t->count) rows -= least;
    return rows;
}

static struct kv_head page_of(const struct encoder *e, int page, int head)
{
    size_t at = (size_t)page * (size_t)e->m->hp.n_head + (size_t)head;
    return (struct kv_head){.data = e->pages + at * kv_count(e->m->hp.head_dim, e->m->hp.head_dim),
                            .scale = e->scales + at * KV_SCALES};
}

/* ---- the phases, in the order of forward() ---- */

/* x = layernorm(token + (position + type)). */
static void embed(struct pool_thread *t, struct encoder *e)
{
    const struct bert_model *m = e->m;
    int n_embd = m->hp.n_embd, i, end;
    struct wants wants = wants_of_layer(e, &e->layers[0]);
    while (pool_share(t, e->n_tokens, 1, &i, &end)) {
        const struct text *text = &e->texts[e->token_text[i]];
        size_t pos = (size_t)(i - text->first), id = text->in->tokens[pos];
        float *x = e->x + (size_t)i * (size_t)n_embd;
        dequantize_row(m->embedding.type, (const char *)m->embedding.data + id * m->embedding.row_bytes, x, n_embd);
        e->k->add(x, e->places + pos * (size_t)n_embd, n_embd);
        e->k->layernorm(x, x, m->embedding_norm.w, m->embedding_norm.b, n_embd, m->hp.norm_eps);
        quantize(e, &e->input, wants, i, 0, x, n_embd);
    }
}

/* Queries into e->q_narrow, keys and values into the pages. */
static void project_qkv(struct pool_thread *t, struct encoder *e, struct local *mine, int layer)
{
    const struct bert_hparams *hp = &e->m->hp;
    const struct bert_layer *l = &e->m->layers[layer];
    const struct layer *w = &e->layers[layer];
    int head_dim = hp->head_dim;
    int unit = rows_of_chunk(t, e, hp->n_embd, e->head_unit * head_dim) / head_dim;
    size_t n_embd = (size_t)hp->n_embd;
    float scale = 1 / sqrtf((float)head_dim);
    struct chunk c;
    while (next_chunk(t, hp->n_head, unit, e->n_tokens, block_of_step(e), &c)) { /* a "row" is a head */
        int head0 = c.row0, head1 = c.row1;
        int row0 = head0 * head_dim, row1 = head1 * head_dim;
        size_t at = (size_t)c.t0 * n_embd + (size_t)row0;
        multiply(e, mine, &w->wq, row0, row1, &e->input, c.t0, c.t1, e->q + at, n_embd, t->scratch);
        multiply(e, mine, &w->wk, row0, row1, &e->input, c.t0, c.t1, e->k_out + at, n_embd, t->scratch);
        multiply(e, mine, &w->wv, row0, row1, &e->input, c.t0, c.t1, e->v_out + at, n_embd, t->scratch);
        for (int i = c.t0; i < c.t1; i++, at += n_embd) {
            const struct text *text = &e->texts[e->token_text[i]];
            int pos = i - text->first, page = text->page + pos / KV_PAGE;
            add_bias(e, e->q + at, l->bq, row0, row1 - row0);
            add_bias(e, e->k_out + at, l->bk, row0, row1 - row0);
            add_bias(e, e->v_out + at, l->bv, row0, row1 - row0);
            for (int h = head0; h < head1; h++) {
                size_t head_at = at + (size_t)((h - head0) * head_dim), q_at = (size_t)i * (size_t)hp->n_head + (size_t)h;
                e->q_scale[q_at] =
                    e->k->narrow(e->q_narrow + q_at * e->q_stride, e->q + head_at, head_dim, NARROW_BY_LENGTH) * scale;
                struct kv_head kv = page_of(e, page, h);
                kv_head_store(e->k, &kv, e->k_out + head_at, e->v_out + head_at, head_dim, head_dim,
                              pos % KV_PAGE);
            }
        }
    }
}

/* Attention of every token to all tokens of its text. */
static void attention(struct pool_thread *t, struct encoder *e, struct local *mine, int layer)
{
    const struct bert_hparams *hp = &e->m->hp;
    size_t head_dim = (size_t)hp->head_dim, n_embd = (size_t)hp->n_embd;
    struct wants wants = wants_of(e, &e->layers[layer].wo);
    struct kv_head pages[MAX_PAGES + 1];
    int at, end;
    while (pool_share(t, e->n_items, 1, &at, &end)) {
        const struct attention_item *item = &e->items[at];
        const struct text *text = &e->texts[item->text];
        struct kv_query queries[QUERY_ROWS];
        int n_pages = (text->n + KV_PAGE - 1) / KV_PAGE;
        float m[QUERY_ROWS], sum[QUERY_ROWS], *acc = mine->tile;
        for (int i = 0; i < item->n_rows; i++) {
            size_t q_at = (size_t)(text->first + item->row + i) * (size_t)hp->n_head + (size_t)item->head;
            queries[i] = (struct kv_query){.q = e->q_narrow + q_at * e->q_stride, .scale = e->q_scale[q_at], .n_keys = text->n};
        }
        for (int p = 0; p < n_pages; p++) pages[p] = page_of(e, text->page + p, item->head);
        pages[n_pages] = (struct kv_head){NULL, NULL};
        e->k->attend(queries, item->n_rows, hp->head_dim, hp->head_dim, pages, m, sum, acc, t->scratch);
        int token = text->first + item->row, column = item->head * hp->head_dim;
        float *out = e->heads_x + (size_t)token * n_embd + column;
        for (int i = 0; i < item->n_rows; i++) {
            float inv = 1 / sum[i];
            for (size_t j = 0; j < head_dim; j++) out[(size_t)i * n_embd + j] = acc[(size_t)i * head_dim + j] * inv;
        }
        if (e->quantize_heads_later) continue;
        for (int i = 0; i < item->n_rows; i++) /* not in the loop above: what was just written is slow to read in wider pieces */
            quantize(e, &e->heads, wants, token + i, column, out + (size_t)i * n_embd, hp->head_dim);
    }
    if (wants.quantized && e->quantize_heads_later) {
        pool_barrier(t);
        while (pool_share(t, e->n_tokens, 1, &at, &end))
            quantize(e, &e->heads, wants, at, 0, e->heads_x + (size_t)at * n_embd, hp->n_embd);
    }
}

/* x += w * a + bias */
static void project_residual(struct pool_thread *t, struct encoder *e, struct local *mine, const struct matrix *w,
                             const float *bias, const struct input *in)
{
    struct chunk c;
    int n_out = w->w.n_out, rows = rows_of_chunk(t, e, n_out, CHUNK_ROWS);
    while (next_chunk(t, n_out, rows, e->n_tokens, block_of_step(e), &c)) {
        int n = c.row1 - c.row0;
        multiply(e, mine, w, c.row0, c.row1, in, c.t0, c.t1, mine->tile, (size_t)n, t->scratch);
        float *y = mine->tile;
        for (int i = c.t0; i < c.t1; i++, y += n) {
            add_bias(e, y, bias, c.row0, n);
            e->k->add(e->x + (size_t)i * (size_t)n_out + c.row0, y, n);
        }
    }
}

/* x = layernorm(x), as input of the next product. */
static void normalize(struct pool_thread *t, struct encoder *e, const struct bert_norm *norm, struct wants wants)
{
    int n_embd = e->m->hp.n_embd, begin, end;
    while (pool_share(t, e->n_tokens, 4, &begin, &end))
        for (int i = begin; i < end; i++) {
            float *x = e->x + (size_t)i * (size_t)n_embd;
            e->k->layernorm(x, x, norm->w, norm->b, n_embd, e->m->hp.norm_eps);
            quantize(e, &e->input, wants, i, 0, x, n_embd);
        }
}

/* hidden = gelu(up * input + bias) */
static void project_hidden(struct pool_thread *t, struct encoder *e, struct local *mine, int layer)
{
    size_t n_ff = (size_t)e->m->hp.n_ff;
    const struct layer *w = &e->layers[layer];
    struct wants wants = wants_of(e, &w->down);
    struct chunk c;
    int rows = rows_of_chunk(t, e, (int)n_ff, CHUNK_ROWS);
    while (next_chunk(t, (int)n_ff, rows, e->n_tokens, block_of_step(e), &c)) {
        int n = c.row1 - c.row0;
        multiply(e, mine, &w->up, c.row0, c.row1, &e->input, c.t0, c.t1, mine->tile, (size_t)n, t->scratch);
        float *y = mine->tile;
        for (int i = c.t0; i < c.t1; i++, y += n) {
            add_bias(e, y, e->m->layers[layer].b_up, c.row0, n);
            e->k->gelu(y, y, n);
            if (wants.quantized) quantize(e, &e->hidden, wants, i, c.row0, y, n);
            else memcpy(e->hidden_x + (size_t)i * n_ff + c.row0, y, (size_t)n * sizeof *y);
        }
    }
}

/* The texts' vectors. */
static void pool_texts(struct pool_thread *t, struct encoder *e)
{
    size_t n_embd = (size_t)e->m->hp.n_embd;
    int at, end;
    while (pool_share(t, e->n_texts, 1, &at, &end)) {
        const struct text *text = &e->texts[at];
        const float *x = e->x + (size_t)text->first * n_embd;
        float *y = text->in->vector;
        memcpy(y, x, n_embd * sizeof *y);
        if (e->m->hp.pooling == POOLING_MEAN)
            for (int i = 1; i < text->n; i++) e->k->add(y, x + (size_t)i * n_embd, (int)n_embd);
        embed_normalize(y, (int)n_embd); /* which also makes the sum a mean */
    }
}

static void forward(struct pool_thread *t, void *arg)
{
    struct encoder *e = arg;
    const struct bert_model *m = e->m;
    struct local mine;

    embed(t, e);
    pool_barrier(t);
    for (int i = 0; i < m->hp.n_layer; i++) {
        const struct bert_layer *l = &m->layers[i];
        const struct layer *w = &e->layers[i];
        project_qkv(t, e, &mine, i);
        pool_barrier(t);
        attention(t, e, &mine, i);
        pool_barrier(t);
        project_residual(t, e, &mine, &w->wo, l->bo, &e->heads);
        pool_barrier(t);
        normalize(t, e, &l->attn_norm, wants_of(e, &w->up));
        pool_barrier(t);

        project_hidden(t, e, &mine, i);
        pool_barrier(t);
        project_residual(t, e, &mine, &w->down, l->b_down, &e->hidden);
        pool_barrier(t);
        normalize(t, e, &l->out_norm, i + 1 < m->hp.n_layer ? wants_of_layer(e, w + 1) : (struct wants){0});
        pool_barrier(t);
    }
    pool_texts(t, e);
}

/* ---- planning the step ---- */

static void plan_attention(struct encoder *e)
{
    int query_rows = LOCAL_FLOATS / e->m->hp.head_dim < QUERY_ROWS ? LOCAL_FLOATS / e->m->hp.head_dim : QUERY_ROWS;
    e->n_items = 0;
    for (int i = 0; i < e->n_texts; i++)
        for (int head = 0; head < e->m->hp.n_head; head++)
            for (int row = 0; row < e->texts[i].n; row += query_rows) {
                int n_rows = e->texts[i].n - row < query_rows ? e->texts[i].n - row : query_rows;
                e->items[e->n_items++] = (struct attention_item){.text = i, .head = head, .row = row, .n_rows = n_rows};
            }
}

void encoder_forward(struct encoder *e, struct pool *p, const struct encoder_text *texts, int n_texts)
{
    int n_pages = 0;
    e->n_texts = e->n_tokens = e->n_fine = 0;
    for (int fine = 1; fine >= 0; fine--) { /* short texts first */
        for (int i = 0; i < n_texts; i++) {
            if ((texts[i].n_tokens <= FINE_TOKENS) != fine) continue;
            e->texts[e->n_texts] = (struct text){.in = &texts[i], .first = e->n_tokens, .n = texts[i].n_tokens, .page = n_pages};
            for (int j = 0; j < texts[i].n_tokens; j++) e->token_text[e->n_tokens++] = e->n_texts;
            n_pages += (texts[i].n_tokens + KV_PAGE - 1) / KV_PAGE;
            e->n_texts++;
        }
        if (fine) e->n_fine = e->n_tokens;
    }
    plan_attention(e);
    pool_run(p, forward, e);
}

/* ---- memory ---- */

static struct input take_input(struct arena *a, size_t n_tokens, int n, float **x)
{
    struct input in = {.act = arena_take_act(a, 2 * n_tokens, n, x)};
    in.low_scale = arena_take(a, n_tokens * (size_t)n / ACT_BLOCK + 1, sizeof *in.low_scale);
    return in;
}

static void lay_out(struct encoder *e, struct arena *a)
{
    const struct bert_hparams *hp = &e->m->hp;
    size_t n = (size_t)e->max_tokens, n_embd = (size_t)hp->n_embd;
    bool float_down = false;
    for (int i = 0; i < hp->n_layer; i++) float_down |= !weight_is_quantized(&e->layers[i].down.w);
    e->x = arena_take(a, n * n_embd, sizeof *e->x);
    e->input = take_input(a, n, hp->n_embd, NULL);
    e->input.act.x = e->x;
    e->q = arena_take(a, n * n_embd, sizeof *e->q);
    e->q_narrow = arena_take(a, n * (size_t)hp->n_head * e->q_stride, sizeof *e->q_narrow);
    e->q_scale = arena_take(a, n * (size_t)hp->n_head, sizeof *e->q_scale);
    e->k_out = arena_take(a, n * n_embd, sizeof *e->k_out);
    e->v_out = arena_take(a, n * n_embd, sizeof *e->v_out);
    size_t n_kv = (size_t)e->max_pages * (size_t)hp->n_head;
    e->pages = arena_take(a, n_kv * kv_count(hp->head_dim, hp->head_dim), sizeof *e->pages);
    e->scales = arena_take(a, n_kv * KV_SCALES, sizeof *e->scales);
    e->heads = take_input(a, n, hp->n_embd, &e->heads_x);
    e->hidden = take_input(a, n, hp->n_ff, float_down ? &e->hidden_x : NULL);
}

static void fill_places(struct encoder *e)
{
    const struct bert_model *m = e->m;
    int n_embd = m->hp.n_embd;
    float *type = e->places + (size_t)m->hp.n_ctx * (size_t)n_embd; /* zeros */
    if (m->types.data) dequantize_row(m->types.type, m->types.data, type, n_embd);
    for (size_t i = 0; i < (size_t)m->hp.n_ctx; i++) {
        float *place = e->places + i * (size_t)n_embd;
        dequantize_row(m->positions.type, (const char *)m->positions.data + i * m->positions.row_bytes, place, n_embd);
        e->k->add(place, type, n_embd);
    }
}

/* The matrix as it will be multiplied; its planes in a piece of a. before: what this gave without a->base. The file is not asked
 * again, since somebody may be overwriting it. */
static struct matrix take_matrix(struct arena *a, const struct weight *w, const struct matrix *before)
{
    struct matrix m = {.w = *w, .splits = a->base ? before->splits : planes_can_split(w)};
    if (!m.splits) return m;
    void *memory = arena_take(a, planes_bytes(w), 1);
    if (a->base) planes_split(w, memory, &m.w, &m.low);
    return m;
}

/* Twice: with a->base NULL for the bytes that the planes need. */
static void take_layers(struct encoder *e, struct arena *a)
{
    for (int i = 0; i < e->m->hp.n_layer; i++) {
        const struct bert_layer *l = &e->m->layers[i];
        struct layer *to = &e->layers[i];
        to->wq = take_matrix(a, &l->wq, &to->wq);
        to->wk = take_matrix(a, &l->wk, &to->wk);
        to->wv = take_matrix(a, &l->wv, &to->wv);
        to->wo = take_matrix(a, &l->wo, &to->wo);
        to->up = take_matrix(a, &l->up, &to->up);
        to->down = take_matrix(a, &l->down, &to->down);
    }
}

struct encoder *encoder_create(const struct bert_model *m, const struct kernels *k, int max_tokens, struct infer_error *err)
{
    const struct bert_hparams *hp = &m->hp;
    if (hp->n_embd > LOCAL_FLOATS) {
        infer_fail(err, INFER_ERR, "embeddings of %d elements: at most %d can be computed", hp->n_embd, LOCAL_FLOATS);
        return NULL;
    }
    struct encoder *e = calloc(1, sizeof *e);
    if (!e) goto no_memory;
    e->m = m;
    e->k = k;
    e->max_tokens = max_tokens;
    e->max_pages = max_tokens / KV_PAGE + ENCODER_TEXTS; /* each text may leave its last page unfilled */
    e->head_unit = heads_of_whole_tiles(hp->head_dim, hp->head_dim);
    int least = e->head_unit;
    while (e->head_unit * hp->head_dim < CHUNK_ROWS) e->head_unit += least;
    e->layers = calloc((size_t)hp->n_layer, sizeof *e->layers);
    if (!e->layers) goto no_memory;
    struct arena planes = {0};
    take_layers(e, &planes);
    e->planes_bytes = planes.used;
    planes = (struct arena){.base = planes.used ? platform_map_anonymous(planes.used) : NULL};
    e->planes = planes.base;
    if (e->planes_bytes && !e->planes) goto no_memory;
    if (e->planes) take_layers(e, &planes);
    size_t n_places = (size_t)(hp->n_ctx + 1) * (size_t)hp->n_embd;
    e->places = calloc(n_places, sizeof *e->places);
    if (!e->places) goto no_memory;
    fill_places(e);
    e->q_stride = kv_q_count(hp->head_dim);
    e->quantize_heads_later = hp->head_dim % ACT_BLOCK != 0;

    size_t max_items = ((size_t)max_tokens / (size_t)(LOCAL_FLOATS / LOADER_MAX_HEAD_DIM) + ENCODER_TEXTS) * (size_t)hp->n_head;
    e->items = calloc(max_items, sizeof *e->items);
    e->token_text = calloc((size_t)max_tokens, sizeof *e->token_text);
    e->other_bytes = sizeof *e + n_places * sizeof *e->places + (size_t)hp->n_layer * sizeof *e->layers + max_items * sizeof *e->items +
                     (size_t)max_tokens * sizeof *e->token_text;
    struct arena arena = {0};
    lay_out(e, &arena);
    e->memory_bytes = arena.used;
    arena = (struct arena){.base = platform_map_anonymous(e->memory_bytes)};
    e->memory = arena.base;
    if (!e->items || !e->token_text || !e->memory) goto no_memory;
    lay_out(e, &arena);
    return e;

no_memory:
    infer_fail(err, INFER_ERR, "no memory for the activations of %d tokens (%zu MB)", max_tokens,
               e ? e->memory_bytes >> 20 : 0);
    encoder_free(e);
    return NULL;
}

void encoder_free(struct encoder *e)
{
    if (!e) return;
    platform_unmap(e->memory, e->memory_bytes);
    platform_unmap(e->planes, e->planes_bytes);
    free(e->layers);
    free(e->places);
    free(e->items);
    free(e->token_text);
    free(e);
}

size_t encoder_bytes(const struct encoder *e)
{
    return e->memory_bytes + e->planes_bytes + e->other_bytes;
}
