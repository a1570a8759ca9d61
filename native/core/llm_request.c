/* Building a request of the text engine: parameters, and the prompt read from where it lies.
 *
 * The creator's thread calls; the request owns its token array, results and stop texts. */
#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "llm_internal.h"
#include "tokens.h"

const char *llm_finish_name(enum llm_finish f)
{
    switch (f) {
    case LLM_NOT_FINISHED: return "not finished";
    case LLM_STOP: return "stop";
    case LLM_LENGTH: return "length";
    case LLM_TIMEOUT: return "timeout";
    case LLM_CANCELLED: return "cancelled";
    }
    return "unknown";
}

static int check_params(const struct llm_params *p, struct infer_error *err)
{
    int max_logprobs = p->kind == LLM_SCORE ? LLM_MAX_TOP : LLM_MAX_LOGPROBS;
    if (p->n_logprobs > max_logprobs)
        return infer_fail(err, INFER_ERR, "%d alternatives asked for at each token, the most is %d", p->n_logprobs,
                          max_logprobs);
    if (p->kind != LLM_GENERATE) return 0;
    if (p->max_tokens < 1) return infer_fail(err, INFER_ERR, "%d tokens asked for: at least 1", p->max_tokens);
    if (p->n_stops < 0 || p->n_stops > LLM_MAX_STOPS)
        return infer_fail(err, INFER_ERR, "%d stop texts, the most is %d", p->n_stops, LLM_MAX_STOPS);
    for (int i = 0; i < p->n_stops; i++) {
        if (p->stops[i].len == 0) return infer_fail(err, INFER_ERR, "stop text %d is empty", i + 1);
        if (p->stops[i].len > LLM_MAX_STOP_BYTES)
            return infer_fail(err, INFER_ERR, "stop text %d has %zu bytes, the most is %d", i + 1, p->stops[i].len,
                              LLM_MAX_STOP_BYTES);
    }
    return sampler_check(&p->sampling, err);
}

struct llm_request *llm_request_create(struct engine *e, const struct llm_params *p, struct infer_error *err)
{
    const struct llm *llm = (const struct llm *)e;
    if (!llm_is(e)) {
        infer_fail(err, INFER_ERR, "a model of architecture '%s' makes vectors and no text: use it for embeddings",
                   e->info.architecture);
        return NULL;
    }
    if (check_params(p, err) != 0) return NULL;
    struct llm_request *r = calloc(1, sizeof *r);
    if (!r) {
        infer_fail(err, INFER_ERR, "no memory for a request");
        return NULL;
    }
    r->base.engine = e;
    r->params = *p;
    text_init(&r->text, r->params.stops, r->params.n_stops);
    sampler_init(&r->sampler, &r->params.sampling, llm->kernels->argmax);
    return r;
}

void llm_request_free(struct llm_request *r)
{
    if (!r) return;
    text_free(&r->text);
    sampler_free(&r->sampler);
    free(r->params.stops);
    free(r->tokens);
    free(r->logprob);
    free(r->top_ids);
    free(r->top_logprobs);
    free(r->embedding);
    free(r);
}

static int reserve_tokens(struct llm_request *r, int n, int most)
{
    if (n <= r->cap) return 0;
    int cap = r->cap < most / 2 ? r->cap * 2 : most;
    if (cap < n) cap = n;
    uint32_t *grown = realloc(r->tokens, (size_t)cap * sizeof *grown);
    if (!grown) return -1;
    r->tokens = grown;
    r->cap = cap;
    return 0;
}

int llm_request_append(struct llm_request *r, const void *data, size_t bytes, const char *what, struct infer_error *err)
{
    const struct llm *llm = (const struct llm *)r->base.engine;
    if (bytes % sizeof(uint32_t) != 0)
        return infer_fail(err, INFER_BADTOKENS, "%s holds %zu bytes, not a whole number of uint32 tokens", what, bytes);
    size_t n = bytes / sizeof(uint32_t);
    if (n > (size_t)(llm->base.info.n_ctx - r->n_prompt))
        return infer_fail(err, INFER_CONTEXT,
                          "%s with %zu tokens makes a prompt of %zu, more than the model's context of %d", what, n,
                          (size_t)r->n_prompt + n, llm->base.info.n_ctx);
    if (reserve_tokens(r, r->n_prompt + (int)n, llm->base.info.n_ctx) != 0)
        return infer_fail(err, INFER_ERR, "no memory for %zu tokens", n);

    r->source = data;
    if (tokens_read(r->tokens + r->n_prompt, data, n, (uint32_t)llm->model->hp.n_vocab, what, err) != 0) return -1;
    r->n_prompt += (int)n;
    return 0;
}

void llm_request_truncate(struct llm_request *r, int n)
{
    if (n < r->n_prompt) r->n_prompt = n;
}

int llm_request_max_positions(const struct llm_request *r)
{
    switch (r->params.kind) {
    case LLM_GENERATE: return r->n_prompt + r->params.max_tokens - 1; /* the last token is not computed any further */
    case LLM_SCORE: return r->n_prompt - 1;
    case LLM_EMBED: return r->n_prompt;
    }
    return 0;
}

static int reserve_logprobs(struct llm_request *r, int rows, int most)
{
    if (rows <= r->cap_logprob) return 0;
    int cap = r->cap_logprob < most / 2 ? r->cap_logprob * 2 : most;
    if (cap < rows) cap = rows;
    size_t n_top = (size_t)(r->params.n_logprobs > 0 ? r->params.n_logprobs : 0) * (size_t)cap;
    float *logprob = realloc(r->logprob, (size_t)cap * sizeof *logprob);
    if (!logprob) return -1;
    r->logprob = logprob;
    if (n_top) {
        uint32_t *ids = realloc(r->top_ids, n_top * sizeof *ids);
        if (!ids) return -1;
        r->top_ids = ids;
        float *values = realloc(r->top_logprobs, n_top * sizeof *values);
        if (!values) return -1;
        r->top_logprobs = values;
    }
    r->cap_logprob = cap;
    return 0;
}

int llm_request_make_room(struct llm_request *r, const struct hparams *hp)
{
    switch (r->params.kind) {
    case LLM_GENERATE:
        if (reserve_tokens(r, r->n_prompt + r->n_output + 1, r->n_prompt + r->params.max_tokens) != 0) return -1;
        return r->params.n_logprobs < 0 ? 0 : reserve_logprobs(r, r->n_output + 1, r->params.max_tokens);
    case LLM_SCORE: return reserve_logprobs(r, r->n_prompt - 1, r->n_prompt - 1);
    case LLM_EMBED:
        if (!r->embedding) r->embedding = malloc((size_t)hp->n_embd * sizeof(float));
        r->n_embedding = hp->n_embd;
        return r->embedding ? 0 : -1;
    }
    return -1;
}
