/* What the files of the text engine share: llm.c (life of an engine, admission), llm_request.c (building
 * a request), llm_embed.c (vectors) and llm_step.c (the step). Nobody else includes it. */
#ifndef INFER_LLM_INTERNAL_H
#define INFER_LLM_INTERNAL_H

#include "decoder.h"
#include "llm.h"

/* Rows of logits in one step: one for each running generation, and those of LLM_SCORE. */
enum { LLM_LOGITS_ROWS = LLM_MAX_BATCH + LLM_SCORE_ROWS };

/* A row of logits and whose it is. */
struct llm_row {
    struct llm_request *request;
    int pos;    /* of the token that the row follows */
    int32_t id; /* generate: the token picked */
};

struct llm {
    struct engine base;

    /* immutable after loading */
    struct model *model;
    struct vocab *vocab;
    struct decoder *decoder;
    struct kv_cache *kv;
    const struct kernels *kernels;
    struct engine_limits *limits;

    _Atomic int n_waiting; /* admitted and not started; of a request for vectors each text (base.n_open counts it as one) */

    /* the conductor's */
    struct llm_request *running[LLM_MAX_BATCH];
    int n_running;
    uint64_t turn;
    struct batch_token batch[LLM_STEP_TOKENS];
    struct llm_row rows[LLM_LOGITS_ROWS];
    int n_batch, n_rows;
    const float *logits; /* [n_rows, n_vocab] of the step under way */

    /* written by the conductor (n_requests by admission too), read by any thread */
    _Atomic int running_now;
    _Atomic uint64_t n_requests, n_finished, n_cancelled, n_timed_out, n_failed;
    _Atomic uint64_t prompt_tokens, cached_tokens, output_tokens, steps;
};

_Static_assert(LLM_MAX_BATCH + LLM_SLICE <= LLM_STEP_TOKENS, "a step with generations fits the batch");

/* limits->max_batch, held to 1 .. LLM_MAX_BATCH. */
int llm_max_batch(const struct llm *e);

extern const struct engine_ops llm_ops;

/* Hands r, which is counted as n (more will come of it), to the conductor. Any thread. */
void llm_push(struct llm *e, struct request *r, int n);

int llm_embed(struct engine *e, struct embed_request *r, struct infer_error *err);
/* A part of a request for vectors has started to run; has had its share of a step. Conductor. */
void llm_embed_started(struct llm *e, struct llm_request *part);
void llm_embed_computed(struct llm *e, struct llm_request *part);
/* Gives up the inputs that are no parts yet, with the part whose end follows. Their number. Conductor. */
int llm_embed_drop(struct embed_request *whole);

bool llm_step(struct engine *e, struct pool *p);
void llm_abort(struct engine *e);

/* Positions whose K and V the request needs in the arena at the most. */
int llm_request_max_positions(const struct llm_request *r);
/* Room for one more output token with its logprobs (generate) or for the whole result (score,
 * embed). -1: no memory. */
int llm_request_make_room(struct llm_request *r, const struct hparams *hp);

#endif
