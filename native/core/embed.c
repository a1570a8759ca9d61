/* Building a request for vectors: see embed.h. The request owns its tokens and vectors; the creator's
 * thread calls, but for embed_request_close and embed_normalize, which any may. */
#include "embed.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "tokens.h"

struct embed_request *embed_request_create(struct engine *e, struct infer_error *err)
{
    struct embed_request *r = calloc(1, sizeof *r);
    if (!r) {
        infer_fail(err, INFER_ERR, "no memory for a request");
        return NULL;
    }
    r->base.engine = e;
    r->base.is_embed = true;
    r->n_embd = e->info.n_embd;
    return r;
}

void embed_request_free(struct embed_request *r)
{
    if (!r) return;
    free(r->tokens);
    free(r->ends);
    free(r->vectors);
    free(r);
}

static int reserve(void **array, int *cap, int n, size_t element_bytes)
{
    if (n <= *cap) return 0;
    int grown = 2 * *cap; /* at most 2 * EMBED_MAX_TOKENS */
    if (grown < n) grown = n;
    if (grown < 16) grown = 16;
    void *p = realloc(*array, (size_t)grown * element_bytes);
    if (!p) return -1;
    *array = p;
    *cap = grown;
    return 0;
}

int embed_request_add(struct embed_request *r, const void *data, size_t bytes, const char *what, struct infer_error *err)
{
    const struct engine_info *info = &r->base.engine->info;
    if (r->n_inputs == EMBED_MAX_INPUTS)
        return infer_fail(err, INFER_ERR, "%s is input %d: at most %d go into one request", what, r->n_inputs + 1,
                          EMBED_MAX_INPUTS);
    if (bytes == 0) return infer_fail(err, INFER_BADTOKENS, "%s holds no tokens: there is no vector of nothing", what);
    if (bytes % sizeof(uint32_t) != 0)
        return infer_fail(err, INFER_BADTOKENS, "%s holds %zu bytes, not a whole number of uint32 tokens", what, bytes);
    size_t n = bytes / sizeof(uint32_t);
    if (n > (size_t)info->n_ctx)
        return infer_fail(err, INFER_CONTEXT, "%s holds %zu tokens, more than the model's context of %d: cut it into parts",
                          what, n, info->n_ctx);
    if ((int)n > EMBED_MAX_TOKENS - r->n_tokens)
        return infer_fail(err, INFER_ERR, "with %s the request has %zu tokens: at most %d go into one", what,
                          (size_t)r->n_tokens + n, EMBED_MAX_TOKENS);
    if (reserve((void **)&r->tokens, &r->cap_tokens, r->n_tokens + (int)n, sizeof *r->tokens) != 0 ||
        reserve((void **)&r->ends, &r->cap_inputs, r->n_inputs + 1, sizeof *r->ends) != 0)
        return infer_fail(err, INFER_ERR, "no memory for %zu tokens", n);
    r->source = data;
    if (tokens_read(r->tokens + r->n_tokens, data, n, (uint32_t)info->n_vocab, what, err) != 0) return -1;
    r->n_tokens += (int)n;
    r->ends[r->n_inputs++] = r->n_tokens;
    return 0;
}

/* Gives back what reserve took ahead: a request may wait for long. */
static void trim(void **array, int *cap, int n, size_t element_bytes)
{
    void *p = realloc(*array, (size_t)n * element_bytes);
    if (!p) return;
    *array = p;
    *cap = n;
}

static size_t request_bytes(const struct engine *e, size_t n_tokens, size_t n_inputs)
{
    const struct embed_request *r;
    return n_tokens * sizeof *r->tokens + n_inputs * (sizeof *r->ends + (size_t)e->info.n_embd * sizeof *r->vectors);
}

size_t embed_request_bytes(const struct embed_request *r)
{
    return request_bytes(r->base.engine, (size_t)r->n_tokens, (size_t)r->n_inputs);
}

size_t embed_max_bytes(const struct engine *e)
{
    return EMBED_MAX_LARGEST * request_bytes(e, EMBED_MAX_TOKENS, EMBED_MAX_INPUTS);
}

int embed_request_open(struct embed_request *r, int max_running, int max_waiting, struct infer_error *err)
{
    struct engine *e = r->base.engine;
    if (r->n_inputs == 0) return infer_fail(err, INFER_BADTOKENS, "there is no input: give at least one");
    if (engine_open(e, max_running, max_waiting, err) != 0) return -1;
    size_t mine = embed_request_bytes(r), most = embed_max_bytes(e), others = atomic_fetch_add(&e->embed_bytes, mine);
    if (others + mine > most) {
        embed_request_close(r);
        return infer_fail(err, INFER_BUSY,
                          "requests for vectors that are running or waiting hold %zu bytes and this one %zu, the most is %zu: "
                          "try again later, or with fewer texts",
                          others, mine, most);
    }
    trim((void **)&r->tokens, &r->cap_tokens, r->n_tokens, sizeof *r->tokens);
    trim((void **)&r->ends, &r->cap_inputs, r->n_inputs, sizeof *r->ends);
    if (!r->vectors) r->vectors = malloc((size_t)r->n_inputs * (size_t)r->n_embd * sizeof *r->vectors);
    if (r->vectors) return 0;
    embed_request_close(r);
    return infer_fail(err, INFER_ERR, "no memory for %d vectors", r->n_inputs);
}

void embed_request_close(struct embed_request *r)
{
    struct engine *e = r->base.engine;
    atomic_fetch_sub(&e->embed_bytes, embed_request_bytes(r));
    atomic_fetch_sub(&e->n_open, 1);
}

void embed_normalize(float *x, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    float scale = sum > 0 ? (float)(1.0 / sqrt(sum)) : 0.0f;
    for (int i = 0; i < n; i++) x[i] *= scale;
}
