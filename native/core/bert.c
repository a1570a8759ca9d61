/* The embedding engine: see bert.h. One step:
 *
 *     take_arrivals ─ drop_ended ─ gather ─ encoder_forward ─ deliver
 *
 * The engine owns the model and the activations. Admission may come from any thread and never waits: it pushes
 * onto a list that the conductor takes over as a whole at its next step; everything else is the conductor's.
 * Statistics are atomics. The last thing that happens to a request is to call done: it is not touched after that. */
#include "bert.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bert_model.h"
#include "encoder.h"
#include "loader.h"
#include "platform.h"

struct bert {
    struct engine base;

    /* immutable after loading */
    struct bert_model *model;
    struct encoder *encoder;
    struct engine_limits *limits;

    /* the conductor's; base.queue has the requests with texts to be computed, the first one is next */
    struct embed_request *owner[ENCODER_TEXTS]; /* of the texts of the step */
    struct encoder_text texts[ENCODER_TEXTS];
    int n_texts, n_tokens;

    /* written by the conductor (n_requests by admission), read by any thread */
    _Atomic int n_running;
    _Atomic uint64_t n_requests, n_finished, n_cancelled, n_timed_out;
    _Atomic uint64_t prompt_tokens, steps;
};

/* ---- admission ---- */

static int admit(struct engine *engine, struct request *r, struct infer_error *err)
{
    (void)engine, (void)r;
    return infer_fail(err, INFER_ERR, "a BERT model makes vectors and no text");
}

static int embed(struct engine *engine, struct embed_request *r, struct infer_error *err)
{
    struct bert *e = (struct bert *)engine;
    if (embed_request_open(r, atomic_load(&e->limits->max_batch), atomic_load(&e->limits->max_queue), err) != 0) return -1;
    r->n_started = r->n_done = 0;
    atomic_fetch_add(&e->n_requests, 1);
    engine_arrive(engine, &r->base, &r->base);
    return 0; /* it may be done and gone by now */
}

/* ---- requests leave ---- */

/* The one way out. Gives r back to its creator. */
static void end(struct bert *e, struct embed_request *r, _Atomic uint64_t *counter)
{
    atomic_fetch_add(counter, 1);
    if (atomic_load(&r->base.state) == REQUEST_RUNNING) atomic_fetch_sub(&e->n_running, 1);
    r->base.timing.done_at = platform_now_us();
    atomic_store(&r->base.state, REQUEST_DONE);
    embed_request_close(r);
    r->base.done(&r->base);
}

/* True if r, which is in the queue, ended: cancelled or out of time. */
static bool end_if_due(struct bert *e, struct embed_request *r, uint64_t now)
{
    bool cancelled = atomic_load(&r->base.cancelled);
    if (!cancelled && (!r->base.timeout_us || now - r->base.timing.admitted_at < r->base.timeout_us)) return false;
    engine_dequeue(&e->base, &r->base);
    if (cancelled) {
        infer_fail(&r->base.error, INFER_CANCELLED, "cancelled after %d of %d inputs", r->n_done, r->n_inputs);
        end(e, r, &e->n_cancelled);
    } else {
        infer_fail(&r->base.error, INFER_CANCELLED, "timed out after %llu ms with %d of %d inputs computed",
                   (unsigned long long)(r->base.timeout_us / 1000), r->n_done, r->n_inputs);
        end(e, r, &e->n_timed_out);
    }
    return true;
}

static bool drop_ended(struct bert *e)
{
    uint64_t now = platform_now_us();
    bool any = false;
    for (struct request *r = e->base.queue, *next; r; r = next) {
        next = r->next;
        any |= end_if_due(e, (struct embed_request *)r, now);
    }
    return any;
}

/* ---- the step ---- */

static void start(struct bert *e, struct embed_request *r)
{
    atomic_store(&r->base.state, REQUEST_RUNNING);
    atomic_fetch_add(&e->n_running, 1);
    atomic_fetch_add(&e->prompt_tokens, (uint64_t)r->n_tokens);
    r->base.timing.started_at = platform_now_us();
    histogram_add(&e->base.latency.queue, r->base.timing.started_at - r->base.timing.admitted_at);
}

/* The next text of each request in turn, as long as there is room. A request whose last text is under way is in
 * no list: the step ends it. */
static void gather(struct bert *e)
{
    struct request *next;
    e->n_texts = e->n_tokens = 0;
    while (e->n_texts < ENCODER_TEXTS && (next = e->base.queue)) {
        struct embed_request *r = (struct embed_request *)next;
        int i = r->n_started, n;
        const uint32_t *tokens = embed_input(r, i, &n);
        if (e->n_texts > 0 && e->n_tokens + n > BERT_STEP_TOKENS) return;
        if (i == 0) start(e, r);
        e->owner[e->n_texts] = r;
        e->texts[e->n_texts++] =
            (struct encoder_text){.tokens = tokens, .n_tokens = n, .vector = r->vectors + (size_t)i * (size_t)r->n_embd};
        e->n_tokens += n;
        r->n_started++;
        engine_dequeue(&e->base, next);
        if (r->n_started < r->n_inputs) engine_enqueue(&e->base, next);
    }
}

static void deliver(struct bert *e)
{
    uint64_t now = platform_now_us();
    for (int i = 0; i < e->n_texts; i++) {
        struct embed_request *r = e->owner[i];
        atomic_fetch_add(&r->base.progress.computed, e->texts[i].n_tokens);
        if (++r->n_done < r->n_inputs) continue;
        r->base.timing.first_output_at = now;
        histogram_add(&e->base.latency.first_token, now - r->base.timing.admitted_at);
        end(e, r, &e->n_finished);
    }
}

static bool step(struct engine *engine, struct pool *pool)
{
    struct bert *e = (struct bert *)engine;
    engine_take_arrivals(engine);
    if (!engine->queue) return false;
    uint64_t began = platform_now_us();
    drop_ended(e);
    if (!engine->queue) return true;
    gather(e);
    encoder_forward(e->encoder, pool, e->texts, e->n_texts);
    atomic_fetch_add(&e->steps, 1); /* before a client can see what the step gave */
    engine_count_step(&e->base, platform_now_us() - began);
    deliver(e);
    return true;
}

static void abort_all(struct engine *engine)
{
    struct bert *e = (struct bert *)engine;
    struct request *r;
    engine_take_arrivals(engine);
    while ((r = engine->queue)) {
        engine_dequeue(engine, r);
        infer_fail(&r->error, INFER_NOMODEL, "the model was unloaded before the request was finished");
        end(e, (struct embed_request *)r, &e->n_cancelled);
    }
}

/* ---- life ---- */

static void get_stats(struct engine *engine, struct engine_stats *s)
{
    struct bert *e = (struct bert *)engine;
    memset(s, 0, sizeof *s);
    s->activation_bytes = encoder_bytes(e->encoder);
    s->running = atomic_load(&e->n_running);
    s->queued = atomic_load(&e->base.n_open) - s->running;
    if (s->queued < 0) s->queued = 0; /* read while one finished */
    s->requests = atomic_load(&e->n_requests);
    s->finished = atomic_load(&e->n_finished);
    s->cancelled = atomic_load(&e->n_cancelled);
    s->timed_out = atomic_load(&e->n_timed_out);
    s->prompt_tokens = atomic_load(&e->prompt_tokens);
    s->steps = atomic_load(&e->steps);
    histogram_read(&e->base.latency.queue, &s->queue);
    histogram_read(&e->base.latency.first_token, &s->first_token);
    histogram_read(&e->base.latency.step, &s->step);
}

static void bert_free(struct engine *engine)
{
    struct bert *e = (struct bert *)engine;
    if (!e) return;
    encoder_free(e->encoder);
    bert_model_free(e->model);
    free(e);
}

static const struct engine_ops ops = {
    .name = "bert",
    .admit = admit,
    .embed = embed,
    .step = step,
    .abort = abort_all,
    .get_stats = get_stats,
    .free = bert_free,
};

static void describe(struct bert *e, const struct engine_config *config)
{
    const struct bert_model *m = e->model;
    struct engine_info *info = &e->base.info;
    strcpy(info->architecture, "bert");
    memcpy(info->title, m->hp.name, sizeof info->title);
    info->quantization = loader_quantization(m->gguf);
    info->kernels = config->kernels->name;
    info->n_parameters = m->n_parameters;
    info->weight_bytes = m->weight_bytes;
    info->n_ctx_train = m->hp.n_ctx;
    info->n_ctx = config->n_ctx > 0 ? config->n_ctx : m->hp.n_ctx;
    info->n_vocab = m->hp.n_vocab;
    info->n_embd = m->hp.n_embd;
    info->n_layer = m->hp.n_layer;
    info->n_head = info->n_head_kv = m->hp.n_head;
}

struct engine *bert_load(struct gguf *g, const struct engine_config *config, struct infer_error *err)
{
    struct bert *e = calloc(1, sizeof *e);
    if (!e) {
        gguf_close(g);
        infer_fail(err, INFER_ERR, "no memory for the model");
        return NULL;
    }
    e->base.ops = &ops;
    e->limits = config->limits;
    e->model = bert_model_load(g, err);
    if (!e->model) {
        gguf_close(g);
        goto fail;
    }
    if (config->n_ctx > e->model->hp.n_ctx) {
        infer_fail(err, INFER_CONTEXT, "a context of %d tokens is more than the %d that the model was made for",
                   config->n_ctx, e->model->hp.n_ctx);
        goto fail;
    }
    describe(e, config);
    int max_tokens = e->base.info.n_ctx > BERT_STEP_TOKENS ? e->base.info.n_ctx : BERT_STEP_TOKENS;
    e->encoder = encoder_create(e->model, config->kernels, max_tokens, err);
    if (!e->encoder) goto fail;
    return &e->base;

fail:
    bert_free(&e->base);
    return NULL;
}
