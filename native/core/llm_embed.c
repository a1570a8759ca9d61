/* Vectors from a decoder: each input is an LLM_EMBED request of its own, a part, so that several are in a step
 * beside generations; the last part that ends ends the whole.
 *
 * However many inputs a whole has, one part of it waits at most. The next one is made, and goes to the end of the
 * queue, when that one has started, and not before what has started leaves a step unfilled. So whoever comes waits for
 * few parts, and a whole that is alone fills its steps.
 *
 * Parts share their tokens with the whole. Admission, which makes the first one, is on the caller's thread, the
 * rest on the conductor. */
#include <stdatomic.h>
#include <string.h>

#include "llm_internal.h"
#include "platform.h"

enum { POOLING_LAST = 3 }; /* of the key pooling_type; 0, none, leaves it to the user */

static void part_done(struct request *base)
{
    struct llm_request *part = (struct llm_request *)base;
    struct embed_request *whole = part->whole;
    size_t n_embd = (size_t)whole->n_embd;
    if (base->error.code == INFER_OK)
        memcpy(whole->vectors + (size_t)part->input * n_embd, part->embedding, n_embd * sizeof(float));
    else if (whole->base.error.code == INFER_OK)
        whole->base.error = base->error;
    part->tokens = NULL; /* the whole's */
    llm_request_free(part);
    if (++whole->n_done < whole->n_inputs) return;

    whole->base.timing.first_output_at = whole->base.timing.done_at = platform_now_us();
    atomic_store(&whole->base.state, REQUEST_DONE);
    embed_request_close(whole);
    whole->base.done(&whole->base);
}

/* The next input's; NULL when there is no memory. */
static struct llm_request *make_part(struct embed_request *whole)
{
    const struct llm_params params = {.kind = LLM_EMBED, .no_cache = true}; /* texts hardly share beginnings */
    struct llm_request *part = llm_request_create(whole->base.engine, &params, NULL);
    if (!part) return NULL;
    int n_tokens, i = whole->n_parts++;
    part->tokens = whole->tokens + (embed_input(whole, i, &n_tokens) - whole->tokens);
    part->n_prompt = part->cap = n_tokens;
    part->whole = whole;
    part->input = i;
    part->base.id = whole->base.id;
    part->base.timeout_us = whole->base.timeout_us;
    part->base.timing.admitted_at = whole->base.timing.admitted_at;
    part->base.done = part_done;
    atomic_store(&part->base.state, REQUEST_QUEUED);
    return part;
}

int llm_embed(struct engine *engine, struct embed_request *whole, struct infer_error *err)
{
    struct llm *e = (struct llm *)engine;
    int pooling = e->model->hp.pooling;
    if (pooling > 0 && pooling != POOLING_LAST)
        return infer_fail(err, INFER_ERR, "%s.pooling_type is %d; of decoder models only 3 (the last token) is implemented",
                          e->base.info.architecture, pooling);
    if (embed_request_open(whole, llm_max_batch(e), atomic_load(&e->limits->max_queue), err) != 0) return -1;
    whole->n_parts = whole->n_started = whole->n_done = 0;
    struct llm_request *part = make_part(whole);
    if (!part) {
        embed_request_close(whole);
        return infer_fail(err, INFER_ERR, "no memory for a request");
    }
    llm_push(e, &part->base, whole->n_inputs);
    return 0; /* it may be done and gone by now */
}

int llm_embed_drop(struct embed_request *whole)
{
    int n = whole->n_inputs - whole->n_parts;
    whole->n_parts = whole->n_inputs;
    whole->n_done += n;
    return n;
}

/* Makes the next part if none waits and those that run have too little left for a step. One does run, so the whole
 * outlives this even if there is no memory. */
static void go_on(struct llm *e, struct embed_request *whole)
{
    if (whole->n_parts > whole->n_started || whole->n_parts == whole->n_inputs) return;
    if (whole->ends[whole->n_started - 1] - atomic_load(&whole->base.progress.computed) >= LLM_STEP_TOKENS) return;
    struct llm_request *part = make_part(whole);
    if (part) {
        engine_enqueue(&e->base, &part->base);
        return;
    }
    int n = llm_embed_drop(whole);
    infer_fail(&whole->base.error, INFER_ERR, "memory ran out after %d of %d inputs", whole->n_inputs - n, whole->n_inputs);
    atomic_fetch_sub(&e->n_waiting, n);
    atomic_fetch_add(&e->n_failed, (uint64_t)n);
}

void llm_embed_started(struct llm *e, struct llm_request *part)
{
    struct embed_request *whole = part->whole;
    if (whole->n_started++ == 0) {
        whole->base.timing.started_at = part->base.timing.started_at;
        atomic_store(&whole->base.state, REQUEST_RUNNING);
    }
    go_on(e, whole);
}

void llm_embed_computed(struct llm *e, struct llm_request *part)
{
    atomic_fetch_add(&part->whole->base.progress.computed, part->n_step);
    go_on(e, part->whole);
}
