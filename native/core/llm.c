/* The text engine's life: loading, admission, description. The step is in llm_step.c.
 *
 * The engine owns the model, vocabulary, arena and activations. Admission may
 * come from any thread and never waits: it pushes onto a list that the
 * conductor takes over as a whole at its next step. Statistics are atomics. */
#include "llm.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "llm_internal.h"

/* ---- admission ---- */

int llm_max_batch(const struct llm *e)
{
    int n = atomic_load(&e->limits->max_batch);
    return n < 1 ? 1 : n > LLM_MAX_BATCH ? LLM_MAX_BATCH : n;
}

static int check_request(const struct llm *e, const struct llm_request *r, struct infer_error *err)
{
    if (r->n_prompt == 0)
        return infer_fail(err, INFER_BADTOKENS, "the prompt is empty: it needs at least one token");
    if (r->params.kind == LLM_GENERATE && r->params.max_tokens > e->base.info.n_ctx - r->n_prompt)
        return infer_fail(err, INFER_CONTEXT,
                          "a prompt of %d tokens and %d more to generate exceed the model's context of %d", r->n_prompt,
                          r->params.max_tokens, e->base.info.n_ctx);
    return 0;
}

void llm_push(struct llm *e, struct request *r, int n)
{
    atomic_fetch_add(&e->n_requests, (uint64_t)n);
    atomic_fetch_add(&e->n_waiting, n);
    engine_arrive(&e->base, r, r);
}

static int admit(struct engine *engine, struct request *request, struct infer_error *err)
{
    struct llm *e = (struct llm *)engine;
    if (check_request(e, (struct llm_request *)request, err) != 0) return -1;
    if (engine_open(engine, llm_max_batch(e), atomic_load(&e->limits->max_queue), err) != 0) return -1;
    llm_push(e, request, 1);
    return 0; /* it may be done and gone by now */
}

/* ---- statistics ---- */

static void get_stats(struct engine *engine, struct engine_stats *s)
{
    struct llm *e = (struct llm *)engine;
    kv_get_stats(e->kv, &s->kv);
    s->activation_bytes = decoder_bytes(e->decoder);
    s->running = atomic_load(&e->running_now);
    s->queued = atomic_load(&e->n_waiting);
    s->requests = atomic_load(&e->n_requests);
    s->finished = atomic_load(&e->n_finished);
    s->cancelled = atomic_load(&e->n_cancelled);
    s->timed_out = atomic_load(&e->n_timed_out);
    s->failed = atomic_load(&e->n_failed);
    s->prompt_tokens = atomic_load(&e->prompt_tokens);
    s->cached_tokens = atomic_load(&e->cached_tokens);
    s->output_tokens = atomic_load(&e->output_tokens);
    s->steps = atomic_load(&e->steps);
    histogram_read(&e->base.latency.queue, &s->queue);
    histogram_read(&e->base.latency.first_token, &s->first_token);
    histogram_read(&e->base.latency.token, &s->token);
    histogram_read(&e->base.latency.step, &s->step);
}

/* ---- life ---- */

static void llm_free(struct engine *engine)
{
    struct llm *e = (struct llm *)engine;
    if (!e) return;
    decoder_free(e->decoder);
    kv_free(e->kv);
    vocab_free(e->vocab);
    model_free(e->model);
    free(e);
}

const struct engine_ops llm_ops = {
    .name = "llm",
    .admit = admit,
    .embed = llm_embed,
    .step = llm_step,
    .abort = llm_abort,
    .get_stats = get_stats,
    .free = llm_free,
};

/* Settles the context: what was asked for, or the model's own as far as the arena holds it. */
static int choose_n_ctx(struct llm *e, int wanted, size_t kv_bytes, struct infer_error *err)
{
    const struct hparams *hp = &e->model->hp;
    struct kv_stats kv;
    kv_get_stats(e->kv, &kv);
    int held = kv.pages_total * KV_PAGE;
    if (wanted > hp->n_ctx_train)
        return infer_fail(err, INFER_CONTEXT, "a context of %d tokens is more than the %d that the model was made for",
                          wanted, hp->n_ctx_train);
    if (wanted > held) {
        size_t pages = (size_t)(wanted + KV_PAGE - 1) / KV_PAGE;
        return infer_fail(err, INFER_CONTEXT,
                          "a context of %d tokens needs %zu bytes of KV memory, the budget of %zu holds %d tokens", wanted,
                          pages * kv.page_bytes, kv_bytes, held);
    }
    e->base.info.n_ctx = wanted > 0 ? wanted : hp->n_ctx_train < held ? hp->n_ctx_train : held;
    return 0;
}

static void describe(struct llm *e)
{
    const struct model *m = e->model;
    const struct hparams *hp = &m->hp;
    struct engine_info *info = &e->base.info;
    memcpy(info->architecture, hp->architecture, sizeof info->architecture);
    memcpy(info->title, hp->name, sizeof info->title);
    info->quantization = model_quantization(m);
    info->kernels = e->kernels->name;
    info->n_parameters = m->n_parameters;
    info->weight_bytes = m->weight_bytes;
    info->n_ctx_train = hp->n_ctx_train;
    info->n_vocab = hp->n_vocab;
    info->n_embd = hp->n_embd;
    info->n_layer = hp->n_layer;
    info->n_head = hp->n_head;
    info->n_head_kv = hp->n_head_kv;
}

struct engine *llm_load(struct gguf *gguf, const struct engine_config *config, struct infer_error *err)
{
    struct llm *e = calloc(1, sizeof *e);
    if (!e) {
        gguf_close(gguf);
        infer_fail(err, INFER_ERR, "no memory for the model");
        return NULL;
    }
    e->base.ops = &llm_ops;
    e->kernels = config->kernels;
    e->limits = config->limits;
    e->model = model_load(gguf, err);
    if (!e->model) {
        gguf_close(gguf);
        goto fail;
    }
    describe(e);
    size_t kv_bytes = config->kv_bytes ? config->kv_bytes : ENGINE_DEFAULT_KV_BYTES;
    if (!(e->vocab = vocab_load(gguf, e->model->hp.n_vocab, err))) goto fail;
    if (!(e->kv = kv_create(&e->model->hp, kv_bytes, err))) goto fail;
    if (choose_n_ctx(e, config->n_ctx, kv_bytes, err) != 0) goto fail;
    e->decoder = decoder_create(e->model, e->kernels, LLM_STEP_TOKENS, LLM_LOGITS_ROWS, err);
    if (!e->decoder) goto fail;
    return &e->base;

fail:
    llm_free(&e->base);
    return NULL;
}

/* ---- description ---- */

bool llm_is(const struct engine *e)
{
    return e->ops == &llm_ops;
}

const struct model *llm_model(const struct engine *e)
{
    return ((const struct llm *)e)->model;
}

const struct vocab *llm_vocab(const struct engine *e)
{
    return ((const struct llm *)e)->vocab;
}
