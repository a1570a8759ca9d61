/* Vectors from a decoder: each input is an LLM_EMBED request of its own, a part, so that several are in a step
 * beside generations; the last part that ends ends the whole.
 *
 * Parts share their tokens with the whole and belong to it. Admission on the caller's
 * thread, the rest on the conductor. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "llm_internal.h"
#include "platform.h"

enum { POOLING_LAST = 3 }; /* of the key pooling_type; 0, none, leaves it to the user */

static void free_parts(struct embed_request *whole)
{
    for (int i = 0; i < whole->n_inputs && whole->parts; i++) {
        if (!whole->parts[i]) continue;
        whole->parts[i]->tokens = NULL; /* the whole's */
        llm_request_free(whole->parts[i]);
    }
    free(whole->parts);
    whole->parts = NULL;
}

static void part_done(struct request *base)
{
    struct llm_request *part = (struct llm_request *)base;
    struct embed_request *whole = part->whole;
    struct llm *e = (struct llm *)base->engine;
    size_t n_embd = (size_t)whole->n_embd;
    if (base->error.code == INFER_OK)
        memcpy(whole->vectors + (size_t)part->input * n_embd, part->embedding, n_embd * sizeof(float));
    else if (whole->base.error.code == INFER_OK)
        whole->base.error = base->error;
    free(part->embedding);
    part->embedding = NULL;
    atomic_fetch_add(&whole->base.progress.computed, part->n_prompt);
    if (++whole->n_done < whole->n_inputs) return;

    free_parts(whole);
    whole->base.timing.first_output_at = whole->base.timing.done_at = platform_now_us();
    atomic_store(&whole->base.state, REQUEST_DONE);
    atomic_fetch_sub(&e->base.n_open, 1);
    whole->base.done(&whole->base);
}

int llm_embed(struct engine *engine, struct embed_request *whole, struct infer_error *err)
{
    struct llm *e = (struct llm *)engine;
    const struct llm_params params = {.kind = LLM_EMBED, .no_cache = true}; /* texts hardly share beginnings */
    int pooling = e->model->hp.pooling;
    if (pooling > 0 && pooling != POOLING_LAST)
        return infer_fail(err, INFER_ERR, "%s.pooling_type is %d; of decoder models only 3 (the last token) is implemented",
                          e->base.info.architecture, pooling);
    if (embed_request_prepare(whole, err) != 0 || llm_open(e, err) != 0) return -1;
    whole->n_done = 0;
    whole->parts = calloc((size_t)whole->n_inputs, sizeof *whole->parts);
    for (int i = 0; i < whole->n_inputs; i++) {
        struct llm_request *part = whole->parts ? llm_request_create(engine, &params, err) : NULL;
        if (!part) {
            free_parts(whole);
            atomic_fetch_sub(&e->base.n_open, 1);
            return infer_fail(err, INFER_ERR, "no memory for a request of %d inputs", whole->n_inputs);
        }
        whole->parts[i] = part;
        int n_tokens;
        part->tokens = whole->tokens + (embed_input(whole, i, &n_tokens) - whole->tokens);
        part->n_prompt = part->cap = n_tokens;
        part->whole = whole;
        part->input = i;
        part->base.id = whole->base.id;
        part->base.timeout_us = whole->base.timeout_us;
        part->base.timing.admitted_at = whole->base.timing.admitted_at;
        part->base.done = part_done;
        atomic_store(&part->base.state, REQUEST_QUEUED);
        if (i > 0) part->base.next = &whole->parts[i - 1]->base; /* newest first, as arrivals are */
    }
    llm_push(e, &whole->parts[whole->n_inputs - 1]->base, &whole->parts[0]->base, whole->n_inputs);
    return 0; /* it may be done and gone by now */
}
