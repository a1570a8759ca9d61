/* The forward pass of the decoder models. One layer:
 *
 *     x ─┬─ rmsnorm ─┬─ Wq ─ (+bq) ─ (norm) ─ RoPE ─────────────┐
 *        │           ├─ Wk ─ (+bk) ─ (norm) ─ RoPE ─▶ K pages ──┤
 *        │           └─ Wv ─ (+bv) ─────────────────▶ V pages ──┴─ attention ─ Wo ─ (+bo) ─┐
 *        └──────────────────────────────────────────────────────────────────────────────── + ─ x'
 *     x' ┬─ rmsnorm ─┬─ Wgate ─ silu ─┐
 *        │           └─ Wup ───────── × ─ Wdown ─┐
 *        └────────────────────────────────────── + ─ x''
 *
 * Every thread of the pool runs forward() from top to bottom; a phase is work shared in chunks, and a
 * barrier ends it. There are five a layer: what follows a product element by element (bias, norm of a
 * head, RoPE, silu, residual sum, quantization of the next input) is done by whoever computed the chunk, while it is in
 * the cache, and the norm in front of a product is repeated by every thread where that is cheaper than a barrier. The last layer
 * goes on, after K and V, with the tokens whose output is wanted: two barriers more (keep_wanted).
 *
 * Precision. An int8 activation row is off by up to half a step. Where that costs most for its work, in the inputs of
 * K and V and of the logits of likely tokens, the row's rounding error is quantized into a second int8 row and multiplied
 * too: W*x ~ W*q + W*q', each product by the contract of kernels.h, the sum rounded once. The measured effect is
 * in docs/accuracy.md.
 *
 * Kernels compute each output by itself (kernels.h), so neither the threads nor the rest of the batch,
 * which decide on the chunks, change a bit. Attention sums over spans of
 * SPAN_KEYS keys, merged in order; who computes which span doesn't matter.
 *
 * Ownership: a decoder owns its buffers, allocated once for the largest batch. Called by the
 * conductor only; inside a step the pool's threads share them as the phases say. */
#include "decoder.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "kv_head.h"
#include "platform.h"
#include "product.h"

enum {
    SPAN_PAGES = 2, /* pages of keys that are summed as one; part of what defines the result's bits */
    SPAN_KEYS = SPAN_PAGES * KV_PAGE,

    QUERY_ROWS = 64,          /* most rows of (token, head of a group) that attend together */
    LOCAL_FLOATS = 8192,      /* a thread's own tiles, on its stack */
    FINE_FLOATS = 32768,      /* the same of products with rounding errors */
    PARTIAL_FLOATS = 2 << 20, /* 8 MB for the partial sums of spans */
    MAX_SPAN_ITEMS = 1 << 14,

    /* Tokens whose logits are likely to matter, part of what defines the result's bits: those less than LIKELY_NATS below
     * the largest, and if these are more than MOST_LIKELY, fewer of these nats, in steps. */
    LIKELY_NATS = 6,
    MOST_LIKELY = 256,
    STEPS_PER_NAT = 16, /* a power of two: comparing with a multiple of it is exact */
    LIKELY_STEPS = LIKELY_NATS * STEPS_PER_NAT,
    VOCAB_PART = 4096, /* logits that a thread looks through at a time */
};

/* What is known of a row of logits before its rounding errors are multiplied; filled by all threads. */
struct likely {
    _Atomic float top;                    /* the largest; not NaN */
    _Atomic uint32_t below[LIKELY_STEPS]; /* how many are so many steps below it */
};

/* Rows of (token, head) of one KV head of one sequence that attend to the same keys. */
struct query_group {
    struct kv_seq *seq;
    int token;      /* in the batch: the first one of the sequence's slice */
    int pos;        /* its position */
    int head;       /* KV head */
    int row, n_rows; /* row r is token r / group and query head r % group of the slice */
    int n_spans;
    float *partial; /* [n_spans] of {m [n_rows], l [n_rows], acc [n_rows, v_dim]}, or NULL: one thread does all spans */
    _Atomic int spans_left;
};

/* What a thread takes from the list of attention's work. */
struct attention_item {
    int group;
    int span; /* -1: all, in order */
};

struct decoder {
    const struct model *m;
    const struct kernels *k;
    int max_tokens, max_logits;
    int refine_rows; /* rows of the output matrix that refine takes: a tile, if so many fit into local.fine */

    /* Derived from the model. */
    int group;         /* query heads of a KV head */
    int n_att;         /* n_head * v_dim */
    int q_unit, kv_unit; /* heads that a chunk of Q, of K and V has: whole heads and whole tiles of rows */
    int query_rows;
    size_t q_stride;   /* kv_q_count(k_dim) */
    bool quantize_heads_later; /* v_dim is no multiple of ACT_BLOCK */
    double *frequency; /* [n_rot/2] radians per position */

    /* The step. */
    const struct batch_token *batch;
    int n_tokens, n_rows, n_wanted; /* tokens, rows of logits, tokens of which logits or the hidden state are wanted */
    struct batch_token *wanted; /* [max_tokens] the batch from the last layer's queries on: keep_wanted */
    int *row_token;    /* [max_logits] which token a row of logits belongs to */
    struct likely *likely; /* [max_logits] */
    struct query_group *groups;
    struct attention_item *items;
    int n_groups, n_items, max_groups;

    /* Activations, all inside `memory`. */
    float *x;          /* [max_tokens, n_embd] the residual stream */
    struct act input;  /* [2 * max_tokens, n_embd] normalized x, with rounding errors or without: fine_row */
    float *q, *k_out, *v_out; /* [max_tokens, n_q] [max_tokens, n_k] [max_tokens, n_v] */
    int16_t *q_narrow; /* [max_tokens, n_head, q_stride]: q, as attention takes it */
    float *q_scale;    /* [max_tokens, n_head], 1/sqrt(k_dim) in it */
    struct act heads;  /* [max_tokens, n_att] attention's output */
    struct act hidden; /* [max_tokens, n_ff] silu(gate) * up */
    float *input_x, *heads_x, *hidden_x; /* their x, to write; hidden_x only where a down matrix is float */
    float *tiles;      /* [max_tokens * max(2*n_ff, n_embd)] products of chunks, each chunk's in one piece */
    float *cos, *sin;  /* [max_tokens, n_rot/2] */
    float *partial;    /* [PARTIAL_FLOATS] */
    float *logits;     /* [max_logits, n_vocab] */
    void *memory;
    size_t memory_bytes, other_bytes;
};

/* A thread's tiles. */
struct local {
    _Alignas(64) float x[LOCAL_FLOATS];
    _Alignas(64) int8_t q[LOCAL_FLOATS];
    _Alignas(64) float scale[LOCAL_FLOATS / ACT_BLOCK];
    _Alignas(64) int32_t sum[LOCAL_FLOATS / ACT_SUM_BLOCK];
    _Alignas(64) float fsum[LOCAL_FLOATS / ACT_SUM_BLOCK];
    struct act input; /* the above */
    _Alignas(64) float acc[LOCAL_FLOATS], acc2[LOCAL_FLOATS]; /* [query_rows, v_dim] of attention */
    _Alignas(64) float fine[FINE_FLOATS];
};
_Static_assert(FINE_FLOATS >= 2 * TOKEN_BLOCK_MAX * ROW_TILE, "a block of tokens and its errors times a tile of rows");

/* ---- products ---- */

/* An input with rounding errors holds, for each token_block of its n rows, the rows and then as many rows of
 * their errors, so that one product takes both. Returns where row i is, and its errors in *error_row. */
static int fine_row(const struct decoder *d, int i, int n, int *error_row)
{
    int block = d->k->token_block, first = i / block * block;
    *error_row = first + i + (n - first < block ? n - first : block);
    return first + i;
}

/* y [t1-t0, ..] = rows row0 .. row1-1 of w times tokens t0 .. t1-1, one block, of an input with rounding errors,
 * which are left out. */
static void multiply_coarse(const struct decoder *d, const struct weight *w, int row0, int row1, const struct act *a,
                            int t0, int t1, float *y, size_t ld_y, void *scratch)
{
    struct act rows = act_rows(a, 2 * t0, t0 + t1);
    d->k->matmul[w->type](w, row0, row1, &rows, y, ld_y, scratch);
}

/* The same with rounding errors. */
static void multiply_fine(const struct decoder *d, struct local *mine, const struct weight *w, int row0, int row1,
                          const struct act *a, int t0, int t1, float *y, size_t ld_y, void *scratch)
{
    int n = t1 - t0;
    if (!weight_is_quantized(w)) {
        multiply_coarse(d, w, row0, row1, a, t0, t1, y, ld_y, scratch);
        return;
    }
    struct act both = act_rows(a, 2 * t0, 2 * t0 + 2 * n);
    int most = FINE_FLOATS / (2 * n) / ROW_TILE * ROW_TILE;
    for (int r = row0, rows; r < row1; r += rows) {
        rows = row1 - r < most ? row1 - r : most;
        multiply_tile(d->k, w, r, r + rows, &both, mine->fine, scratch);
        const float *coarse = mine->fine, *error = coarse + n * rows;
        for (int i = 0; i < n; i++)
            for (int k = 0; k < rows; k++) y[(size_t)i * ld_y + (size_t)(r + k)] = coarse[i * rows + k] + error[i * rows + k];
    }
}

/* ---- the phases, in the order of forward() ---- */

/* x = the tokens' embeddings; the angles of their positions. */
static void embed(struct pool_thread *t, struct decoder *d)
{
    const struct hparams *hp = &d->m->hp;
    const struct weight *e = &d->m->embedding;
    size_t half = (size_t)hp->n_rot / 2;
    int begin, end;
    while (pool_share(t, d->n_tokens, 1, &begin, &end)) {
        size_t i = (size_t)begin;
        const char *row = (const char *)e->data + d->batch[i].id * e->row_bytes;
        dequantize_row(e->type, row, d->x + i * (size_t)hp->n_embd, hp->n_embd);
        for (size_t j = 0; j < half; j++) {
            double angle = d->batch[i].pos * d->frequency[j];
            d->cos[i * half + j] = (float)cos(angle);
            d->sin[i * half + j] = (float)sin(angle);
        }
    }
}

/* How a product wants its input. */
struct precision {
    bool quantized; /* some weight that reads it is */
    bool fine;      /* with rounding errors, for multiply_fine and multiply_coarse */
};

static void normalize_rows(const struct decoder *d, struct act *a, float *y, const float *norm, const int *rows, int n,
                           int begin, int end, struct precision p)
{
    size_t n_embd = (size_t)d->m->hp.n_embd;
    for (int i = begin; i < end; i++) {
        const float *x = d->x + (size_t)(rows ? rows[i] : i) * n_embd;
        int at = i, error_at = 0;
        if (p.fine) at = fine_row(d, i, n, &error_at);
        d->k->rmsnorm(y + (size_t)at * n_embd, x, norm, (int)n_embd, d->m->hp.norm_eps);
        if (p.quantized) d->k->quantize(a, at);
        if (p.quantized && p.fine) act_quantize_error(d->k, a, y + (size_t)at * n_embd, at, error_at, 0, (int)n_embd);
    }
}

/* The normalized rows of x that the caller lists (NULL: all n), as input of a product. Few rows: each
 * thread computes them for itself. Many: they are shared out, and a barrier ends that. */
static const struct act *normalize(struct pool_thread *t, struct decoder *d, struct local *mine, const float *norm,
                                   const int *rows, int n, struct precision p)
{
    if ((p.fine ? 2 : 1) * (size_t)n * mine->input.ld_x <= LOCAL_FLOATS) {
        mine->input.n_rows = n;
        normalize_rows(d, &mine->input, mine->x, norm, rows, n, 0, n, p);
        return &mine->input;
    }
    int begin, end;
    while (pool_share(t, n, 4, &begin, &end)) normalize_rows(d, &d->input, d->input_x, norm, rows, n, begin, end, p);
    pool_barrier(t);
    return &d->input;
}

/* Norm and rotation of one head in place. */
static void finish_head(const struct decoder *d, float *x, const float *norm, int token)
{
    const struct hparams *hp = &d->m->hp;
    size_t angles = (size_t)token * (size_t)hp->n_rot / 2;
    if (norm) d->k->rmsnorm(x, x, norm, hp->k_dim, hp->norm_eps);
    d->k->rope(x, d->cos + angles, d->sin + angles, hp->n_rot, hp->rope_order == ROPE_NEOX);
}

static void keys_and_values(struct decoder *d, struct local *mine, int layer, int head0, int head1, const struct act *a,
                            int t0, int t1, void *scratch)
{
    const struct hparams *hp = &d->m->hp;
    const struct layer *l = &d->m->layers[layer];
    const struct kernels *k = d->k;
    size_t n_k = (size_t)hp->n_k, n_v = (size_t)hp->n_v;
    float *k_out = d->k_out + (size_t)t0 * n_k, *v_out = d->v_out + (size_t)t0 * n_v;
    multiply_fine(d, mine, &l->wk, head0 * hp->k_dim, head1 * hp->k_dim, a, t0, t1, k_out, n_k, scratch);
    multiply_fine(d, mine, &l->wv, head0 * hp->v_dim, head1 * hp->v_dim, a, t0, t1, v_out, n_v, scratch);
    for (int h = head0; h < head1; h++)
        for (int i = 0; i < t1 - t0; i++) {
            const struct batch_token *b = &d->batch[t0 + i];
            float *k_head = k_out + (size_t)i * n_k + h * hp->k_dim;
            float *v_head = v_out + (size_t)i * n_v + h * hp->v_dim;
            if (l->bk) k->add(k_head, l->bk + h * hp->k_dim, hp->k_dim);
            if (l->bv) k->add(v_head, l->bv + h * hp->v_dim, hp->v_dim);
            finish_head(d, k_head, l->k_norm, t0 + i);
            struct kv_head head = kv_head_of(hp, b->seq->pages[b->pos / KV_PAGE], layer, h);
            kv_head_store(k, &head, k_head, v_head, hp->k_dim, hp->v_dim, b->pos % KV_PAGE);
        }
}

static void queries(struct decoder *d, int layer, int head0, int head1, const struct act *a, int t0, int t1,
                    void *scratch)
{
    const struct hparams *hp = &d->m->hp;
    const struct layer *l = &d->m->layers[layer];
    size_t n_q = (size_t)hp->n_q;
    float *q = d->q + (size_t)t0 * n_q, scale = 1 / sqrtf((float)hp->k_dim);
    multiply_coarse(d, &l->wq, head0 * hp->k_dim, head1 * hp->k_dim, a, t0, t1, q, n_q, scratch);
    for (int h = head0; h < head1; h++)
        for (int i = 0; i < t1 - t0; i++) {
            float *q_head = q + (size_t)i * n_q + h * hp->k_dim;
            if (l->bq) d->k->add(q_head, l->bq + h * hp->k_dim, hp->k_dim);
            finish_head(d, q_head, l->q_norm, t0 + i);
            size_t at = (size_t)(t0 + i) * (size_t)hp->n_head + (size_t)h;
            d->q_scale[at] = d->k->narrow(d->q_narrow + at * d->q_stride, q_head, hp->k_dim, NARROW_BY_LENGTH) * scale;
        }
}

static int smaller(int a, int b) { return a < b ? a : b; }
static int larger(int a, int b) { return a > b ? a : b; }

/* What project_qkv is to compute. The last layer: K and V of all tokens, then Q of those whose output is wanted. */
enum { PROJECT_KV = 1, PROJECT_Q = 2, PROJECT_QKV = PROJECT_KV | PROJECT_Q };

/* Q, K and V of the input: rotated queries into d->q_narrow, rotated keys and values into the pages. */
static void project_qkv(struct pool_thread *t, struct decoder *d, struct local *mine, int layer, const struct act *input, int which)
{
    const struct hparams *hp = &d->m->hp;
    int kv_units = which & PROJECT_KV ? (hp->n_head_kv + d->kv_unit - 1) / d->kv_unit : 0;
    int q_units = which & PROJECT_Q ? (hp->n_head + d->q_unit - 1) / d->q_unit : 0;
    size_t unit_bytes = (size_t)(d->q_unit * hp->k_dim) * d->m->layers[layer].wq.row_bytes;
    struct chunk c;
    /* a "row" is a unit of heads: the larger ones first */
    while (next_units(t, kv_units + q_units, unit_bytes, d->n_tokens, d->k->token_block, &c)) {
        int kv0 = smaller(c.row0, kv_units) * d->kv_unit, kv1 = smaller(smaller(c.row1, kv_units) * d->kv_unit, hp->n_head_kv);
        if (kv0 < kv1) keys_and_values(d, mine, layer, kv0, kv1, input, c.t0, c.t1, t->scratch);
        int q0 = larger(c.row0 - kv_units, 0) * d->q_unit, q1 = smaller((c.row1 - kv_units) * d->q_unit, hp->n_head);
        if (q0 < q1) queries(d, layer, q0, q1, input, c.t0, c.t1, t->scratch);
    }
}

/* Page i of a span, where the group's head begins in it. */
static struct kv_head span_page(const struct decoder *d, int layer, const struct query_group *g, int span, int i)
{
    return kv_head_of(&d->m->hp, g->seq->pages[span * SPAN_PAGES + i], layer, g->head);
}

/* One span of one group: m, l [n_rows], acc [n_rows, v_dim]. next_g, next_span: what this thread is
 * likely to attend to after it; next_g is NULL if nothing. */
static void attend_span(const struct decoder *d, int layer, const struct query_group *g, int span,
                        const struct query_group *next_g, int next_span, float *m, float *l, float *acc, void *scratch)
{
    const struct hparams *hp = &d->m->hp;
    struct kv_query rows[QUERY_ROWS];
    int most = 0;
    for (int i = 0; i < g->n_rows; i++) {
        int token = (g->row + i) / d->group, head = g->head * d->group + (g->row + i) % d->group;
        size_t at = (size_t)(g->token + token) * (size_t)hp->n_head + (size_t)head;
        int seen = g->pos + token + 1 - span * SPAN_KEYS;
        seen = seen < 0 ? 0 : seen > SPAN_KEYS ? SPAN_KEYS : seen;
        rows[i] = (struct kv_query){.q = d->q_narrow + at * d->q_stride, .scale = d->q_scale[at], .n_keys = seen};
        if (seen > most) most = seen;
    }
    struct kv_head pages[SPAN_PAGES + 1];
    int n_pages = 0;
    for (; n_pages * KV_PAGE < most; n_pages++) pages[n_pages] = span_page(d, layer, g, span, n_pages);
    pages[n_pages] = next_g ? span_page(d, layer, next_g, next_span, 0) : (struct kv_head){NULL, NULL};
    d->k->attend(rows, g->n_rows, hp->k_dim, hp->v_dim, pages, m, l, acc, scratch);
}

/* Merges a later span's partial sums into those of the spans before it. */
static void merge_span(const struct decoder *d, const struct query_group *g, int span, float *m, float *l, float *acc,
                       const float *m2, const float *l2, const float *acc2)
{
    size_t v_dim = (size_t)d->m->hp.v_dim;
    for (int i = 0; i < g->n_rows; i++)
        if (g->pos + (g->row + i) / d->group >= span * SPAN_KEYS) /* it sees keys there */
            d->k->attend_merge(&m[i], &l[i], acc + (size_t)i * v_dim, m2[i], l2[i], acc2 + (size_t)i * v_dim, (int)v_dim);
}

/* The group's rows of attention's output, ready for Wo. */
static void finish_group(const struct decoder *d, int layer, const struct query_group *g, const float *l, float *acc)
{
    int v_dim = d->m->hp.v_dim;
    bool quantize = weight_is_quantized(&d->m->layers[layer].wo) && !d->quantize_heads_later;
    for (int i = 0; i < g->n_rows; i++) {
        int token = g->token + (g->row + i) / d->group, head = g->head * d->group + (g->row + i) % d->group;
        float *out = d->heads_x + (size_t)token * (size_t)d->n_att + head * v_dim;
        const float *row = acc + (size_t)i * (size_t)v_dim;
        float inv = 1 / l[i];
        for (int j = 0; j < v_dim; j++) out[j] = row[j] * inv;
        if (quantize) act_quantize_part(d->k, &d->heads, token, head * v_dim, out, v_dim);
    }
}

/* Attention of every query to the keys of its sequence. */
static void attention(struct pool_thread *t, struct decoder *d, struct local *mine, int layer)
{
    size_t v_dim = (size_t)d->m->hp.v_dim;
    int at, end;
    while (pool_share(t, d->n_items, 1, &at, &end)) {
        struct query_group *g = &d->groups[d->items[at].group];
        size_t n_rows = (size_t)g->n_rows;
        int span = d->items[at].span, next_span = 0;
        const struct query_group *next = NULL;
        if (at + 1 < d->n_items) {
            next = &d->groups[d->items[at + 1].group];
            next_span = d->items[at + 1].span < 0 ? 0 : d->items[at + 1].span;
        }
        if (span < 0) {
            float m[QUERY_ROWS], l[QUERY_ROWS], m2[QUERY_ROWS], l2[QUERY_ROWS];
            for (int s = 0; s < g->n_spans; s++) {
                bool last = s + 1 == g->n_spans;
                attend_span(d, layer, g, s, last ? next : g, last ? next_span : s + 1, s ? m2 : m, s ? l2 : l,
                            s ? mine->acc2 : mine->acc, t->scratch);
                if (s == 0) continue;
                merge_span(d, g, s, m, l, mine->acc, m2, l2, mine->acc2);
            }
            finish_group(d, layer, g, l, mine->acc);
            continue;
        }
        size_t stride = n_rows * (v_dim + 2);
        float *m = g->partial + (size_t)span * stride;
        attend_span(d, layer, g, span, next, next_span, m, m + n_rows, m + 2 * n_rows, t->scratch);
        if (atomic_fetch_sub_explicit(&g->spans_left, 1, memory_order_acq_rel) > 1) continue;
        /* The last one to finish merges, always in the order of the spans. */
        atomic_store_explicit(&g->spans_left, g->n_spans, memory_order_relaxed); /* for the next layer */
        m = g->partial;
        for (int s = 1; s < g->n_spans; s++) {
            const float *m2 = m + (size_t)s * stride;
            merge_span(d, g, s, m, m + n_rows, m + 2 * n_rows, m2, m2 + n_rows, m2 + 2 * n_rows);
        }
        finish_group(d, layer, g, m + n_rows, m + 2 * n_rows);
    }
    if (d->quantize_heads_later && weight_is_quantized(&d->m->layers[layer].wo)) {
        pool_barrier(t);
        int begin;
        while (pool_share(t, d->n_tokens, 1, &begin, &end)) d->k->quantize(&d->heads, begin);
    }
}

/* x += w * a (+ bias) */
static void project_residual(struct pool_thread *t, struct decoder *d, const struct weight *w, const float *bias,
                             const struct act *a)
{
    size_t n_embd = (size_t)d->m->hp.n_embd;
    struct chunk c;
    while (next_rows(t, w, d->n_tokens, d->k->token_block, &c)) {
        struct act rows = act_rows(a, c.t0, c.t1);
        int n = c.row1 - c.row0;
        float *y = d->tiles + (size_t)c.t0 * n_embd + (size_t)(c.t1 - c.t0) * (size_t)c.row0;
        multiply_tile(d->k, w, c.row0, c.row1, &rows, y, t->scratch);
        for (int i = c.t0; i < c.t1; i++, y += n) {
            if (bias) d->k->add(y, bias + c.row0, n);
            d->k->add(d->x + (size_t)i * n_embd + c.row0, y, n);
        }
    }
}

/* hidden = silu(gate * input) * (up * input) */
static void project_hidden(struct pool_thread *t, struct decoder *d, const struct layer *l, const struct act *input)
{
    size_t n_ff = (size_t)d->m->hp.n_ff;
    bool quantize = weight_is_quantized(&l->down);
    struct chunk c;
    while (next_rows(t, &l->gate, d->n_tokens, d->k->token_block, &c)) {
        struct act rows = act_rows(input, c.t0, c.t1);
        int n = c.row1 - c.row0;
        size_t tile = (size_t)rows.n_rows * (size_t)n;
        float *gate = d->tiles + 2 * ((size_t)c.t0 * n_ff + (size_t)rows.n_rows * (size_t)c.row0), *up = gate + tile;
        multiply_tile(d->k, &l->gate, c.row0, c.row1, &rows, gate, t->scratch);
        multiply_tile(d->k, &l->up, c.row0, c.row1, &rows, up, t->scratch);
        d->k->silu_mul(gate, gate, up, (int)tile);
        for (int i = c.t0; i < c.t1; i++, gate += n) {
            if (quantize)
                act_quantize_part(d->k, &d->hidden, i, c.row0, gate, n);
            else
                memcpy(d->hidden_x + (size_t)i * n_ff + c.row0, gate, (size_t)n * sizeof *gate);
        }
    }
}

static void reset_likely(struct likely *l)
{
    atomic_store_explicit(&l->top, -INFINITY, memory_order_relaxed);
    for (int i = 0; i < LIKELY_STEPS; i++) atomic_store_explicit(&l->below[i], 0, memory_order_relaxed);
}

/* top = x where x is larger. */
static void raise_top(struct likely *l, float x)
{
    float top = atomic_load_explicit(&l->top, memory_order_relaxed);
    while (x > top && !atomic_compare_exchange_weak_explicit(&l->top, &top, x, memory_order_relaxed, memory_order_relaxed)) {
    }
}

/* Adds a part of a row of logits to its counts. None is above top (argmax passes over NaN), and NaN is nowhere counted. */
static void count_likely(struct likely *l, const float *logits, int n)
{
    float top = atomic_load_explicit(&l->top, memory_order_relaxed);
    uint32_t below[LIKELY_STEPS] = {0};
    for (int i = 0; i < n; i++) {
        float nats = top - logits[i];
        if (nats < LIKELY_NATS) below[(int)(nats * STEPS_PER_NAT)]++;
    }
    for (int i = 0; i < LIKELY_STEPS; i++)
        if (below[i]) atomic_fetch_add_explicit(&l->below[i], below[i], memory_order_relaxed);
}

/* Logits so far below the largest, or further, are not likely. */
static float unlikely_nats(struct likely *l)
{
    uint32_t n = atomic_load_explicit(&l->below[0], memory_order_relaxed);
    int steps = 1;
    for (; steps < LIKELY_STEPS; steps++) {
        n += atomic_load_explicit(&l->below[steps], memory_order_relaxed);
        if (n > MOST_LIKELY) break;
    }
    return (float)steps / STEPS_PER_NAT;
}

/* logits[id[k]] += the row of rounding errors times row id[k] of the output matrix, n of them. They lie anywhere in it:
 * copied to one place they are a small matrix. */
static void refine(const struct decoder *d, struct local *mine, const struct act *error, float *logits, const int *id,
                   int n, void *scratch)
{
    struct weight rows = d->m->output;
    rows.data = mine->fine;
    rows.n_out = d->refine_rows;
    for (int k = 0; k < rows.n_out; k++) /* kernels like whole tiles: the last one again fills it up */
        memcpy((char *)mine->fine + (size_t)k * rows.row_bytes,
               (const char *)d->m->output.data + (size_t)id[k < n ? k : n - 1] * rows.row_bytes, rows.row_bytes);
    float y[ROW_TILE];
    d->k->matmul[rows.type](&rows, 0, rows.n_out, error, y, ROW_TILE, scratch);
    for (int k = 0; k < n; k++) logits[id[k]] += y[k];
}

/* Adds what the rounding errors of row i of `input` give to the likely ones of logits begin .. end-1 of that row. */
static void refine_likely(const struct decoder *d, struct local *mine, const struct act *input, int i, int begin, int end,
                          void *scratch)
{
    float *logits = d->logits + (size_t)i * (size_t)d->m->hp.n_vocab;
    float top = atomic_load_explicit(&d->likely[i].top, memory_order_relaxed), unlikely = unlikely_nats(&d->likely[i]);
    int error_at, id[ROW_TILE], n = 0;
    fine_row(d, i, d->n_rows, &error_at);
    struct act error = act_rows(input, error_at, error_at + 1);
    for (int j = begin; j < end; j++) {
        if (top - logits[j] < unlikely) id[n++] = j;
        if (n == d->refine_rows || (n > 0 && j + 1 == end)) {
            refine(d, mine, &error, logits, id, n, scratch);
            n = 0;
        }
    }
}

/* The logits of the rows that want them. */
static void project_output(struct pool_thread *t, struct decoder *d, struct local *mine)
{
    const struct model *m = d->m;
    size_t n_vocab = (size_t)m->hp.n_vocab, n_embd = (size_t)m->hp.n_embd;
    for (int i = t->index; i < d->n_tokens; i += t->count)
        if (d->batch[i].hidden)
            d->k->rmsnorm(d->batch[i].hidden, d->x + (size_t)i * n_embd, m->output_norm, (int)n_embd, m->hp.norm_eps);
    if (d->n_rows == 0) return;
    bool quantized = weight_is_quantized(&m->output);
    const struct act *input = normalize(t, d, mine, m->output_norm, d->row_token, d->n_rows,
                                        (struct precision){.quantized = quantized, .fine = true});
    struct chunk c;
    while (next_rows(t, &m->output, d->n_rows, d->k->token_block, &c)) {
        float *logits = d->logits + (size_t)c.t0 * n_vocab;
        multiply_coarse(d, &m->output, c.row0, c.row1, input, c.t0, c.t1, logits, n_vocab, t->scratch);
        for (int i = c.t0; quantized && i < c.t1; i++, logits += n_vocab)
            raise_top(&d->likely[i], logits[c.row0 + d->k->argmax(logits + c.row0, c.row1 - c.row0)]);
    }
    if (!quantized) return;
    /* Each row in parts: the parts of one row, then of the next. */
    int parts = (m->output.n_out + VOCAB_PART - 1) / VOCAB_PART, begin, end;
    for (int pass = 0; pass < 2; pass++) {
        pool_barrier(t);
        while (pool_share(t, d->n_rows * parts, 1, &begin, &end)) {
            int i = begin / parts, from = begin % parts * VOCAB_PART;
            int to = from + VOCAB_PART < m->output.n_out ? from + VOCAB_PART : m->output.n_out;
            if (pass == 0) count_likely(&d->likely[i], d->logits + (size_t)i * n_vocab + from, to - from);
            else refine_likely(d, mine, input, i, from, to, t->scratch);
        }
    }
}

/* ---- planning the step ---- */

/* A slice of one sequence: consecutive positions, tokens first .. first+n-1 of the batch. */
static void plan_slice(struct decoder *d, int first, int n)
{
    const struct hparams *hp = &d->m->hp;
    int rows = n * d->group;
    /* The last rows see the most keys: first, so that the ends of the shares are small. */
    for (int row = (rows - 1) / d->query_rows * d->query_rows; row >= 0; row -= d->query_rows)
        for (int head = 0; head < hp->n_head_kv; head++) {
            struct query_group *g = &d->groups[d->n_groups++];
            g->seq = d->batch[first].seq;
            g->token = first;
            g->pos = d->batch[first].pos;
            g->head = head;
            g->row = row;
            g->n_rows = rows - row < d->query_rows ? rows - row : d->query_rows;
            g->n_spans = (g->pos + (row + g->n_rows - 1) / d->group) / SPAN_KEYS + 1;
            g->partial = NULL;
        }
}

/* Lists attention's work: whole groups, or where these are too few to keep the threads
 * busy, spans. */
static void plan_attention(struct decoder *d, int n_threads)
{
    d->n_groups = d->n_items = 0;
    for (int i = 0, first = 0; i < d->n_tokens; i++)
        if (i + 1 == d->n_tokens || d->batch[i + 1].seq != d->batch[i].seq || d->batch[i + 1].pos != d->batch[i].pos + 1) {
            plan_slice(d, first, i + 1 - first);
            first = i + 1;
        }
    bool split = n_threads > 1 && d->n_groups < 8 * n_threads;
    size_t used = 0;
    int n_span_items = 0;
    for (int i = 0; i < d->n_groups; i++) {
        struct query_group *g = &d->groups[i];
        size_t floats = (size_t)g->n_spans * (size_t)g->n_rows * (size_t)(d->m->hp.v_dim + 2);
        if (split && g->n_spans > 1 && used + floats <= PARTIAL_FLOATS && n_span_items + g->n_spans <= MAX_SPAN_ITEMS) {
            g->partial = d->partial + used;
            used += floats;
            n_span_items += g->n_spans;
            atomic_store_explicit(&g->spans_left, g->n_spans, memory_order_relaxed);
        } else {
            d->items[d->n_items++] = (struct attention_item){.group = i, .span = -1};
        }
    }
    for (int i = 0; i < d->n_groups; i++) /* the small pieces of work last */
        for (int s = 0; d->groups[i].partial && s < d->groups[i].n_spans; s++)
            d->items[d->n_items++] = (struct attention_item){.group = i, .span = s};
}

static void set_tokens(struct decoder *d, const struct batch_token *batch, int n, int n_threads)
{
    d->batch = batch;
    d->n_tokens = d->input.n_rows = d->heads.n_rows = d->hidden.n_rows = n;
    plan_attention(d, n_threads);
}

static bool is_wanted(const struct batch_token *b) { return b->logits_row >= 0 || b->hidden; }

/* Once the last layer has all keys and values, the step goes on with the tokens whose output is wanted: moves what is
 * known of them to the front. One thread; the others wait. */
static void keep_wanted(struct decoder *d, int n_threads)
{
    size_t n_embd = (size_t)d->m->hp.n_embd, half = (size_t)d->m->hp.n_rot / 2;
    size_t to = 0;
    for (size_t from = 0; from < (size_t)d->n_tokens; from++) {
        const struct batch_token *b = &d->batch[from];
        if (!is_wanted(b)) continue;
        if (from > to) {
            memcpy(d->x + to * n_embd, d->x + from * n_embd, n_embd * sizeof *d->x);
            memcpy(d->cos + to * half, d->cos + from * half, half * sizeof *d->cos);
            memcpy(d->sin + to * half, d->sin + from * half, half * sizeof *d->sin);
        }
        if (b->logits_row >= 0) d->row_token[b->logits_row] = (int)to;
        d->wanted[to++] = *b;
    }
    set_tokens(d, d->wanted, (int)to, n_threads);
}

/* ---- the step ---- */

static void forward(struct pool_thread *t, void *arg)
{
    struct decoder *d = arg;
    const struct model *m = d->m;
    struct local mine;
    mine.input = (struct act){.n = m->hp.n_embd, .x = mine.x, .ld_x = (size_t)m->hp.n_embd,
                              .q = mine.q, .scale = mine.scale, .sum = mine.sum, .fsum = mine.fsum};

    embed(t, d);
    pool_barrier(t);
    for (int i = 0; i < m->hp.n_layer; i++) {
        const struct layer *l = &m->layers[i];
        bool quantize = weight_is_quantized(&l->wq) || weight_is_quantized(&l->wk) || weight_is_quantized(&l->wv);
        const struct precision fine = {.quantized = quantize, .fine = true};
        const struct act *input = normalize(t, d, &mine, l->attn_norm, NULL, d->n_tokens, fine);
        bool narrows = i + 1 == m->hp.n_layer && d->n_wanted < d->n_tokens;
        project_qkv(t, d, &mine, i, input, narrows ? PROJECT_KV : PROJECT_QKV);
        if (narrows) {
            if (d->n_wanted == 0) break; /* a prompt that goes on */
            pool_barrier(t);
            if (t->index == 0) keep_wanted(d, t->count);
            pool_barrier(t);
            input = normalize(t, d, &mine, l->attn_norm, NULL, d->n_tokens, fine);
            project_qkv(t, d, &mine, i, input, PROJECT_Q);
        }
        pool_barrier(t);
        attention(t, d, &mine, i);
        pool_barrier(t);
        project_residual(t, d, &l->wo, l->bo, &d->heads);
        pool_barrier(t);

        quantize = weight_is_quantized(&l->gate) || weight_is_quantized(&l->up);
        input = normalize(t, d, &mine, l->ffn_norm, NULL, d->n_tokens, (struct precision){.quantized = quantize});
        project_hidden(t, d, l, input);
        pool_barrier(t);
        project_residual(t, d, &l->down, NULL, &d->hidden);
        pool_barrier(t);
    }
    project_output(t, d, &mine);
}

const float *decoder_forward(struct decoder *d, struct pool *p, const struct batch_token *batch, int n_tokens)
{
    d->n_rows = d->n_wanted = 0;
    for (int i = 0; i < n_tokens; i++) {
        if (batch[i].logits_row >= 0) {
            d->row_token[batch[i].logits_row] = i;
            reset_likely(&d->likely[d->n_rows++]);
        }
        d->n_wanted += is_wanted(&batch[i]);
    }
    set_tokens(d, batch, n_tokens, pool_threads(p));
    pool_run(p, forward, d);
    return d->logits;
}

/* ---- memory ---- */

static void lay_out(struct decoder *d, struct arena *a)
{
    const struct hparams *hp = &d->m->hp;
    size_t n = (size_t)d->max_tokens, n_embd = (size_t)hp->n_embd, n_ff = (size_t)hp->n_ff;
    bool float_down = false;
    for (int i = 0; i < hp->n_layer; i++) float_down |= !weight_is_quantized(&d->m->layers[i].down);
    d->x = arena_take(a, n * n_embd, sizeof *d->x);
    d->input = arena_take_act(a, 2 * n, hp->n_embd, &d->input_x);
    d->q = arena_take(a, n * (size_t)hp->n_q, sizeof *d->q);
    d->q_narrow = arena_take(a, n * (size_t)hp->n_head * d->q_stride, sizeof *d->q_narrow);
    d->q_scale = arena_take(a, n * (size_t)hp->n_head, sizeof *d->q_scale);
    d->k_out = arena_take(a, n * (size_t)hp->n_k, sizeof *d->k_out);
    d->v_out = arena_take(a, n * (size_t)hp->n_v, sizeof *d->v_out);
    d->heads = arena_take_act(a, n, d->n_att, &d->heads_x);
    d->hidden = arena_take_act(a, n, hp->n_ff, float_down ? &d->hidden_x : NULL);
    d->tiles = arena_take(a, n * (2 * n_ff > n_embd ? 2 * n_ff : n_embd), sizeof *d->tiles);
    d->cos = arena_take(a, n * (size_t)hp->n_rot / 2 + 1, sizeof *d->cos);
    d->sin = arena_take(a, n * (size_t)hp->n_rot / 2 + 1, sizeof *d->sin);
    d->partial = arena_take(a, PARTIAL_FLOATS, sizeof *d->partial);
    d->logits = arena_take(a, (size_t)d->max_logits * (size_t)hp->n_vocab, sizeof *d->logits);
}

struct decoder *decoder_create(const struct model *m, const struct kernels *k, int max_tokens, int max_logits,
                               struct infer_error *err)
{
    const struct hparams *hp = &m->hp;
    if (hp->v_dim > LOCAL_FLOATS) {
        infer_fail(err, INFER_ERR, "value heads of %d elements: at most %d can be computed", hp->v_dim, LOCAL_FLOATS);
        return NULL;
    }
    size_t refine_rows = sizeof ((struct local *)0)->fine / m->output.row_bytes;
    if (refine_rows == 0 && weight_is_quantized(&m->output)) {
        infer_fail(err, INFER_ERR, "rows of %zu bytes in the output matrix: at most %zu can be computed", m->output.row_bytes,
                   sizeof ((struct local *)0)->fine);
        return NULL;
    }
    struct decoder *d = calloc(1, sizeof *d);
    if (!d) goto no_memory;
    d->refine_rows = refine_rows < ROW_TILE ? (int)refine_rows : ROW_TILE;
    d->m = m;
    d->k = k;
    d->max_tokens = max_tokens;
    d->max_logits = max_logits;
    d->group = hp->n_head / hp->n_head_kv;
    d->n_att = hp->n_head * hp->v_dim;
    d->q_unit = heads_of_whole_tiles(hp->k_dim, hp->k_dim);
    d->kv_unit = heads_of_whole_tiles(hp->k_dim, hp->v_dim);
    d->query_rows = LOCAL_FLOATS / hp->v_dim < QUERY_ROWS ? LOCAL_FLOATS / hp->v_dim : QUERY_ROWS;
    d->q_stride = kv_q_count(hp->k_dim);
    d->quantize_heads_later = hp->v_dim % ACT_BLOCK != 0;

    /* Each slice (plan_slice), of one token or more, may leave its last block of rows unfilled. */
    size_t blocks = (size_t)max_tokens * (size_t)d->group / (size_t)d->query_rows + (size_t)max_tokens;
    size_t max_groups = blocks * (size_t)hp->n_head_kv, max_items = max_groups + MAX_SPAN_ITEMS;
    size_t half = (size_t)hp->n_rot / 2;
    d->groups = calloc(max_groups, sizeof *d->groups);
    d->items = calloc(max_items, sizeof *d->items);
    d->wanted = calloc((size_t)max_tokens, sizeof *d->wanted);
    d->row_token = calloc((size_t)max_logits + 1, sizeof *d->row_token);
    d->likely = calloc((size_t)max_logits + 1, sizeof *d->likely);
    d->frequency = calloc(half + 1, sizeof *d->frequency);
    d->other_bytes = sizeof *d + max_groups * sizeof *d->groups + max_items * sizeof *d->items +
                     (size_t)max_tokens * sizeof *d->wanted +
                     (size_t)max_logits * (sizeof *d->row_token + sizeof *d->likely) + half * sizeof *d->frequency;
    struct arena arena = {0};
    lay_out(d, &arena);
    d->memory_bytes = arena.used;
    arena = (struct arena){.base = platform_map_anonymous(d->memory_bytes)};
    d->memory = arena.base;
    if (!d->groups || !d->items || !d->wanted || !d->row_token || !d->likely || !d->frequency || !d->memory) goto no_memory;
    lay_out(d, &arena);

    for (size_t i = 0; i < half; i++)
        d->frequency[i] = pow(hp->rope_base, -2.0 * (double)i / hp->n_rot) / (m->rope_freqs ? m->rope_freqs[i] : 1);
    return d;

no_memory:
    infer_fail(err, INFER_ERR, "no memory for the activations of %d tokens (%zu MB)", max_tokens,
               d ? d->memory_bytes >> 20 : 0);
    decoder_free(d);
    return NULL;
}

void decoder_free(struct decoder *d)
{
    if (!d) return;
    platform_unmap(d->memory, d->memory_bytes);
    free(d->groups);
    free(d->items);
    free(d->wanted);
    free(d->row_token);
    free(d->likely);
    free(d->frequency);
    free(d);
}

size_t decoder_bytes(const struct decoder *d)
{
    return d->memory_bytes + d->other_bytes;
}
